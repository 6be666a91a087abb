"""Settling goes on while the server refuses what passes: it is busy, or its disk is full."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from agentstream.consuming.delivery import Delivery
from agentstream.errors import AgentStreamError
from agentstream.protocol.routes import Consumes
from agentstream.transport.client import Client
from agentstream.transport.endpoint import Endpoint
from support.servers import Server
from support.topology import Topology, send
from support.waiting import until

LEASE = 1.0


@contextlib.asynccontextmanager
async def busy(server: Server, wire: Client) -> AsyncIterator[None]:
    """A script runs for ever."""
    await wire.call("CONFIG", "SET", "busy-reply-threshold", 1)
    other = Client(lambda: Endpoint(server.url), name="script", timeout=60)
    running = asyncio.create_task(other.call("EVAL", "while true do end", 0))
    await until(lambda: refused(wire, "BUSY"))
    try:
        yield
    finally:
        await wire.call("SCRIPT", "KILL")
        await asyncio.gather(running, return_exceptions=True)
        await other.close()


@contextlib.asynccontextmanager
async def unwritable(server: Server, wire: Client) -> AsyncIterator[None]:
    """The server cannot save its data: there is a directory in the place of its file."""
    (server.directory / "dump.rdb").unlink(missing_ok=True)
    (server.directory / "dump.rdb").mkdir()
    await wire.call("CONFIG", "SET", "save", "3600 1000000")
    await wire.call("BGSAVE")
    await until(lambda: refused(wire, "MISCONF"))
    try:
        yield
    finally:
        await wire.call("CONFIG", "SET", "save", "")


@contextlib.asynccontextmanager
async def without_replicas(server: Server, wire: Client) -> AsyncIterator[None]:
    """The server has too few replicas."""
    await wire.call("CONFIG", "SET", "min-replicas-to-write", 1)
    try:
        yield
    finally:
        await wire.call("CONFIG", "SET", "min-replicas-to-write", 0)


async def refused(wire: Client, code: str) -> bool:
    try:
        await wire.call("SET", "{test.tasks}:meta", "x", "NX")
    except AgentStreamError as error:
        return str(error).startswith(code)
    return False


@pytest.fixture
async def private(private_server: Server) -> AsyncIterator[tuple[Topology, Consumes]]:
    """`planner` produces to `tasks`, which `coder` consumes with a short lease, on a server of its own."""
    wire = Client(lambda: Endpoint(private_server.url), name="test")
    topology = Topology(wire, private_server.url)
    await topology.stream("tasks", "planner")
    group = await topology.group("tasks", "coder", lease=round(LEASE * 1000), max_deliveries=1)
    yield topology, group
    await wire.close()


VERBS: dict[str, Callable[[Delivery], Awaitable[bool]]] = {
    "ack": lambda delivery: delivery.ack(),
    "dead_letter": lambda delivery: delivery.dead_letter("no"),
    "retry": lambda delivery: delivery.retry(after=0),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("trouble", [busy, unwritable, without_replicas])
async def test_an_error_that_passes_does_not_end_settling(
    private_server: Server,
    private: tuple[Topology, Consumes],
    trouble: Callable[[Server, Client], contextlib.AbstractAsyncContextManager[None]],
    verb: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    topology, group = private
    await send(topology, 1)
    async with (
        topology.agent("coder") as coder,
        coder.stream_consume("tasks") as deliveries,
        # another process, which would claim what nobody renews
        topology.agent("coder", pod="other") as other,
        other.stream_consume("tasks") as others,
    ):
        waiting = asyncio.create_task(anext(deliveries))
        competing = asyncio.create_task(anext(others))
        (done,), _ = await asyncio.wait({waiting, competing}, return_when=asyncio.FIRST_COMPLETED)
        delivery = await done
        async with trouble(private_server, topology.wire):
            settling = asyncio.create_task(VERBS[verb](delivery))
            over = time.monotonic() + 1.5 * LEASE
            await until(lambda: time.monotonic() > over and caplog.text.count("cannot sweep") == 2)
            assert not settling.done()
        assert await settling
        await until(lambda: topology.settled(group, 1))
        assert not any(task.done() for task in {waiting, competing} - {done})
        for task in (waiting, competing):
            task.cancel()
        await asyncio.gather(waiting, competing, return_exceptions=True)
    assert "cannot settle" not in caplog.text
    assert (await topology.dead_letters(group) == []) is (verb == "ack")
