"""The fence grows with every delivery, however the message comes to be delivered again."""

from __future__ import annotations

import pytest

from agentstream.protocol.keys import StreamKeys
from agentstream.transport.client import Client
from support.topology import Topology, following
from support.waiting import until


@pytest.fixture
async def topology(topology: Topology) -> Topology:
    """`planner` produces to `tasks`, in which one message waits."""
    async with topology.agent("planner") as planner:
        await planner.send_message(stream="tasks", type="event", payload={"n": 1})
    return topology


async def test_it_grows_with_retries_and_releases_but_attempts_only_with_retries(topology: Topology) -> None:
    group = await topology.group("tasks", "coder", max_deliveries=9)
    seen = []
    async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        for verb in ("release", "retry", "release", "release", "retry", "ack"):
            delivery = await following(deliveries)
            seen.append((delivery.fence, delivery.attempt))
            assert await getattr(delivery, verb)()
        assert await topology.settled(group, 1)
    assert seen == [(1, 1), (2, 1), (3, 2), (4, 2), (5, 2), (6, 3)]


async def test_it_grows_from_one_process_to_the_next(topology: Topology, wire: Client) -> None:
    group = await topology.group("tasks", "coder", lease=60_000)
    seen = []
    for ending in ("release", "lost", "released unseen", "ack"):
        async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
            delivery = await following(deliveries)
            seen.append((delivery.fence, delivery.attempt))
            if ending == "ack":
                assert await delivery.ack()
            elif ending == "lost":
                # as if the process were killed: an earlier one of the same pod has it
                retries = StreamKeys(group.key).retry("coder")
                entry = (await topology.pending(group, retries=True))[0][0]
                await wire.call("XCLAIM", retries, "coder", "coder-pod.0", 0, entry, "JUSTID")
                assert not await delivery.ack()
    assert await topology.settled(group, 1)
    assert [fence for fence, _ in seen] == [1, 2, 3, 4]
    assert [attempt for _, attempt in seen] == [1, 1, 2, 2]


async def test_what_no_handler_began_is_handed_back_where_it_is(topology: Topology) -> None:
    group = await topology.group("tasks", "coder", lease=60_000)
    async with topology.agent("planner") as planner:
        await planner.send_message(stream="tasks", type="event", payload={"n": 2})
    async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        assert await (await following(deliveries)).ack()
        await until(lambda: len(deliveries._consumption._dispatcher.leases) == 1)
    async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        delivery = await following(deliveries)
        assert (delivery.fence, delivery.attempt) == (1, 1)
        assert await delivery.ack()
    assert await topology.settled(group, 2)


async def test_a_dead_letter_says_how_often_it_was_delivered(topology: Topology) -> None:
    group = await topology.group("tasks", "coder")
    async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        assert await (await following(deliveries)).release()
        assert await (await following(deliveries)).dead_letter("no")
    (record,) = await topology.dead_letters(group)
    assert (record["attempts"], record["fence"]) == (b"1", b"2")


async def test_a_producer_cannot_set_it(topology: Topology, wire: Client) -> None:
    group = await topology.group("tasks", "coder", start="$")
    ((_, fields),) = await wire.call("XRANGE", group.key, "-", "+")
    await wire.call("XADD", group.key, "*", *fields, "x", '{"attempts":70,"fence":80}')
    async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        first = await following(deliveries)
        assert (first.fence, first.attempt) == (1, 1)
        assert await first.release()
        second = await following(deliveries)
        assert (second.fence, second.attempt) == (2, 1)
        assert await second.ack()
