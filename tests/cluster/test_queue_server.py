"""The queue server and a real API server: who is known, who may what, and what is written in whose name."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.apiserver import ApiServer, NoProgramsError, private_server, write_certificate
from support.queue_server import QueueServer, bound, token_of
from support.servers import Build, Server, builds
from support.waiting import until
from unit.resources.manifests import a_group, a_stream

HOME, TEAM, OTHER = "queue", "team", "other"
VIEW, EDIT = "agentstream-view", "agentstream-edit"
ROLES: dict[str, tuple[str, ...]] = {"nobody": (), "viewer": (VIEW,), "editor": (VIEW, EDIT)}
ROLES["admin"] = ("cluster-admin",)
"""Accounts, and their roles: of the chart, as the cluster's role edit has both; an administrator may all."""

REPLAY = {"namespace": TEAM, "groupRef": {"name": "coder"}, "from": {"source": "DeadLetters"}}
PROXY = "gateway"


@pytest.fixture(scope="module")
def api() -> Iterator[ApiServer]:
    try:
        with private_server() as server:
            yield server
    except NoProgramsError as missing:
        pytest.skip(f"NO API SERVER, NOTHING OF KUBERNETES IS TESTED: {missing}")


@pytest.fixture(scope="module")
def redis_server(
    running_servers: dict[Build, Server], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    server = Server(builds()[0], tmp_path_factory.mktemp("redis"))
    server.start()
    shared = Build("queue-server", server.build.binary)
    running_servers[shared] = server
    yield server
    del running_servers[shared]
    server.kill()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates of a trusted proxy, of another client of its CA, and of one of another CA."""
    directory = tmp_path_factory.mktemp("proxy")
    authority = write_certificate(directory / "proxy", common_name=PROXY)
    write_certificate(directory / "other", common_name="other", authority=authority)
    write_certificate(directory / "stranger", common_name=PROXY)
    authority.cert_pem.write_to_path(directory / "ca.crt")
    return directory


def installed(api: ApiServer, redis_server: Server, directory: Path) -> QueueServer:
    """A queue server that may be started; its callers, and what they see, are there."""
    for name in (HOME, TEAM, OTHER):
        api.create_namespace(name)
    queue = QueueServer(api, HOME, redis_server.url, directory)
    queue.install()
    for account, roles in ROLES.items():
        api.kubectl(TEAM).apply(*bound(TEAM, account, *roles))
    for namespace in (TEAM, OTHER):
        for found in (a_stream(), a_group("coder")):
            found["metadata"]["namespace"] = namespace
            api.kubectl(namespace).apply(found)
    return queue


@pytest.fixture(scope="module")
def running(
    api: ApiServer, redis_server: Server, certificates: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[QueueServer]:
    queue = installed(api, redis_server, tmp_path_factory.mktemp("queue"))
    queue.start("--proxy-ca-file", str(certificates / "ca.crt"), "--proxy-name", PROXY)
    yield queue
    assert queue.stop() == 0, queue.log.read_text()
    assert "Traceback" not in queue.log.read_text()


@pytest.fixture
async def queue(running: QueueServer) -> QueueServer:
    await running.ready()
    return running


async def calls(queue: QueueServer, token: str) -> list[tuple[str, str, dict[str, Any]]]:
    """Every call of its description, with its rights."""
    async with queue.client(token) as http:
        paths = (await http.get("/openapi.json")).json()["paths"]
    return [(method, path, found) for path, methods in paths.items() for method, found in methods.items()]


@pytest.mark.parametrize("role", ROLES)
async def test_every_call_is_answered_to_those_who_may(api: ApiServer, queue: QueueServer, role: str) -> None:
    token = token_of(api, TEAM, role)
    may = {
        "nobody": set(),
        "viewer": {"get consumergroups/lag", "get streamreplays", "list streamreplays"},
    }
    body = {"post": REPLAY | {"dryRun": True}, "patch": {"suspend": True}}
    for method, path, found in await calls(queue, token):
        names = {"namespace": TEAM, "group": "coder", "stream": "tasks", "name": "none"}
        target = path.format_map({**names, "entry": "1-0", "correlation": "c", "letter": "1-0"})
        query = "?view=lag" if path == "/events" else ""
        async with queue.client(token) as http, http.stream(
            method, target + query, json=body.get(method)
        ) as reply:  # fmt: skip
            status = reply.status_code
        # a view needs the one of its rights that it shows
        needs = found["x-agentstream-access"][:1] if path == "/events" else found["x-agentstream-access"]
        allowed = role in {"editor", "admin"} or may[role].issuperset(needs)
        assert (status != 403) == allowed, (role, method, path, status)
        assert status != 401


async def test_a_replay_is_created_in_the_name_of_who_asked_and_can_be_held_and_ended(
    api: ApiServer, queue: QueueServer
) -> None:
    async with queue.client(token_of(api, TEAM, "editor")) as http:
        started = await http.post("/queue/replay", json=REPLAY, headers={"Idempotency-Key": "inc-7"})
        assert started.status_code == 202, started.text
        path = f"/apis/agentstream.dev/v1alpha1/namespaces/{TEAM}/streamreplays/inc-7"
        created = api.expect("GET", path)
        assert created["metadata"]["annotations"] == {
            "agentstream.dev/requested-by": f"system:serviceaccount:{TEAM}:editor"
        }
        again = await http.post("/queue/replay", json=REPLAY, headers={"Idempotency-Key": "inc-7"})
        assert again.json()["uid"] == started.json()["uid"]
        other = await http.post(
            "/queue/replay", json=REPLAY | {"limit": 1}, headers={"Idempotency-Key": "inc-7"}
        )
        assert other.status_code == 409
        held_at = f"/queue/replays/{TEAM}/inc-7"
        held = await http.patch(held_at, json={"suspend": True})
        assert held.json()["spec"]["suspend"] is True
        more = {"rate": 5, "suspend": None}
        changed = await http.patch(held_at, json=more, params={"reason": "INC-8\nover"})
        assert changed.json()["spec"]["rate"] == 5
        listed = await http.get("/queue/replays", params={"namespace": TEAM})
        assert [each["name"] for each in listed.json()["replays"]] == ["inc-7"]
        ended = await http.delete(held_at, params={"reason": "it is mended"})
        assert ended.status_code == 204
        editor = f"system:serviceaccount:{TEAM}:editor"
        events = api.expect("GET", f"/api/v1/namespaces/{TEAM}/events")["items"]
        assert {
            (each["reason"], each["message"]) for each in events if each["involvedObject"]["name"] == "inc-7"
        } == {
            ("ReplayChanged", f'{{"suspend":true}} changed by {editor}: no reason given'),
            ("ReplayChanged", f'{{"rate":5,"suspend":null}} changed by {editor}: INC-8\\nover'),
            ("ReplayDeleted", f"deleted by {editor}: it is mended"),
        }
        assert all(each["involvedObject"]["uid"] == created["metadata"]["uid"] for each in events)
        assert (
            f"StreamReplay {TEAM}/inc-7: ReplayDeleted: deleted by {editor}: it is mended"
            in queue.log.read_text()
        )
        assert (await http.get(f"/queue/replays/{TEAM}/inc-7")).status_code == 404


async def test_a_list_shows_what_one_may_see(api: ApiServer, queue: QueueServer) -> None:
    async with queue.client(token_of(api, TEAM, "viewer")) as http:
        found = (await http.get("/queue/lag")).json()
        assert {(g["namespace"], g["known"]) for g in found["groups"]} == {(TEAM, False)}
        assert found["server"]["reachable"]
        assert (await http.get("/queue/lag", params={"namespace": OTHER})).status_code == 403
        unknown = await http.get(f"/queue/lag/{TEAM}/coder")
        assert unknown.status_code == 503


async def test_who_is_not_known_learns_nothing_and_no_token_is_logged(queue: QueueServer) -> None:
    for token in (None, "s3cret.wrong.token"):
        async with queue.client(token) as http:
            reply = await http.get("/queue/lag")
        assert (reply.status_code, reply.headers["content-type"]) == (401, "application/problem+json")
        assert "s3cret" not in reply.text
    assert "s3cret" not in queue.log.read_text()
    assert 'agentstream_token_reviews_total{outcome="unknown"}' in queue.metrics()


async def test_a_trusted_proxy_says_who_asks_and_nobody_else(queue: QueueServer, certificates: Path) -> None:
    as_editor = {
        "X-Remote-User": f"system:serviceaccount:{TEAM}:editor",
        "X-Remote-Group": f"system:serviceaccounts:{TEAM}",
    }
    async with queue.client(None, certificates / "proxy") as http:
        reply = await http.get("/queue/lag", headers=as_editor)
        assert reply.status_code == 200, reply.text
        assert (await http.get("/queue/lag", headers={"X-Remote-User": "stranger"})).status_code == 403
        assert (await http.get("/queue/lag")).status_code == 401
    async with queue.client(None, certificates / "other") as http:
        assert (await http.get("/queue/lag", headers=as_editor)).status_code == 401
    async with queue.client(None) as http:
        assert (await http.get("/queue/lag", headers=as_editor)).status_code == 401
    async with queue.client(None, certificates / "stranger") as http:
        with pytest.raises(httpx.TransportError):
            await http.get("/queue/lag", headers=as_editor)


async def test_a_proxy_whose_ca_is_replaced_is_out_on_the_connection_that_it_has(
    api: ApiServer, redis_server: Server, certificates: Path, tmp_path: Path, running: QueueServer
) -> None:
    del running  # has made the accounts
    queue, authority = QueueServer(api, HOME, redis_server.url, tmp_path), tmp_path / "ca.crt"
    authority.write_bytes((certificates / "ca.crt").read_bytes())
    queue.start("--proxy-ca-file", str(authority), "--proxy-name", PROXY)
    as_editor = {"X-Remote-User": f"system:serviceaccount:{TEAM}:editor"}
    try:
        await queue.ready()
        async with queue.client(None, certificates / "proxy") as http:
            assert (await http.get("/queue/lag", headers=as_editor)).status_code == 200
            write_certificate(tmp_path / "newer", "gateway").cert_pem.write_to_path(authority)

            async def is_out() -> bool:
                # a connection that is never idle for long
                try:
                    return (await http.get("/queue/lag", headers=as_editor)).status_code == 401
                except httpx.TransportError:
                    return True

            await until(is_out, timeout=30)
    finally:
        assert queue.stop() == 0, queue.log.read_text()


@pytest.mark.parametrize("console", ["true", "false"])
async def test_the_console_is_served_unless_it_is_switched_off(
    api: ApiServer, redis_server: Server, tmp_path: Path, running: QueueServer, console: str
) -> None:
    del running  # has made the accounts
    queue = QueueServer(api, HOME, redis_server.url, tmp_path)
    queue.start(env={"AGENTSTREAM_CONSOLE": console})
    try:
        await queue.ready()
        async with queue.client(token_of(api, TEAM, "editor")) as http:
            assert (await http.get("/queue/lag")).status_code == 200
            assert (await http.get("/console")).status_code == (200 if console == "true" else 404)
    finally:
        assert queue.stop() == 0, queue.log.read_text()


async def test_without_the_api_server_everything_is_503_and_no_number_is_invented(
    api: ApiServer, redis_server: Server, tmp_path: Path
) -> None:
    del api  # there are its programs
    with private_server() as server:
        queue = installed(server, redis_server, tmp_path)
        queue.start()
        try:
            await queue.ready()
            await _all_is_503_meanwhile(server, queue)
        finally:
            assert queue.stop() == 0, queue.log.read_text()
    assert "Traceback" not in queue.log.read_text()


async def _all_is_503_meanwhile(server: ApiServer, queue: QueueServer) -> None:
    token = token_of(server, TEAM, "editor")
    async with queue.client(token) as http, queue.client("never.seen") as stranger:

        async def is_answered(status: int) -> bool:
            return (await http.get("/queue/lag")).status_code == status

        assert await is_answered(200)
        server.kill()
        # in the first seconds it is known who asks
        replies = [await http.get("/queue/replays"), await stranger.get("/queue/lag")]
        await until(lambda: is_answered(503), timeout=30)
        paths = ("/queue/lag", f"/queue/lag/{TEAM}/coder", "/events?view=lag")
        replies.extend([await http.get(path) for path in paths])
        replies.append(await http.post("/queue/replay", json=REPLAY))
        replies.append(await http.delete(f"/queue/replays/{TEAM}/none"))
        for reply in replies:
            assert (reply.status_code, reply.headers["retry-after"]) == (503, "5"), reply.text
            assert set(reply.json()) == {"type", "title", "status", "detail", "remedy", "errors"}
            assert "try again" in reply.json()["remedy"]
            assert token not in reply.text
        server.start()
        await until(lambda: is_answered(200), timeout=60)


async def test_a_token_that_was_revoked_counts_for_seconds_only(api: ApiServer, queue: QueueServer) -> None:
    api.kubectl(TEAM).apply(*bound(TEAM, "leaver", VIEW))
    token = token_of(api, TEAM, "leaver")
    async with queue.client(token) as http:
        assert (await http.get("/queue/lag")).status_code == 200
        api.expect("DELETE", f"/api/v1/namespaces/{TEAM}/serviceaccounts/leaver")

        async def is_out() -> bool:
            return (await http.get("/queue/lag")).status_code == 401

        await until(is_out, timeout=30)


async def test_a_flood_of_wrong_tokens_keeps_nobody_out_who_was_known(
    api: ApiServer, queue: QueueServer
) -> None:
    before = reviews(queue)
    async with queue.client(token_of(api, TEAM, "viewer")) as known, queue.client(None) as stranger:
        assert (await known.get("/queue/lag")).status_code == 200

        async def guess(number: int) -> int:
            headers = {"Authorization": f"Bearer wrong-{number}"}
            return (await stranger.get("/queue/lag", headers=headers)).status_code

        statuses = Counter[int]()
        for part in range(10):
            statuses.update(await asyncio.gather(*(guess(100 * part + n) for n in range(100))))
            assert (await known.get("/queue/lag")).status_code == 200
    assert statuses.keys() <= {401, 503}
    assert statuses[503] > 500
    assert reviews(queue) - before < 500


def reviews(queue: QueueServer) -> float:
    """TokenReviews so far that found nobody."""
    found = re.search(r'agentstream_token_reviews_total{outcome="unknown"} (\S+)', queue.metrics())
    return float(found[1]) if found else 0.0


async def test_a_name_that_is_not_its_own_is_refused(api: ApiServer, queue: QueueServer) -> None:
    async with queue.client(token_of(api, TEAM, "editor")) as http:
        reply = await http.get("/queue/lag", headers={"Host": "evil.example"})
    assert reply.status_code == 403


async def test_the_doctor_learns_over_the_api_what_is_wrong_with_the_server(
    api: ApiServer, queue: QueueServer, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text(token_of(api, TEAM, "viewer"))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "agentstream_operator", "doctor", "-o", "json", "-n", TEAM),
        *("--api", f"https://localhost:{queue.port}", "--token-file", str(tmp_path / "token")),
        cwd=tmp_path,
        env=os.environ | {"SSL_CERT_FILE": str(queue.log.parent / "tls" / "ca.crt")},
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    assert process.returncode == 1
    found = {check["check"]: check["verdict"] for check in json.loads(out)["checks"]}
    fine = {"api", "server", "server version", "eviction", "functions", "clock"}
    assert {check for check, verdict in found.items() if verdict == "ok"} == fine
    # no operator runs, which would bring them into effect
    resources = {f"AgentStream {TEAM}/tasks", f"ConsumerGroup {TEAM}/coder"}
    assert found.keys() - fine == {"memory", "durability", *resources}
