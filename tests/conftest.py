"""Fixtures for all tests: real servers, and the check that a test leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis
from hypothesis import HealthCheck, settings
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from agentstream.testing import Faults
from agentstream.transport.client import Client
from agentstream.transport.endpoint import Endpoint
from agentstream_operator.broker.broker import Broker
from agentstream_operator.plan.actions import CreateGroup, CreateStream
from support.entries import KEY
from support.helm import HELMS, Helm
from support.replays import Replays
from support.servers import Build, Server, builds, children
from support.topology import Topology
from support.tracing import exporter

settings.register_profile(
    "agentstream",
    deadline=None,
    print_blob=True,
    # a change must not fail in CI for an example that it has nothing to do with; others explore
    derandomize=os.environ.get("CI") == "true",
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("agentstream")

# what runs inside the server, and what its access rules mean, is the server's own affair
ON_EVERY_VERSION = ("functions", "broker")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--full",
        action="store_true",
        help="run on every server program and helm version, at full load; else mostly on the newest",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves the older versions of servers and of helm to CI, except where they are the subject."""
    if config.getoption("full"):
        return
    older = {*builds()[1:], *HELMS[1:]}

    def is_left_out(item: pytest.Item) -> bool:
        chosen = item.callspec.params.values() if hasattr(item, "callspec") else ()
        return item.path.parent.name not in ON_EVERY_VERSION and any(
            isinstance(one, Build | Helm) and one in older for one in chosen
        )

    config.hook.pytest_deselected(items=[item for item in items if is_left_out(item)])
    items[:] = [item for item in items if not is_left_out(item)]


@pytest.fixture(scope="session")
def running_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Build, Server]]:
    """One server per build, started when first asked for; ended with the session."""
    servers: dict[Build, Server] = {}
    yield servers
    for server in servers.values():
        server.kill()


@pytest.fixture(params=builds(), ids=lambda build: build.name)
def server(
    request: pytest.FixtureRequest,
    running_servers: dict[Build, Server],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    """A real server with an empty key space, on each build."""
    build: Build = request.param
    if build not in running_servers:
        running_servers[build] = Server(build, tmp_path_factory.mktemp(build.name))
        running_servers[build].start()
    running = running_servers[build]
    running.clear()
    yield running
    stray = running.stray_keys()
    running.clear()
    assert not stray, f"keys left that belong to no stream: {sorted(stray)}"


@pytest.fixture
def private_server(tmp_path: Path) -> Iterator[Server]:
    """A server of its own with an append-only file, which the test may kill and start again."""
    own = Server(builds()[0], tmp_path, persistent=True, options=("--aclfile", str(tmp_path / "users.acl")))
    (tmp_path / "users.acl").touch()
    own.start()
    own.clear()
    yield own
    own.kill()


@pytest.fixture
async def wire(server: Server) -> AsyncIterator[Client]:
    """An open connection as administrator."""
    connection = Client(lambda: Endpoint(server.url), name="test")
    yield connection
    await connection.close()


@pytest.fixture(autouse=True)
async def nothing_left(running_servers: dict[Build, Server]) -> AsyncIterator[None]:
    """Fails a test that leaves a task or a process behind."""
    tasks, processes = asyncio.all_tasks(), children()
    yield
    left = asyncio.all_tasks() - tasks - {asyncio.current_task()}
    assert not left, f"tasks left: {left}"
    shared = {s.process.pid for s in running_servers.values() if s.process is not None}
    assert not children() - processes - shared, "processes left"


@pytest.fixture
async def broker(server: Server) -> AsyncIterator[Broker]:
    connected = await Broker.connect(server.url, installation="test")
    yield connected
    await connected.close()


@pytest.fixture
def admin(server: Server) -> Iterator[redis.Redis]:
    """A plain client, for what neither operator nor agents would do."""
    with server.admin() as client:
        yield client


@pytest.fixture
def raw(admin: redis.Redis) -> Iterator[redis.Redis]:
    """The administrator, who gets replies as bytes."""
    options = {**admin.connection_pool.connection_kwargs, "decode_responses": False}
    with redis.Redis(connection_pool=redis.ConnectionPool(**options)) as client:
        yield client


@pytest.fixture
def replays(stream: redis.Redis, raw: redis.Redis) -> Replays:
    """A stream with the group `g`."""
    return Replays(raw)


@pytest.fixture
async def topology(server: Server, wire: Client) -> Topology:
    """`planner` produces to `tasks`."""
    declared = Topology(wire, server.url)
    await declared.stream("tasks", "planner")
    return declared


@pytest.fixture
async def stream(broker: Broker, admin: redis.Redis) -> redis.Redis:
    """An empty stream with the group `g`."""
    await broker.apply(CreateStream(KEY, {"name": "tasks"}))
    await broker.apply(CreateGroup(KEY, "g", "0"))
    return admin


@pytest.fixture
def proxy(server: Server) -> Iterator[Faults]:
    """A way to the server that can lose replies and break connections."""
    with Faults(server.port) as running:
        yield running


@pytest.fixture
def exported() -> Iterator[InMemorySpanExporter]:
    """The spans of the test."""
    exporter().clear()
    yield exporter()
    exporter().clear()
