"""Batches: how many messages come together, for how long they wait, and what becomes of each."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

import msgspec
import pytest

from agentstream.agent import Agent
from agentstream.consuming.delivery import Delivery
from agentstream.errors import Reject, Retry
from agentstream.protocol.envelope import Message
from agentstream.protocol.routes import Consumes
from agentstream.testing import Faults
from agentstream.transport.client import Client
from support.topology import Topology
from support.waiting import until

LONG = 3600.0
"""Seconds for which no test waits."""


class Item(msgspec.Struct):
    n: int


@pytest.fixture
async def group(topology: Topology) -> Consumes:
    """`coder` consumes `tasks`."""
    return await topology.group("tasks", "coder")


async def send(topology: Topology, *numbers: int, kind: Any = "event") -> None:
    async with topology.agent("planner") as planner:
        for n in numbers:
            await planner.send_message(to="coder", stream="tasks", type=kind, payload={"n": n})


class Running:
    """The agent's handlers at work, until the block ends."""

    def __init__(self, agent: Agent, concurrency: int = 64) -> None:
        self.agent = agent
        self.concurrency = concurrency

    async def __aenter__(self) -> asyncio.Task[None]:
        await self.agent.__aenter__()
        self.at_work = asyncio.create_task(self.agent.run(concurrency=self.concurrency))
        return self.at_work

    async def __aexit__(self, *trouble: object) -> None:
        self.agent.stop()
        await asyncio.wait({self.at_work})
        await self.agent.__aexit__(None, None, None)


async def test_a_batch_is_handled_as_soon_as_it_is_complete(topology: Topology, group: Consumes) -> None:
    await send(topology, *range(30))
    coder, sizes = topology.agent("coder"), []

    @coder.on("event", batch_size=10, max_wait=LONG)
    async def handle(items: list[Item]) -> None:
        sizes.append([item.n for item in items])

    async with Running(coder):
        await until(lambda: topology.settled(group, 30))
    assert [len(numbers) for numbers in sizes] == [10, 10, 10]
    assert sorted(n for numbers in sizes for n in numbers) == list(range(30))
    assert (await topology.stats(group))["acked"] == 30


async def test_a_batch_may_be_larger_than_the_concurrency(topology: Topology, group: Consumes) -> None:
    await send(topology, *range(10))
    coder, sizes = topology.agent("coder"), []

    @coder.on("event", batch_size=10, max_wait=LONG)
    async def handle(items: list[dict]) -> None:
        sizes.append(len(items))

    async with Running(coder, concurrency=2):
        await until(lambda: topology.settled(group, 10))
    assert sizes == [10]


async def test_what_came_in_time_is_handled_where_a_batch_does_not_get_complete(
    topology: Topology, group: Consumes
) -> None:
    await send(topology, 1, 2, 3)
    coder, given = topology.agent("coder"), []

    @coder.on("event", batch_size=10, max_wait=0.05)
    async def handle(items: list[Item]) -> None:
        given.extend(item.n for item in items)

    async with Running(coder):
        await until(lambda: topology.settled(group, 3))
    assert given == [1, 2, 3]


async def test_a_handler_of_batches_takes_a_list_of_what_others_take_one_by_one(
    topology: Topology, group: Consumes
) -> None:
    given: list[Any] = []

    async def deliveries(batch: list[Delivery[Item]]) -> None:
        given.extend(delivery.payload for delivery in batch)

    async def messages(batch: list[Message]) -> None:
        given.extend(message.payload for message in batch)

    async def unannotated(batch) -> None:
        given.extend(batch)

    async def plain(batch: list) -> None:
        given.extend(batch)

    def in_a_thread(batch: list[Item]) -> None:
        given.extend(batch)

    for number, handler in enumerate((deliveries, messages, unannotated, plain, in_a_thread), 1):
        coder = topology.agent("coder")
        coder.on("event", batch_size=2, max_wait=LONG)(handler)
        async with Running(coder):
            await send(topology, 1, 2)
            await until(lambda: topology.settled(group, 2 * number))  # noqa: B023
    raw, typed = [{"n": 1}, {"n": 2}], [Item(1), Item(2)]
    assert given == [*typed, *raw, *raw, *raw, *typed]


async def takes_one(item: Item) -> None: ...
async def takes_two(items: list[Item], deliveries: list[Delivery]) -> None: ...
async def takes_numbers(items: list[int]) -> None: ...
async def returns(items: list[Item]) -> int: ...  # type: ignore[empty-body]


