"""A broker connected to the server of the test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import redis
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from agentstream.testing import Faults
from agentstream.wire import Wire
from agentstream_operator.broker.broker import Broker
from agentstream_operator.plan.actions import CreateGroup, CreateStream
from support.entries import KEY
from support.servers import Server
from support.topology import Topology
from support.tracing import exporter


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
async def topology(server: Server, wire: Wire) -> Topology:
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
