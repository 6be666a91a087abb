"""The way to the queue server of a cluster: its Service, a port of its pod, the caller's token.

What answers for the API server lists objects and forwards ports as a kubelet does: the frames that it speaks
are those of kubectl's own `port-forward` over WebSockets, protocol `v4.channel.k8s.io`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import ssl
import struct
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import WSMsgType, web

from support.apiserver import write_certificate

LAG = {"at": "2026-12-01T09:00:00Z", "server": {"reachable": True}, "streams": [], "groups": []}
LABELS = {"app.kubernetes.io/part-of": "agentstream", "app.kubernetes.io/component": "queue-server"}
READY = {"conditions": [{"type": "Ready", "status": "True"}]}


def a_service(
    namespace: str = "agentstream-system", name: str = "agentstream-queue-server"
) -> dict[str, Any]:
    spec = {"selector": {"app": "q"}, "ports": [{"port": 443, "targetPort": "https"}]}
    return {"metadata": {"namespace": namespace, "name": name, "labels": LABELS}, "spec": spec}


def a_pod(name: str, status: dict[str, Any], **metadata: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "namespace": "agentstream-system", **metadata},
        "spec": {"containers": [{"ports": [{"name": "https", "containerPort": 8443}]}]},
        "status": status,
    }


@dataclass
class Cluster:
    """An API server of a few objects, and the queue server that its one ready pod runs."""

    services: list[dict[str, Any]] = field(default_factory=lambda: [a_service()])
    pods: list[dict[str, Any]] = field(
        default_factory=lambda: [
            a_pod("ends", READY, deletionTimestamp="2026-12-01T09:00:00Z"),
            a_pod("starts", {}),
            a_pod("works", READY),
        ]
    )
    port: int = 0
    far: int = 0
    may_forward: bool = True
    may_mint: bool = True
    forwarded: list[str] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    accepts: set[str] = field(default_factory=lambda: {"user-token"})

    async def lists(self, request: web.Request) -> web.Response:
        namespace = request.match_info.get("namespace")
        every = self.services if request.path.endswith("services") else self.pods
        items = [each for each in every if namespace in {None, each["metadata"]["namespace"]}]
        return web.json_response({"kind": "List", "metadata": {"resourceVersion": "1"}, "items": items})

    async def mint(self, request: web.Request) -> web.Response:
        if not self.may_mint:
            return web.json_response({"message": "serviceaccounts is forbidden"}, status=403)
        self.requests.append(("mint", request.match_info["name"]))
        self.accepts.add("minted")
        return web.json_response({"status": {"token": "minted"}}, status=201)

    async def forward(self, request: web.Request) -> web.StreamResponse:
        if not self.may_forward:
            return web.json_response({"message": "pods/portforward is forbidden"}, status=403)
        self.forwarded.append(f"{request.match_info['name']}:{request.query['ports']}")
        socket = web.WebSocketResponse(protocols=("v4.channel.k8s.io",))
        await socket.prepare(request)
        reader, writer = await asyncio.open_connection("127.0.0.1", self.far)
        number = struct.pack("<H", 8443)
        await socket.send_bytes(b"\x00" + number)
        await socket.send_bytes(b"\x01" + number)

        async def back() -> None:
            while data := await reader.read(1000):
                await socket.send_bytes(b"\x00" + data)
            await socket.close()

        task = asyncio.create_task(back())
        async for message in socket:
            if message.type is WSMsgType.BINARY:
                assert message.data[0] == 0
                writer.write(message.data[1:])
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        writer.close()
        return socket

    async def lag(self, request: web.Request) -> web.Response:
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        self.tokens.append(token)
        if token not in self.accepts:
            problem = {"title": "T", "status": 401, "detail": "the token has expired", "remedy": ""}
            return web.json_response(problem, status=401)
        return web.json_response(LAG)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    cluster = Cluster()
    near, far = web.Application(), web.Application()
    for kind in ("services", "pods"):
        near.router.add_get(f"/api/v1/{kind}", cluster.lists)
        near.router.add_get(f"/api/v1/namespaces/{{namespace}}/{kind}", cluster.lists)
    one = "/api/v1/namespaces/agentstream-system"
    near.router.add_get(f"{one}/pods/{{name}}/portforward", cluster.forward)
    near.router.add_post(f"{one}/serviceaccounts/{{name}}/token", cluster.mint)
    far.router.add_get("/queue/lag", cluster.lag)
    write_certificate(tmp_path / "tls", "some.name")
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(tmp_path / "tls" / "tls.crt", tmp_path / "tls" / "tls.key")
    async with contextlib.AsyncExitStack() as stack:
        ports = []
        for app, context in ((near, None), (far, tls)):
            runner = web.AppRunner(app, shutdown_timeout=1)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
            await site.start()
            ports.append(runner.addresses[0][1])
        cluster.port, cluster.far = ports
        yield cluster


def kubeconfig(folder: Path, cluster: Cluster, **user: Any) -> Path:
    contexts = [
        {"name": name, "context": {"cluster": "c", "user": "u", "namespace": f"of-{name}"}}
        for name in ("first", "second")
    ]
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{cluster.port}"}}],
        "users": [{"name": "u", "user": user}],
        "contexts": contexts,
        "current-context": "first",
    }
    (folder / "kubeconfig").write_text(yaml.safe_dump(content))
    return folder / "kubeconfig"


async def agentstream(file: Path, *arguments: str) -> tuple[int, str, str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("AGENTSTREAM_", "KUBERNETES_"))}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "agentstream_operator", "lag", *arguments),
        cwd=file.parent,
        env=environment | {"KUBECONFIG": str(file)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_a_ready_pod_is_asked_with_the_token_of_the_kubeconfig(
    cluster: Cluster, tmp_path: Path
) -> None:
    code, out, err = await agentstream(kubeconfig(tmp_path, cluster, token="user-token"), "-A", "-o", "json")
    assert (code, err) == (0, "")
    assert json.loads(out)["server"]["reachable"] is True
    assert cluster.forwarded == ["works:8443"]
    assert cluster.tokens == ["user-token"]


async def test_the_context_says_which_namespace_is_meant(cluster: Cluster, tmp_path: Path) -> None:
    file = kubeconfig(tmp_path, cluster, token="user-token")
    code, _, err = await agentstream(file, "coder", "--context", "second")
    assert (code, err) == (1, "error: there is no group of-second/coder: `agentstream lag -A` lists all\n")


async def test_a_token_of_a_plugin_is_asked_for_again_when_it_has_expired(
    cluster: Cluster, tmp_path: Path
) -> None:
    plugin = tmp_path / "plugin"
    counter = tmp_path / "count"
    plugin.write_text(
        f"#!/bin/sh\necho x >> {counter}\nn=$(wc -l < {counter} | tr -d ' ')\n"
        'echo \'{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential",'
        '"status":{"token":"token-\'$n\'"}}\'\n'
    )
    plugin.chmod(0o700)
    cluster.accepts = {"token-2"}
    command = {"apiVersion": "client.authentication.k8s.io/v1", "command": str(plugin)}
    code, _, err = await agentstream(kubeconfig(tmp_path, cluster, exec=command), "-A")
    assert (code, err) == (0, "")
    assert cluster.tokens == ["token-1", "token-2"]


async def test_whoever_has_a_certificate_gets_a_token_of_the_account_for_people(
    cluster: Cluster, tmp_path: Path
) -> None:
    file = kubeconfig(tmp_path, cluster)
    assert (await agentstream(file, "-A"))[0] == 0
    assert cluster.requests == [("mint", "agentstream-cli")]
    assert cluster.tokens == ["minted"]
    cluster.may_mint = False
    code, _, err = await agentstream(file, "-A")
    assert (code, len(err.splitlines())) == (3, 1)
    assert "have it allowed, create on serviceaccounts/token (serviceaccounts is forbidden)" in err


async def test_a_token_that_nobody_accepts_is_a_line(cluster: Cluster, tmp_path: Path) -> None:
    code, _, err = await agentstream(kubeconfig(tmp_path, cluster, token="wrong"), "-A")
    assert code == 3
    assert err == (
        "error: the API does not know who asks: the token has expired: is the token valid? "
        "`kubectl auth whoami`, or --token-file for --api\n"
    )


async def test_a_service_in_any_other_namespace_gets_no_token(cluster: Cluster, tmp_path: Path) -> None:
    cluster.services = [a_service("mallory")]
    file = kubeconfig(tmp_path, cluster, token="user-token")
    code, _, err = await agentstream(file, "-A")
    assert (code, cluster.tokens, cluster.forwarded) == (3, [], [])
    assert err == (
        "error: there is no queue server in namespace agentstream-system, but in mallory: if you trust who "
        "may make Services there, --api-namespace mallory, or set AGENTSTREAM_API_NAMESPACE\n"
    )


async def test_a_service_that_selects_no_pods_leads_to_none(cluster: Cluster, tmp_path: Path) -> None:
    file = kubeconfig(tmp_path, cluster, token="user-token")
    for gone in ("selector", "ports"):
        cluster.services = [a_service()]
        del cluster.services[0]["spec"][gone]
        code, _, err = await agentstream(file, "-A")
        assert (code, cluster.tokens, cluster.forwarded) == (3, [], [])
        assert err == (
            "error: Service agentstream-system/agentstream-queue-server does not select pods: use --api URL\n"
        )


async def test_what_is_missing_is_said_in_a_line(cluster: Cluster, tmp_path: Path) -> None:
    file = kubeconfig(tmp_path, cluster, token="user-token")
    cluster.may_forward = False
    assert (await agentstream(file, "-A"))[2] == (
        "error: you may not forward ports to pod agentstream-system/works: have that allowed "
        "(create on pods/portforward), or use --api URL\n"
    )
    cluster.pods = cluster.pods[:2]
    assert (await agentstream(file, "-A"))[2] == (
        "error: no pod of the queue server is ready: kubectl -n agentstream-system get pods -l app=q\n"
    )
    cluster.services.append(a_service(name="other-queue-server"))
    assert "there are several queue servers in agentstream-system" in (await agentstream(file, "-A"))[2]
    cluster.services = []
    code, _, err = await agentstream(file, "-A", "--api-namespace", "x")
    assert code == 3
    assert err == (
        "error: there is no queue server in namespace x: name its namespace with --api-namespace, or install "
        "the chart with queueServer.enabled=true\n"
    )


async def test_an_api_server_that_is_away_is_a_line(cluster: Cluster, tmp_path: Path) -> None:
    file = kubeconfig(tmp_path, cluster, token="user-token")
    file.write_text(file.read_text().replace(str(cluster.port), "9"))
    code, _, err = await agentstream(file, "-A")
    assert (code, len(err.splitlines())) == (3, 1)
    assert err.startswith("error: the API server does not answer: ")
