"""Servers that are about to suffer, and the table of what became of the messages on them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agentstream.testing import Sandbox
from agentstream.transport.client import Client
from agentstream.transport.endpoint import Endpoint
from agentstream_operator.broker.broker import Broker
from faults.drill import Drill
from faults.ledger import Ledger


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    """`planner` produces to `tasks`, which `coder` consumes, with leases of a second."""
    async with Sandbox() as running:
        await running.declare_stream("tasks", producers=["planner"])
        await running.declare_group("tasks", agent="coder", lease=1.0)
        yield running


@pytest.fixture
async def drill(sandbox: Sandbox, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Drill]:
    """A drill on the sandbox's stream."""
    async for running in drilled(sandbox.server.url, "{test.tasks}", tmp_path, request):
        yield running


async def drilled(
    url: str, key: str, directory: Path, request: pytest.FixtureRequest
) -> AsyncIterator[Drill]:
    """A drill whose outcomes end up in the table."""
    broker = await Broker.connect(url, installation="agentstream")
    wire = Client(lambda: Endpoint(url), name="test")
    ledger = Ledger(directory / "ledger")
    running = Drill(broker, wire, key, ledger, [])
    try:
        yield running
    finally:
        request.node.user_properties.extend(("drill", str(outcome)) for outcome in running.outcomes)
        await wire.close()
        await broker.close()
        ledger.close()
