"""`agentstream send` from outside of a cluster: as an agent with its Secret, over a forwarded port."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import redis
from aiohttp import web

from agentstream.agent import Agent
from agentstream.identity.settings import Settings
from agentstream.transport.endpoint import Endpoint
from agentstream_operator.cluster.secret_contents import ServerAddress, secret
from support.operator import Operator, operator
from support.resources import KEY, a_group, a_stream
from support.servers import Server
from unit.cluster.test_tunnel import READY, Cluster, a_pod, kubeconfig

HOME, HOST = "agentstream-system", "agentstream-redis.agentstream-system.svc"
STREAM = a_stream(producers=["boss", "planner"], signing={"policy": "Require"})
GROUP = a_group()


class Objects:
    """What the API server has, by path; what somebody may not read is None."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.found: dict[str, Any] = {}

    async def get(self, request: web.Request) -> web.Response:
        if request.path not in self.found:
            return web.json_response({"message": f"{request.path} not found"}, status=404)
        found = self.found[request.path]
        return web.json_response(found or {"message": "it is forbidden"}, status=200 if found else 403)


@pytest.fixture
async def op(server: Server) -> AsyncIterator[Operator]:
    async with operator(server.url) as op:
        await op.put(STREAM, GROUP)
        yield op


def a_secret(op: Operator, agent: str, uri: str = f"redis://{HOST}:6379") -> dict[str, Any]:
    return secret(op.cluster.secrets["team", agent], (), ServerAddress(uri, HOST, 6379), "agentstream")


@pytest.fixture
async def objects(op: Operator, server: Server) -> AsyncIterator[Objects]:
    cluster = Cluster(pods=[a_pod("redis-0", READY)], far=server.port)
    objects = Objects(cluster)
    ours, secrets = "/apis/agentstream.dev/v1alpha1/namespaces/team", "/api/v1/namespaces/team/secrets"
    service = {"selector": {"app": "redis"}, "ports": [{"port": 9121}, {"port": 6379}]}
    objects.found = {
        f"{ours}/agentstreams/tasks": STREAM.as_manifest(),
        f"{ours}/consumergroups/coder": GROUP.as_manifest(),
        f"{secrets}/agentstream-boss": a_secret(op, "boss"),
        f"{secrets}/agentstream-planner": None,
        f"/api/v1/namespaces/{HOME}/services/agentstream-redis": {
            "metadata": {"namespace": HOME, "name": "agentstream-redis"},
            "spec": service,
        },
    }
    app = web.Application()
    app.router.add_get(f"/api/v1/namespaces/{HOME}/pods/{{name}}/portforward", cluster.forward)
    app.router.add_get("/api/v1/namespaces/{namespace}/pods", cluster.lists)
    app.router.add_get("/{path:.*}", objects.get)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    cluster.port = runner.addresses[0][1]
    yield objects
    await runner.cleanup()


async def send(folder: Path, objects: Objects, *arguments: str) -> tuple[int, str, str]:
    """Runs it for the namespace `team`, in a folder without an `agentstream dev`."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("AGENTSTREAM_", "KUBERNETES_"))}
    file = kubeconfig(folder, objects.cluster, token="user-token")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "agentstream_operator", "send", "-n", "team", *arguments),
        cwd=folder,
        env=environment | {"KUBECONFIG": str(file)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_a_message_is_sent_and_signed_as_the_agent_and_its_answer_printed(
    op: Operator, objects: Objects, server: Server, admin: redis.Redis, tmp_path: Path
) -> None:
    credentials = op.cluster.secrets["team", "coder"]
    source = Endpoint(server.url, credentials.username, credentials.password)
    coder = Settings(namespace="team", agent="coder", source=source, pod="p", signing=signing(credentials))

    async def answer() -> None:
        async with Agent.connect(coder) as agent:
            async for delivery in agent.stream_consume("tasks"):
                async with delivery:
                    await delivery.reply({"twice": 2 * delivery.message.payload["n"]})

    answering = asyncio.create_task(answer())
    try:
        found = await send(tmp_path, objects, "coder", '{"n": 21}', "--as", "boss", "--wait")
    finally:
        answering.cancel()
        await asyncio.gather(answering, return_exceptions=True)
    assert found == (0, '{"twice": 42}\n', "")
    assert set(objects.cluster.forwarded) == {"redis-0:6379"}
    code, out, err = await send(tmp_path, objects, "tasks", '{"n": 1}', "--as", "boss", "-o", "json")
    assert (code, err) == (0, "")
    [(entry, fields)] = admin.xrevrange(KEY, count=1)
    assert (entry, json.loads(fields["m"])["from"]) == (json.loads(out)["entry"], "boss")
    assert fields["s"]
    # no password is left behind
    assert names_in(tmp_path) == ["kubeconfig"]


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def signing(credentials: Any) -> dict[str, Any]:
    from agentstream.protocol.signatures import decode_signing  # noqa: PLC0415

    return {stream: decode_signing(text) for stream, text in credentials.signing.items()}


async def test_whoever_may_not_is_told_in_a_line_what_to_do(
    op: Operator, objects: Objects, tmp_path: Path
) -> None:
    planner, boss = (f"/api/v1/namespaces/team/secrets/agentstream-{name}" for name in ("planner", "boss"))
    service = f"/api/v1/namespaces/{HOME}/services/agentstream-redis"

    async def refusal(sender: str) -> str:
        code, out, err = await send(tmp_path, objects, "coder", "{}", "--as", sender, "--timeout", "1s")
        assert (code in {1, 3}, out, len(err.splitlines())) == (True, "", 1), err
        return err

    assert await refusal("planner") == (
        "error: you may not read Secret team/agentstream-planner, with which planner sends: have that "
        "allowed (get on it), or send from a pod that mounts the agent's Secret\n"
    )
    del objects.found[planner]
    assert "there is no Secret team/agentstream-planner" in await refusal("planner")
    objects.found[planner] = {"metadata": {}, "data": {"uri": base64.b64encode(b"\xff").decode()}}
    assert "Secret team/agentstream-planner is damaged" in await refusal("planner")
    objects.cluster.may_forward = False
    assert (await refusal("boss")).endswith(
        "(create on pods/portforward), or send from a pod that mounts the agent's Secret\n"
    )
    objects.cluster.pods = []
    assert "no pod of Redis or Valkey is ready" in await refusal("boss")
    del objects.found[service]
    assert f"there is no Service {HOME}/agentstream-redis" in await refusal("boss")
    objects.found[boss] = a_secret(op, "boss", f"rediss://{HOST}:6379")
    assert f"{HOST} is reached by TLS under this name" in await refusal("boss")


async def test_a_server_outside_of_the_cluster_needs_no_forwarding(
    op: Operator, objects: Objects, server: Server, tmp_path: Path
) -> None:
    objects.found["/api/v1/namespaces/team/secrets/agentstream-boss"] = a_secret(op, "boss", server.url)
    code, _, err = await send(tmp_path, objects, "team/coder", "{}", "--as", "boss")
    assert (code, err, objects.cluster.forwarded) == (0, "", [])
