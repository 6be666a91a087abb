"""A delivery: cancelled and failed after its group's deadline, and with a fence that always grows."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

import pytest

from agentstream.protocol.keys import StreamKeys
from agentstream.transport.client import Client
from support.topology import NAMESPACE, Topology, ended, following, numbers
from support.waiting import until

EXCEEDED = b"DeadlineExceeded: the handler was not done by its deadline"


@pytest.fixture
async def topology(topology: Topology) -> Topology:
    """`planner` produces to `tasks`, in which one message waits."""
    async with topology.agent("planner") as planner:
        await planner.send_message(stream="tasks", type="event", payload={"n": 1})
    return topology


async def test_a_late_handler_is_cancelled_and_its_message_tried_again_until_it_is_dead(
    topology: Topology, caplog: pytest.LogCaptureFixture
) -> None:
    group = await topology.group("tasks", "coder", deadline=100, max_deliveries=2)
    cancelled = []
    async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        for attempt in (1, 2):
            async with await following(deliveries) as delivery:
                try:
                    await asyncio.Event().wait()
                finally:
                    cancelled.append((delivery.attempt, delivery.held))
            assert cancelled[-1] == (attempt, True)
        await until(lambda: topology.settled(group, 1))
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
    (record,) = await topology.dead_letters(group)
    assert (record["reason"], record["error"], record["attempts"]) == (b"MaxDeliveries", EXCEEDED, b"2")
    assert sum("was not handled by its deadline" in record.message for record in caplog.records) == 2


async def test_a_handler_that_ends_in_time_is_left_alone(topology: Topology) -> None:
    group = await topology.group("tasks", "coder", deadline=200)
    loop = asyncio.get_running_loop()
    async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        async with await following(deliveries) as delivery:
            assert delivery.deadline is not None
            assert 0 < delivery.deadline - loop.time() <= 0.2
        await asyncio.wait({asyncio.create_task(following(deliveries))}, timeout=0.3)
        assert await topology.settled(group, 1)


async def test_a_handler_that_ends_normally_though_it_was_cancelled_has_done_its_work(
    topology: Topology,
) -> None:
    group = await topology.group("tasks", "coder", deadline=50)
    async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        async with await following(deliveries) as delivery:
            with pytest.raises(asyncio.CancelledError):
                await asyncio.Event().wait()
        assert await delivery.ack()
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
    assert (await topology.stats(group))["acked"] == 1


async def test_a_deadline_can_be_moved(topology: Topology) -> None:
    group = await topology.group("tasks", "coder", deadline=300, max_deliveries=1)
    loop = asyncio.get_running_loop()
    async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        began = loop.time()
        async with await following(deliveries) as delivery:
            assert await delivery.extend(0.9)
            assert delivery.deadline is not None
            assert 0.5 < delivery.deadline - loop.time() <= 0.9
            await asyncio.Event().wait()
        assert loop.time() - began > 0.85
        assert not await delivery.extend(1)
        await until(lambda: topology.dead_letters(group))


async def test_a_deadline_can_be_brought_forward(topology: Topology) -> None:
    await topology.group("tasks", "coder", deadline=60_000)
    loop = asyncio.get_running_loop()
    async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        began = loop.time()
        async with await following(deliveries) as delivery:
            await delivery.extend(0.1)
            await asyncio.Event().wait()
        assert loop.time() - began < 10


async def test_without_a_deadline_extending_only_asks_the_server(topology: Topology, wire: Client) -> None:
    group = await topology.group("tasks", "coder", lease=60_000)
    async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        delivery = await following(deliveries)
        assert delivery.deadline is None
        assert await delivery.extend(0.01)
        assert delivery.deadline is None
        (pending,) = await topology.pending(group)
        await wire.call("XCLAIM", group.key, "coder", "other.1", 0, pending[0], "JUSTID")
        assert not await delivery.extend(1)
        assert not delivery.held
        assert not await delivery.extend(1)
        assert not await delivery.ack()


async def test_extending_tells_what_is_known_where_the_server_does_not_answer(
    topology: Topology, wire: Client
) -> None:
    group = await topology.group("tasks", "coder", lease=60_000)
    async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        delivery = await following(deliveries)
        await wire.call("FUNCTION", "FLUSH")
        assert await delivery.extend(1)
        assert await wire.call("XACK", group.key, "coder", delivery.entry) == 1


async def test_what_no_handler_entered_is_tried_again_at_its_deadline(topology: Topology) -> None:
    await topology.group("tasks", "coder", deadline=100)
    async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        first = await following(deliveries)
        second = await following(deliveries)
        assert (second.attempt, first.settled, first.held) == (2, True, False)
        assert [await first.ack(), await first.retry(), await first.release()] == [False] * 3
        assert await second.ack()
        ran_on = False
        async with first:
            await asyncio.sleep(0)
            ran_on = True
        assert not ran_on


async def test_a_settled_delivery_has_no_deadline_any_more(topology: Topology) -> None:
    await topology.group("tasks", "coder", deadline=50)
    async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        async with await following(deliveries) as delivery:
            assert await delivery.ack()
            await asyncio.wait({asyncio.create_task(following(deliveries))}, timeout=0.2)
        assert delivery.settled


async def test_many_handlers_have_each_a_deadline_of_their_own(topology: Topology) -> None:
    group = await topology.group("tasks", "coder", deadline=400, max_deliveries=1)
    async with topology.agent("planner") as planner:
        for n in (2, 3):
            await planner.send_message(stream="tasks", type="event", payload={"n": n})
    loop = asyncio.get_running_loop()
    took = {}

    async def work(deliveries, first: float) -> None:
        delivery = await following(deliveries)
        assert delivery.deadline is not None
        # the attempt begins before a busy loop goes on here
        began = delivery.deadline - group.deadline / 1000
        async with delivery:
            if first:
                await delivery.extend(first)
            await asyncio.Event().wait()
        took[first] = loop.time() - began

    async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        await asyncio.gather(*(work(deliveries, first) for first in (0, 0.1, 0.8)))
        await until(lambda: topology.settled(group, 3))
    assert 0.1 <= took[0.1] < took[0] < took[0.8]
    assert took[0] >= 0.39


async def test_a_loop_that_is_blocked_past_its_deadline_loses_its_message_to_another(
    topology: Topology,
) -> None:
    group = await topology.group("tasks", "coder", deadline=300, lease=300)
    program = """
