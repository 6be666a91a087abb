"""A message that runs alone holds up no other for long: what waits behind it goes to other processes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import pytest

from agentstream.protocol.routes import Consumes
from support.topology import HANDED_BACK, Topology, following, numbers
from support.waiting import until


async def send(topology: Topology, numbers: Iterable[int]) -> None:
    """Sends a message with each of these numbers."""
    async with topology.agent("planner") as planner:
        for n in numbers:
            await planner.send_message(to="coder", type="event", payload={"n": n})


@pytest.fixture
async def group(topology: Topology) -> Consumes:
    """A group in which no lease runs out while a test runs."""
    return await topology.group("tasks", "coder", lease=600_000)


async def test_what_waits_behind_a_message_that_runs_alone_another_process_has_soon(
    topology: Topology, group: Consumes
) -> None:
    await send(topology, range(6))
    await topology.left_behind(group, 2)
    async with topology.agent("coder", pod="one") as one, topology.agent("coder", pod="two") as two:
        # without it, what it holds would be handed back
        deliveries = one.stream_consume("tasks", concurrency=16)
        alone = await following(deliveries)
        assert alone.message.payload == {"n": 0}
        others = two.stream_consume("tasks", concurrency=16)
        taken = [await following(others) for _ in range(5)]
        assert sorted(delivery.message.payload["n"] for delivery in taken) == [1, 2, 3, 4, 5]
        # having waited was no attempt
        assert {delivery.attempt for delivery in taken} == {2}
        assert all([await delivery.ack() for delivery in (alone, *taken)])
    assert await topology.settled(group, 6)


async def test_suspects_go_to_as_many_processes_as_there_are(topology: Topology, group: Consumes) -> None:
    await send(topology, range(3))
    await topology.left_behind(group, 2, 2, 2)
    async with (
        topology.agent("coder", pod="one") as one,
        topology.agent("coder", pod="two") as two,
        topology.agent("coder", pod="three") as three,
    ):
        each = [agent.stream_consume("tasks", concurrency=16) for agent in (one, two, three)]
        taken = await asyncio.gather(*(following(deliveries) for deliveries in each))
        assert sorted(delivery.message.payload["n"] for delivery in taken) == [0, 1, 2]
        assert {delivery.attempt for delivery in taken} == {3}
        assert all([await delivery.ack() for delivery in taken])
    assert await topology.settled(group, 3)


async def test_nothing_new_is_read_that_would_have_to_wait_behind_it(
    topology: Topology, group: Consumes
) -> None:
    await send(topology, [0])
    await topology.left_behind(group, 2)
    async with topology.agent("coder", pod="one") as one, topology.agent("coder", pod="two") as two:
        # without it, what it holds would be handed back
        deliveries = one.stream_consume("tasks", concurrency=16)
        alone = await following(deliveries)
        await send(topology, range(1, 6))
        assert sorted(await numbers(two.stream_consume("tasks", concurrency=16), 5)) == [1, 2, 3, 4, 5]
        assert await alone.ack()


async def test_who_is_the_only_process_goes_on_by_itself(
    topology: Topology, group: Consumes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentstream.consuming.isolation._BEHIND", 0.02)
    await send(topology, range(4))
    await topology.left_behind(group, 2)
    async with (
        topology.agent("coder", pod="one") as one,
        one.stream_consume("tasks", concurrency=16) as deliveries,
    ):
        alone = await following(deliveries)

        async def handed_back() -> bool:
            return sum(idle >= HANDED_BACK for _, _, idle, _ in await topology.pending(group)) == 3

        await until(handed_back)
        assert await alone.ack()
        assert sorted(await numbers(deliveries, 3)) == [1, 2, 3]
    assert await topology.settled(group, 4)