@pytest.mark.parametrize("handler", [takes_one, takes_two, takes_numbers, returns])
def test_what_cannot_handle_batches_is_refused_where_it_is_declared(handler: Any) -> None:
    coder = Topology(None, "redis://127.0.0.1:1").agent("coder")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=f"{handler.__name__}: "):
        coder.on("event", batch_size=2)(handler)


async def test_what_the_handler_settles_itself_stays_as_it_says(topology: Topology, group: Consumes) -> None:
    await send(topology, 1, 2, 3)
    coder = topology.agent("coder")

    @coder.on("event", batch_size=3, max_wait=LONG)
    async def handle(batch: list[Delivery[Item]]) -> None:
        await batch[1].dead_letter("no twos")

    async with Running(coder):
        await until(lambda: topology.settled(group, 3))
    (record,) = await topology.dead_letters(group)
    assert record["reason"] == b"no twos"
    assert (await topology.stats(group))["acked"] == 2


async def test_a_batch_that_fails_is_tried_again_but_for_what_was_settled(
    topology: Topology, group: Consumes, caplog: pytest.LogCaptureFixture
) -> None:
    await send(topology, 1, 2, 3)
    coder, attempts = topology.agent("coder"), []

    @coder.on("event", batch_size=3, max_wait=0.2)
    async def handle(batch: list[Delivery[Item]]) -> None:
        attempts.append(sorted((delivery.payload.n, delivery.attempt) for delivery in batch))
        if len(attempts) == 1:
            await batch[0].ack()
            raise RuntimeError("not today")

    with caplog.at_level(logging.WARNING, "agentstream"):
        async with Running(coder):
            await until(lambda: topology.settled(group, 3))
    assert attempts[0] == [(1, 1), (2, 1), (3, 1)]
    assert sorted(pair for again in attempts[1:] for pair in again) == [(2, 2), (3, 2)]
    assert sum("not today" in record.getMessage() for record in caplog.records) == 1


async def test_a_batch_may_be_refused_or_put_off_as_a_whole(topology: Topology, group: Consumes) -> None:
    await send(topology, 1, 2)
    coder, attempts = topology.agent("coder"), []

    @coder.on("event", batch_size=2, max_wait=0.5)
    async def handle(batch: list[Delivery[Item]]) -> None:
        attempts.append(batch[0].attempt)
        if batch[0].attempt == 1:
            raise Retry("not yet", after=0.01)
        raise Reject("never")

    async with Running(coder):
        await until(lambda: topology.settled(group, 2))
    assert attempts[0] == 1
    assert [record["reason"] for record in await topology.dead_letters(group)] == [b"never", b"never"]


async def test_a_message_that_runs_alone_does_not_wait_for_others(
    topology: Topology, group: Consumes
) -> None:
    await send(topology, 1, 2)
    # two attempts ended without a word
    await topology.left_behind(group, 2, 2)
    coder, given = topology.agent("coder"), []

    @coder.on("event", batch_size=2, max_wait=LONG)
    async def handle(batch: list[Delivery[Item]]) -> None:
        given.append([(delivery.payload.n, delivery.attempt) for delivery in batch])

    async with Running(coder):
        await until(lambda: topology.settled(group, 2))
    assert given == [[(1, 3)], [(2, 3)]]


async def test_messages_that_were_retried_fill_batches_as_others_do(
    topology: Topology, group: Consumes
) -> None:
    await send(topology, 1, 2)
    coder, given = topology.agent("coder"), []

    @coder.on("event", batch_size=2, max_wait=LONG)
    async def handle(batch: list[Delivery[Item]]) -> None:
        given.append(sorted((delivery.payload.n, delivery.attempt) for delivery in batch))
        if batch[0].attempt < 3:
            raise Retry(after=0)

    async with Running(coder):
        await until(lambda: topology.settled(group, 2))
    assert given == [[(1, attempt), (2, attempt)] for attempt in (1, 2, 3)]


async def test_single_and_batched_messages_of_one_stream_do_not_hold_each_other_up(
    topology: Topology, group: Consumes
) -> None:
    coder, singles = topology.agent("coder"), asyncio.Queue[int]()

    @coder.on("event", batch_size=2, max_wait=LONG)
    async def handle(batch: list[Item]) -> None: ...

    @coder.on("task_request")
    async def single(item: Item) -> None:
        await singles.put(item.n)

    async with Running(coder):
        await send(topology, 1)
        await send(topology, 7, kind="task_request")
        assert await singles.get() == 7
        await send(topology, 2)
        await until(lambda: topology.settled(group, 3))


