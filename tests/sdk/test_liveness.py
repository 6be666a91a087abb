"""After a silence nobody is taken for dead before those who live had the time to renew."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

import pytest

from agentstream.protocol.commands import GroupCalls
from agentstream.testing import Faults
from agentstream.transport.client import Client
from support.servers import Server
from support.topology import Topology, following
from support.waiting import until


@pytest.fixture
def proxies(server: Server) -> Iterator[tuple[Faults, Faults]]:
    """Two ways to the server."""
    with contextlib.ExitStack() as stack:
        yield stack.enter_context(Faults(server.port)), stack.enter_context(Faults(server.port))


async def test_who_comes_back_first_leaves_the_others_what_they_hold(
    topology: Topology, proxies: tuple[Faults, Faults]
) -> None:
    group = await topology.group("tasks", "coder", lease=2_000)
    to_first, to_second = proxies

    async def sweep_due() -> int:
        return (await topology.stats(group)).get("sweep:due", 0)

    async def idle() -> int:
        ((_, _, idle, _),) = await topology.pending(group)
        return idle

    async def has_stalled() -> bool:
        return await idle() > group.lease

    async def is_renewed() -> bool:
        return await idle() < group.lease / 2

    async def has_looked() -> bool:
        return await sweep_due() > due

    async with (
        topology.agent("planner") as planner,
        topology.agent("coder", "coder-1", to_first.url) as first,
        topology.agent("coder", "coder-2", to_second.url) as second,
        first.stream_consume("tasks", concurrency=1) as by_first,
        second.stream_consume("tasks", concurrency=1) as by_second,
    ):
        await planner.send_message(to="coder", type="event", payload={"n": 1})
        held = await following(by_first)
        other = asyncio.create_task(following(by_second))
        await until(lambda: second._consumer.consumed)
        with to_first.refuse():
            with to_second.refuse():
                await until(has_stalled)
                due = await sweep_due()
            await until(has_looked)
        await until(is_renewed)
        await planner.send_message(to="coder", type="event", payload={"n": 2})
        delivery = await other
        assert (delivery.payload, delivery.attempt) == ({"n": 2}, 1)
        assert await held.ack()
        assert await delivery.ack()
    assert await topology.settled(group, 2)


async def test_past_the_limit_only_what_was_handed_back_is_claimed(topology: Topology, wire: Client) -> None:
    group = await topology.group("tasks", "coder")
    calls = GroupCalls(group, "me.1")
    entries = [await topology.add_raw(group.key, b"{}") for _ in range(3)]
    await wire.call("XREADGROUP", "GROUP", "coder", "coder-7.1", "COUNT", 9, "STREAMS", group.key, ">")
    stalled = ("XCLAIM", group.key, "coder", "coder-7.1", 0)
    await wire.call(*stalled, *entries[:2], "IDLE", 60_000, "JUSTID")
    # that is how what was handed back looks
    await wire.call(*stalled, entries[2], "IDLE", 86_400_000, "JUSTID")
    seconds, _ = await wire.call("TIME")
    now = 1000 * int(seconds)

    async def claimed(limit: int | None) -> list[str]:
        reply = await wire.call(*calls.sweep(1_000, 0, 10, limit, now=True))
        assert now <= reply[4] < now + 60_000
        return [entry.decode() for entry, *_ in reply[1]]

    assert await claimed(now - 1) == entries[2:]
    assert await claimed(now - 1) == []
    assert await claimed(now + 60_000) == entries[:2]
    await wire.call(*stalled, *entries, "IDLE", 60_000, "JUSTID")
    assert await claimed(None) == entries
