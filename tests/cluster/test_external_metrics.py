"""The metrics server behind a real API server: who may ask what, and what is answered."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import re
import socket
import ssl
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.team import Team
from support.apiserver import FRONT_PROXY, ApiServer, NoProgramsError, private_server, write_certificate
from support.kubectl import KubectlError
from support.metrics_server import APISERVICE, ROOT, MetricsServer, value_of
from support.servers import Build, Server, builds
from support.waiting import until
from unit.resources.manifests import a_group, a_stream

HOME, TEAM = "metrics", "team"
METRIC = "agentstream-backlog"


@pytest.fixture(scope="module")
def api() -> Iterator[ApiServer]:
    """An API server of this module's own: there can be only one metrics server for it."""
    try:
        with private_server() as server:
            server.create_namespace(HOME)
            server.create_namespace(TEAM)
            yield server
    except NoProgramsError as missing:
        pytest.skip(f"NO API SERVER, NOTHING OF KUBERNETES IS TESTED: {missing}")


@pytest.fixture(scope="module")
def redis_server(
    running_servers: dict[Build, Server], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """The server that the metrics server reads; a test may start it again."""
    server = Server(builds()[0], tmp_path_factory.mktemp("redis"))
    server.start()
    # it outlives each test, and is none that others use
    shared = Build("external-metrics", server.build.binary)
    running_servers[shared] = server
    yield server
    del running_servers[shared]
    server.kill()


@pytest.fixture(scope="module")
def running(
    api: ApiServer, redis_server: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MetricsServer]:
    metrics = MetricsServer(api, HOME, redis_server.url, tmp_path_factory.mktemp("metrics"))
    metrics.install()
    metrics.start()
    yield metrics
    assert metrics.stop() == 0, metrics.log
    assert "Traceback" not in metrics.log
    assert " ERROR " not in metrics.log


@pytest.fixture
async def metrics(running: MetricsServer) -> MetricsServer:
    """The metrics server of all tests here, at work."""
    await running.ready()
    return running


@pytest.fixture
def team(api: ApiServer) -> Iterator[Team]:
    """A namespace; what is declared there goes with the test."""
    team = Team(api, TEAM)
    yield team
    for kind in ("ConsumerGroup", "AgentStream"):
        for found in team.list(kind):
            team.delete(kind, found["metadata"]["name"])


def path_of(metric: str = METRIC, namespace: str = TEAM, **wanted: str) -> str:
    selector = ",".join(f"{key}={value}" for key, value in wanted.items())
    query = f"?{urllib.parse.urlencode({'labelSelector': selector})}" if selector else ""
    return f"{ROOT}/namespaces/{namespace}/{metric}{query}"


def on_server(redis_server: Server, group: str, waiting: int) -> None:
    """Puts a group on the server, with messages that wait for it."""
    with redis_server.admin() as client:
        key = f"{{{TEAM}.tasks}}"
        client.xgroup_create(key, group, "$", mkstream=True)
        for _ in range(waiting):
            client.xadd(key, {"m": "{}"})


async def known(metrics: MetricsServer, count: int) -> None:
    """Waits until it knows so many groups."""

    def knows() -> bool:
        return f"\nagentstream_external_groups {float(count)}\n" in metrics.probe("/metrics")[1]

    await until(knows)


async def test_a_backlog_is_answered_through_the_api_server(
    api: ApiServer, metrics: MetricsServer, team: Team, redis_server: Server
) -> None:
    team.create(a_stream(), a_group("coder"), a_group("idle"))
    await known(metrics, 2)
    on_server(redis_server, "coder", 3)
    raw = api.kubectl(TEAM)("get", "--raw", path_of(group="coder", stream="tasks"))
    answer = json.loads(raw)
    assert answer["kind"] == "ExternalMetricValueList"
    (item,) = answer["items"]
    assert (item["metricName"], item["value"]) == (METRIC, "3")
    assert item["metricLabels"] == {"group": "coder", "stream": "tasks"}
    # what is taken and not settled still counts
    with redis_server.admin() as client:
        client.xreadgroup("coder", "c", {f"{{{TEAM}.tasks}}": ">"}, count=2)
        client.xack(
            f"{{{TEAM}.tasks}}",
            "coder",
            client.xpending_range(f"{{{TEAM}.tasks}}", "coder", "-", "+", 1)[0]["message_id"],
        )
    await until(lambda: value_of(api.call("GET", path_of(group="coder"))[1]) == ["2"])


async def test_what_is_not_there_is_not_found_and_what_is_not_known_has_no_value(
    api: ApiServer, metrics: MetricsServer, team: Team, redis_server: Server
) -> None:
    team.create(a_stream("other"), a_group("lost", streamRef={"name": "other"}))
    await known(metrics, 1)
    for path in (path_of("other-metric", group="lost"), path_of(group="nobody"), path_of(namespace="empty")):
        code, answer = api.call("GET", path)
        assert (code, answer["kind"], answer["reason"]) == (404, "Status", "NotFound"), path
    code, answer = api.call("GET", path_of(group="lost"))
    assert (code, answer["kind"], answer["reason"]) == (503, "Status", "ServiceUnavailable")
    code, answer = api.call("GET", path_of() + "?labelSelector=%21%21")
    assert (code, answer["reason"]) == (400, "BadRequest")


async def test_while_redis_is_away_there_is_no_value_and_then_there_is(
    api: ApiServer, metrics: MetricsServer, team: Team, redis_server: Server
) -> None:
    group = "away"
    team.create(a_stream(), a_group(group))
    await known(metrics, 1)
    on_server(redis_server, group, 1)
    await until(lambda: api.call("GET", path_of(group=group))[0] == 200)
    redis_server.kill()
    await until(lambda: api.call("GET", path_of(group=group))[0] == 503)
    assert metrics.probe("/readyz")[0] == 200
    redis_server.start()
    on_server(redis_server, group, 5)
    await until(lambda: value_of_or_none(api.call("GET", path_of(group=group))) == ["5"], timeout=20)


def value_of_or_none(answer: tuple[int, dict[str, Any]]) -> list[str] | None:
    return value_of(answer[1]) if answer[0] == 200 else None


async def test_discovery_is_what_clients_expect(api: ApiServer, metrics: MetricsServer) -> None:
    code, found = api.call("GET", ROOT)
    assert (code, found["kind"], found["groupVersion"]) == (
        200,
        "APIResourceList",
        "external.metrics.k8s.io/v1beta1",
    )
    assert api.call("GET", "/apis/external.metrics.k8s.io")[1]["name"] == "external.metrics.k8s.io"
    kubectl = api.kubectl(TEAM)
    # the API server asks once a minute
    resources = ("api-resources", "--api-group=external.metrics.k8s.io")
    await until(lambda: "externalmetrics" in kubectl(*resources), timeout=90)
    assert "external.metrics.k8s.io/v1beta1" in kubectl("api-versions")


async def test_callers_need_the_right_to_list_the_metric(
    api: ApiServer, metrics: MetricsServer, team: Team, redis_server: Server, tmp_path: Path
) -> None:
    team.create(a_stream(), a_group("guarded"))
    await known(metrics, 1)
    kubectl = api.kubectl(TEAM)
    kubectl("create", "serviceaccount", "reader")
    mine = api.kubectl(TEAM, api.access_of(TEAM, "reader", tmp_path / "reader"))
    with pytest.raises(KubectlError, match="cannot list resource"):
        mine("get", "--raw", path_of(group="guarded"))
    # the right as the chart gives it, to somebody else
    kubectl(
        "create",
        "rolebinding",
        "reader",
        "--clusterrole=agentstream-external",
        f"--serviceaccount={TEAM}:reader",
    )

    def allowed() -> bool:
        # refused for five seconds more; then the group is not on the server
        return "backlog unknown" in mine.fails("get", "--raw", path_of(group="guarded"))

    await until(allowed, timeout=20)
    assert 'outcome="allowed"' in metrics.probe("/metrics")[1]


async def test_only_a_front_proxy_is_believed(metrics: MetricsServer, api: ApiServer, tmp_path: Path) -> None:
    proxy = api.directory / "front-proxy"
    admin = {"X-Remote-User": "admin", "X-Remote-Group": "system:masters"}
    assert direct(metrics, metrics.client(proxy), admin)[0] == 200
    # who it speaks for, it must say
    assert direct(metrics, metrics.client(proxy), {})[0] == 401
    code, answer = direct(metrics, metrics.client(), admin)
    assert (code, answer["kind"], answer["reason"]) == (401, "Status", "Unauthorized")
    # of another authority, whatever the name
    write_certificate(tmp_path / "forged", common_name=FRONT_PROXY)
    with pytest.raises((ssl.SSLError, ConnectionError)):
        direct(metrics, metrics.client(tmp_path / "forged"), admin)


async def test_a_certificate_of_the_authority_with_another_name_is_not_believed(
    api: ApiServer, metrics: MetricsServer, own_front_proxy: Path
) -> None:
    admin = {"X-Remote-User": "admin", "X-Remote-Group": "system:masters"}
    assert direct(metrics, metrics.client(own_front_proxy), admin)[0] == 401


@pytest.fixture
def own_front_proxy(api: ApiServer, tmp_path: Path) -> Path:
    """A certificate that the front proxies' authority has made for somebody else."""
    write_certificate(tmp_path / "other", common_name="somebody", authority=api.front_proxies)
    return tmp_path / "other"


async def test_a_new_certificate_is_shown_without_a_restart(metrics: MetricsServer, api: ApiServer) -> None:
    before = certificate(metrics)
    metrics.renew(metrics.authority)
    await until(lambda: certificate(metrics) != before)
    assert api.call("GET", ROOT)[0] == 200


async def test_it_asks_for_nothing_that_it_has_no_right_to(metrics: MetricsServer, api: ApiServer) -> None:
    asked = api.requests_since(0, f"system:serviceaccount:{HOME}:agentstream-metrics-server")
    assert {request.resource for request in asked} >= {"agentstreams", "consumergroups", "configmaps"}
    assert [str(request) for request in asked if request.forbidden] == []


async def test_the_aggregator_finds_no_fault(metrics: MetricsServer, api: ApiServer) -> None:
    shown = api.kubectl(HOME)("get", "apiservice", APISERVICE)
    assert "True" in shown


def memory(metrics: MetricsServer, what: str = "VmRSS") -> int:
    """Its memory now, or the most that it had (`VmHWM`), in MiB."""
    assert metrics.process is not None
    status = Path(f"/proc/{metrics.process.pid}/status").read_text()
    return int(re.findall(rf"{what}:\s+(\d+) kB", status)[0]) // 1024


async def test_connections_of_strangers_take_little_memory_and_keep_the_api_server_from_nothing(
    api: ApiServer, metrics: MetricsServer, team: Team, redis_server: Server
) -> None:
    team.create(a_stream(), a_group("busy"))
    on_server(redis_server, "busy", 3)
    await until(lambda: api.call("GET", path_of(group="busy"))[0] == 200)
    before, context, held = memory(metrics), metrics.client(), []

    def flood() -> None:
        for _ in range(1_500):
            with contextlib.suppress(OSError):
                plain = socket.create_connection(("127.0.0.1", metrics.port), timeout=20)
                held.append(context.wrap_socket(plain, server_hostname="localhost"))
                held[-1].sendall(b"GET /apis HTTP/1.1\r\nHost: local")

    flooding = asyncio.create_task(asyncio.to_thread(flood))
    try:
        while not flooding.done():
            code, answer = await asyncio.to_thread(api.call, "GET", path_of(group="busy"))
            assert (code, value_of(answer)) == (200, ["3"])
        await flooding
        assert len(held) > 1_400
        # 460 MiB without bounds; the limit of the chart is 384 MiB
        assert memory(metrics) - before < 120
        await until(lambda: metrics.available() == "True")
        assert "too many connections without a client certificate" in metrics.log
    finally:
        for each in held:
            each.close()


async def test_deep_and_large_objects_keep_it_from_nothing(
    api: ApiServer, metrics: MetricsServer, team: Team, redis_server: Server, tmp_path: Path
) -> None:
    another = MetricsServer(api, HOME, redis_server.url, tmp_path)
    parts = {"deep-list": "[" * 5_000 + "]" * 5_000, "deep-map": '{"a":' * 3_000 + "1" + "}" * 3_000}
    parts |= {f"large-{number}": f"[{'{},' * 330_000}{{}}]" for number in range(10)}
    for name, part in parts.items():
        stream = json.dumps(a_stream(name, contracts=[{"type": "event", "schema": "?"}]))
        (tmp_path / f"{name}.json").write_text(stream.replace('"?"', f'{{"type": "object", "x": {part}}}'))
        team.kubectl("create", "--validate=false", f"--filename={tmp_path / name}.json")
    try:
        team.create(a_stream(), a_group("among"))
        on_server(redis_server, "among", 3)
        await until(lambda: api.call("GET", path_of(group="among"))[0] == 200)
        another.start()
        await until(lambda: another.probe("/readyz")[0] == 200, timeout=60)
        admin = {"X-Remote-User": "admin", "X-Remote-Group": "system:masters"}
        proxy = another.client(api.directory / "front-proxy")
        code, answer = direct(another, proxy, admin, path_of(group="among"))
        assert (code, value_of(answer)) == (200, ["3"])
        assert "is nested more than 64 levels deep" in another.log
        assert memory(another, "VmHWM") < 300
    finally:
        another.kill()
        for name in parts:
            team.delete("AgentStream", name)


def certificate(metrics: MetricsServer) -> bytes:
    """What it shows of itself."""
    return ssl.get_server_certificate(("127.0.0.1", metrics.port)).encode()


def direct(
    metrics: MetricsServer, context: ssl.SSLContext, headers: dict[str, str], path: str = ROOT
) -> tuple[int, Any]:
    """A request past the API server."""
    connection = http.client.HTTPSConnection("localhost", metrics.port, context=context, timeout=10)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def run(metrics: MetricsServer, *arguments: str, **environment: str) -> tuple[int, str]:
    """Runs the command to its end. Returns its exit code, and what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "agentstream_operator", "metrics-server", *arguments],
        env=metrics.environment | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("environment", "code", "said"),
    [
        (
            {"AGENTSTREAM_REDIS_URL_FILE": "/dev/null"},
            2,
            "error: --redis-url-file: not a redis:// or rediss:// URL",
        ),
        ({"KUBECONFIG": "/nonexistent"}, 2, "error: no cluster: run it in a pod, or set KUBECONFIG"),
        ({}, 1, "error: cannot listen on port "),
    ],
    ids=["wrong option", "no cluster", "port taken"],
)
async def test_what_hinders_it_is_one_line(
    metrics: MetricsServer, environment: dict[str, str], code: int, said: str
) -> None:
    found, text = await asyncio.to_thread(run, metrics, **environment)
    assert found == code
    assert text.startswith(said), text
    assert text.count("\n") == 1