async def test_at_the_end_what_was_gathered_is_handled_without_waiting(
    topology: Topology, group: Consumes
) -> None:
    await send(topology, 1, 2)
    coder, given = topology.agent("coder"), []

    @coder.on("event", batch_size=10, max_wait=LONG)
    async def handle(items: list[Item]) -> None:
        given.extend(item.n for item in items)

    async with Running(coder) as at_work:
        await until(lambda: _pending(topology, group, 2))
        await until(lambda: len(_held(coder)) == 2)
        coder.stop()
        await asyncio.wait_for(at_work, 10)
    assert sorted(given) == [1, 2]
    assert await topology.settled(group, 2)


async def _pending(topology: Topology, group: Consumes, count: int) -> bool:
    return len(await topology.pending(group)) == count


@pytest.mark.parametrize("gathering", [True, False])
async def test_a_cancelled_run_hands_back_what_is_in_a_batch(
    topology: Topology, group: Consumes, *, gathering: bool
) -> None:
    await send(topology, 1, 2)
    coder, begun = topology.agent("coder"), asyncio.Event()

    @coder.on("event", batch_size=3 if gathering else 2, max_wait=LONG)
    async def handle(items: list[Item]) -> None:
        begun.set()
        await asyncio.Event().wait()

    async with coder:
        at_work = asyncio.create_task(coder.run())
        await until(lambda: _pending(topology, group, 2))
        await (until(lambda: len(_held(coder)) == 2) if gathering else begun.wait())
        at_work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await at_work
    async with topology.agent("coder") as other, other.stream_consume("tasks", payload=Item) as deliveries:
        again = [await anext(deliveries), await anext(deliveries)]
        assert sorted((delivery.payload.n, delivery.attempt) for delivery in again) == [(1, 1), (2, 1)]


async def test_what_was_lost_while_it_was_gathered_is_left_out(topology: Topology, group: Consumes) -> None:
    await send(topology, 1, 2)
    coder, given = topology.agent("coder"), []

    @coder.on("event", batch_size=3, max_wait=LONG)
    async def handle(batch: list[Delivery[Item]]) -> None:
        given.extend(delivery.payload.n for delivery in batch)

    async with Running(coder):
        await until(lambda: len(_held(coder)) == 2)
        for entry in _held(coder):
            entry.lose()
        await send(topology, 3)
        await until(lambda: given == [3])
        # what was left out is not held any more, either
        await until(lambda: not _held(coder))


async def test_what_was_over_its_lease_when_it_was_gathered_comes_again(
    proxy: Faults, topology: Topology
) -> None:
    group = await topology.group("tasks", "coder", lease=300)
    await send(topology, 1, 2)
    coder, given = topology.agent("coder", url=proxy.url), []

    @coder.on("event", batch_size=3, max_wait=1.0)
    async def handle(batch: list[Delivery[Item]]) -> None:
        given.extend((delivery.payload.n, delivery._attempt.hold.is_overdue) for delivery in batch)

    async with Running(coder):
        await until(lambda: len(_held(coder)) == 2)
        gathered = _held(coder)
        proxy.refuse()
        await until(lambda: all(entry.is_busy for entry in gathered))
        proxy.accept()
        await until(lambda: topology.settled(group, 2))
    assert sorted(given) == [(1, False), (2, False)]


async def test_a_batch_of_which_everything_was_lost_is_not_handled(
    topology: Topology, group: Consumes
) -> None:
    await send(topology, 1, 2)
    coder, given = topology.agent("coder"), []

    @coder.on("event", batch_size=10, max_wait=LONG)
    async def handle(batch: list[Delivery[Item]]) -> None:
        given.append(batch)

    async with Running(coder):
        await until(lambda: len(_held(coder)) == 2)
        for entry in _held(coder):
            entry.lose()
    assert not given


def _held(agent: Agent) -> list[Any]:
    """The entries that handlers of the agent have."""
    return [
        entry
        for consumption in agent._consumptions
        if consumption._dispatcher is not None
        for entry in consumption._dispatcher._running
    ]


async def test_a_batch_is_cancelled_when_all_its_messages_are_late(
    topology: Topology, wire: Client, caplog: pytest.LogCaptureFixture
) -> None:
    group = await topology.group("tasks", "coder", deadline=100, max_deliveries=1)
    await send(topology, 1, 2)
    coder, cancelled = topology.agent("coder"), asyncio.Event()

    @coder.on("event", batch_size=2, max_wait=LONG)
    async def handle(items: list[Item]) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async with Running(coder):
        await asyncio.wait_for(cancelled.wait(), 10)
        await until(lambda: topology.settled(group, 2))
    assert [record["reason"] for record in await topology.dead_letters(group)] == [b"MaxDeliveries"] * 2


