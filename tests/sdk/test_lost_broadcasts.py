"""Receipts after a loss: what a group did not acknowledge is never said to be acknowledged."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from agentstream import QuorumMissed, Receipt
from agentstream.agent import Agent
from agentstream.protocol import commands
from agentstream.protocol.keys import StreamKeys
from agentstream.transport.client import Client
from support.topology import Topology, following, numbers
from support.waiting import until

NEWS = StreamKeys("{test.news}")
GROUPS = ("coder", "tester")


@pytest.fixture
async def declared(topology: Topology) -> Topology:
    """`planner` produces to the broadcast stream `news`, which two groups read."""
    await topology.stream("news", "planner", broadcast=True)
    for group in GROUPS:
        await topology.group("news", group, broadcast=True)
    return topology


@pytest.fixture
async def planner(declared: Topology) -> AsyncIterator[Agent]:
    async with declared.agent("planner") as agent:
        yield agent


async def heal(declared: Topology) -> None:
    """What the operator does about a loss of data."""
    await declared.wire.call(*commands.create_stream(NEWS.stream, {"name": "news"}))
    for group in GROUPS:
        at = await declared.wire.call("HGET", NEWS.meta, f"checkpoint:{group}")
        await declared.wire.call(*commands.create_group(NEWS.stream, group, (at or b"0").decode()))
    await declared.write_routes()


async def is_over(declared: Topology, entry: str) -> None:
    """Waits until the millisecond of an entry is over: one on a new stream could have the same id."""

    async def is_later() -> bool:
        seconds, microseconds = await declared.wire.call("TIME")
        return int(seconds) * 1000 + int(microseconds) // 1000 > int(entry.partition("-")[0])

    await until(is_later)


async def flushed(declared: Topology, entry: str) -> None:
    await declared.wire.call("FLUSHALL")
    await is_over(declared, entry)
    await heal(declared)


async def deleted(declared: Topology, entry: str) -> None:
    await declared.wire.call("DEL", NEWS.stream)
    await is_over(declared, entry)
    await heal(declared)


async def entry_deleted(declared: Topology, entry: str) -> None:
    await declared.wire.call("XDEL", NEWS.stream, entry)


async def trimmed(declared: Topology, _entry: str) -> None:
    await declared.wire.call("XTRIM", NEWS.stream, "MAXLEN", 0)


async def cleaned(declared: Topology, *, on_full: str = "TrimAcknowledged", max_length: int = 1000) -> None:
    """A pass of the janitor."""
    limits = (3_600_000, max_length, 0, on_full, 1000)
    groups = [(group, 2000, 3_600_000) for group in GROUPS]
    await declared.wire.call(*commands.janitor(NEWS.stream, limits, groups, trusts_lag=True, broadcast=True))


async def handle(declared: Topology, *groups: str, count: int = 1) -> None:
    for group in groups:
        async with declared.agent(group) as agent, agent.stream_consume("news") as deliveries:
            await numbers(deliveries, count)


async def standings(receipt: Receipt) -> list[str]:
    return [str(standing) for standing in (await receipt.status()).groups.values()]


@pytest.mark.parametrize("clean", [False, True], ids=["", "and cleaned"])
@pytest.mark.parametrize("acknowledged", [(), ("coder",), GROUPS], ids=["by none", "by one", "by all"])
@pytest.mark.parametrize("lose", [flushed, deleted, entry_deleted, trimmed])
async def test_only_who_acknowledged_it_is_said_to_have(
    declared: Topology,
    planner: Agent,
    lose: Callable[[Topology, str], Awaitable[None]],
    acknowledged: tuple[str, ...],
    *,
    clean: bool,
) -> None:
    receipt = await planner.broadcast(type="event", payload={"n": 1})
    await handle(declared, *acknowledged)
    await lose(declared, receipt.sent.entry)
    if clean:
        await cleaned(declared)
    next_one = await planner.broadcast(type="event", payload={"n": 2})
    await handle(declared, *GROUPS)
    if clean:
        await cleaned(declared)
    # nothing outlives FLUSHALL that could tell of an acknowledgement
    kept = () if lose is flushed else acknowledged
    expected = ["acknowledged" if group in kept else "missing" for group in GROUPS]
    assert await standings(receipt) == expected
    assert await standings(next_one) == ["acknowledged"] * 2
    if "missing" in expected:
        with pytest.raises(QuorumMissed, match="missing"):
            await receipt.wait(timeout=0)


async def test_what_nobody_will_ever_read_is_missing_after_a_pass_of_the_janitor(
    declared: Topology, planner: Agent
) -> None:
    receipt = await planner.broadcast(type="event", payload={"n": 1})
    await entry_deleted(declared, receipt.sent.entry)
    assert await standings(receipt) == ["pending"] * 2
    await cleaned(declared)
    assert await standings(receipt) == ["missing"] * 2


async def test_what_is_handled_although_it_was_deleted_is_acknowledged(
    declared: Topology, planner: Agent
) -> None:
    receipt = await planner.broadcast(type="event", payload={"n": 1})
    async with declared.agent("coder") as coder, coder.stream_consume("news") as deliveries:
        delivery = await following(deliveries)
        await entry_deleted(declared, receipt.sent.entry)
        assert await standings(receipt) == ["pending"] * 2
        assert await delivery.ack()
    await cleaned(declared)
    assert await standings(receipt) == ["acknowledged", "missing"]


async def test_what_is_trimmed_unread_as_the_stream_is_full_is_missing(
    declared: Topology, planner: Agent
) -> None:
    receipts = [await planner.broadcast(type="event", payload={"n": n}) for n in range(300)]
    await handle(declared, "coder", count=300)
    await cleaned(declared, on_full="TrimOldest", max_length=10)
    await cleaned(declared)
    assert await standings(receipts[0]) == ["acknowledged", "missing"]
    assert await standings(receipts[-1]) == ["acknowledged", "pending"]


async def test_retries_and_dead_letters_outlive_the_passes_of_the_janitor(
    declared: Topology, planner: Agent
) -> None:
    receipts = [await planner.broadcast(type="event", payload={"n": n}) for n in range(3)]
    await handle(declared, "tester", count=3)
    async with declared.agent("coder") as coder, coder.stream_consume("news") as deliveries:
        first, second, third = [await following(deliveries) for _ in receipts]
        await first.retry(after=60)
        await second.dead_letter("no")
        await third.ack()
    await cleaned(declared)
    assert [await standings(receipt) for receipt in receipts] == [
        ["retrying", "acknowledged"],
        ["dead", "acknowledged"],
        ["acknowledged", "acknowledged"],
    ]
    # a retry that somebody deleted was never acknowledged
    await declared.wire.call("DEL", NEWS.delay("coder"))
    await cleaned(declared)
    assert await standings(receipts[0]) == ["missing", "acknowledged"]


async def test_nothing_is_kept_of_what_all_groups_acknowledged(
    declared: Topology, planner: Agent, wire: Client
) -> None:
    for n in range(20):
        await planner.broadcast(type="event", payload={"n": n})
    await handle(declared, *GROUPS, count=20)
    assert await wire.call("ZCARD", NEWS.receipts) == 21
    await cleaned(declared)
    assert await wire.call("ZRANGE", NEWS.receipts, 0, -1) == [b"since"]
    assert [await wire.call("HLEN", NEWS.parked(group)) for group in GROUPS] == [0, 0]