import asyncio, sys
from agentstream import Agent
from agentstream.testing import block_loop
async def main():
    async with Agent.from_env() as agent:
        async for delivery in agent.stream_consume("tasks"):
            async with delivery:
                print("began", flush=True)
                sys.stdin.readline()
                await asyncio.sleep(60)
            print("ended", delivery.held or await delivery.ack(), flush=True)
            break
asyncio.run(main())
"""
    environ = {
        **os.environ,
        "AGENTSTREAM_URL": topology.url,
        "AGENTSTREAM_NAMESPACE": NAMESPACE,
        "AGENTSTREAM_AGENT": "coder",
        "AGENTSTREAM_POD": "coder-7",
    }
    blocked = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert blocked.stdin is not None
    assert blocked.stdout is not None
    assert await blocked.stdout.readline() == b"began\n"
    async with topology.agent("coder", pod="other") as other:
        assert await numbers(other.stream_consume("tasks"), 1) == [1]
        assert await topology.settled(group, 1)
    out, _ = await blocked.communicate(b"\n")
    assert out.startswith(b"ended")
    assert blocked.returncode == 0
    stats = await topology.stats(group)
    assert (stats["acked"], stats.get("retried", 0), stats.get("dead", 0)) == (1, 0, 0)


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
                await wire.call("XCLAIM", retries, "coder", ended("coder-pod"), 0, entry, "JUSTID")
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