class Stuck:
    """A handler of batches that ends when it is told to, or cancelled."""

    def __init__(self, agent: Agent) -> None:
        self.begun, self.go_on, self.cancelled = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.settle: Any = None
        self.kept: list[int] = []
        agent.on("event", batch_size=2, max_wait=LONG)(self.handle)

    async def handle(self, batch: list[Delivery[Item]]) -> None:
        self.begun.set()
        if self.settle is not None:
            await self.settle(batch[0])
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        self.kept = [delivery.payload.n for delivery in batch if delivery.held]


async def steal(topology: Topology, group: Consumes, *which: int) -> None:
    """Has another consumer take some of what is pending."""
    pending = await topology.pending(group)
    for i in which:
        await topology.wire.call("XCLAIM", group.key, "coder", "thief", 0, pending[i][0])


async def test_a_batch_is_cancelled_when_all_its_messages_were_lost(topology: Topology) -> None:
    group = await topology.group("tasks", "coder", lease=500)
    await send(topology, 1, 2)
    coder = topology.agent("coder")
    stuck = Stuck(coder)
    async with Running(coder):
        await stuck.begun.wait()
        await steal(topology, group, 0)
        await until(lambda: [entry.was_held for entry in _held(coder)].count(False) == 1)
        assert not stuck.cancelled.is_set(), "one of them is still its own"
        await steal(topology, group, 1)
        await asyncio.wait_for(stuck.cancelled.wait(), 10)
        await until(lambda: not _held(coder))
    assert {name for _, name, _, _ in await topology.pending(group)} == {"thief"}


async def test_a_batch_that_settled_the_others_itself_is_cancelled_when_the_last_was_lost(
    topology: Topology,
) -> None:
    group = await topology.group("tasks", "coder", lease=500)
    await send(topology, 1, 2)
    coder = topology.agent("coder")
    stuck = Stuck(coder)
    stuck.settle = Delivery.ack
    async with Running(coder):
        await until(lambda: _pending(topology, group, 1))
        await steal(topology, group, 0)
        await asyncio.wait_for(stuck.cancelled.wait(), 10)
        await until(lambda: not _held(coder))
    assert (await topology.stats(group))["acked"] == 1


async def test_a_batch_of_which_some_were_lost_can_skip_them_and_settles_the_others(
    topology: Topology,
) -> None:
    group = await topology.group("tasks", "coder", lease=500)
    await send(topology, 1, 2)
    coder = topology.agent("coder")
    stuck = Stuck(coder)
    async with Running(coder):
        await stuck.begun.wait()
        await steal(topology, group, 0)
        await until(lambda: [entry.was_held for entry in _held(coder)].count(False) == 1)
        stuck.go_on.set()
        await until(lambda: not _held(coder))
    assert not stuck.cancelled.is_set()
    assert stuck.kept == [2]
    assert (await topology.stats(group))["acked"] == 1
    assert [name for _, name, _, _ in await topology.pending(group)] == ["thief"]


async def test_a_batch_whose_deadline_was_moved_goes_on(topology: Topology) -> None:
    group = await topology.group("tasks", "coder", deadline=300, max_deliveries=1)
    await send(topology, 1, 2)
    coder, late = topology.agent("coder"), asyncio.Event()

    @coder.on("event", batch_size=2, max_wait=LONG)
    async def handle(batch: list[Delivery[Item]]) -> None:
        loop = asyncio.get_running_loop()
        first = max(delivery.deadline or 0 for delivery in batch)
        for delivery in batch:
            await delivery.extend(60)
        loop.call_at(first + 0.1, late.set)
        await late.wait()

    async with Running(coder):
        await until(lambda: topology.settled(group, 2))
    assert await topology.dead_letters(group) == []


async def test_a_late_batch_in_a_thread_is_tried_again_once_it_is_over(topology: Topology) -> None:
    group = await topology.group("tasks", "coder", deadline=50, max_deliveries=2)
    await send(topology, 1)
    coder, calls, go_on = topology.agent("coder"), [], threading.Event()

    @coder.on("event", batch_size=1, max_wait=LONG)
    def handle(batch: list[Delivery[Item]]) -> None:
        calls.append(batch[0].attempt)
        if len(calls) == 1:
            go_on.wait(10)

    async with Running(coder):
        await until(lambda: bool(calls))
        await until(lambda: not _held(coder))
        go_on.set()
        await until(lambda: topology.settled(group, 1))
    assert calls == [1, 2]
