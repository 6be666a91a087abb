"""Endings: whatever ends a handler, at whatever entry point, its message is counted, and the others go on."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pydantic
import pytest

from agentstream import sync
from agentstream.protocol.routes import Consumes
from support.endings import ENDINGS, HANDLED, OF_ITSELF, Ending, end
from support.topology import Topology
from support.waiting import until

GOOD = 20


@pytest.fixture
async def group(topology: Topology) -> Consumes:
    """`coder` consumes `tasks`, with two attempts at a message."""
    return await topology.group("tasks", "coder", max_deliveries=2, lease=60_000)


class Log(logging.Formatter):
    """Formats everything, and keeps it from pytest's reports, which hold no text that is not Unicode."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def filter(self, record: logging.LogRecord) -> bool:
        self.lines.append(self.format(record).splitlines()[0])
        return False


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    """What is logged."""
    log = Log()
    monkeypatch.setattr(logging.getLogger("agentstream"), "filters", [log])
    return log


async def small_input(topology: Topology) -> None:
    async with topology.agent("planner") as planner:
        for n in range(GOOD + 1):
            await planner.send_message(stream="tasks", type="event", payload={"n": n})


async def test_a_cancellation_inside_a_handler_ends_no_worker(topology: Topology, group: Consumes) -> None:
    """The small input: a helper task of the first message is cancelled, and 20 others come behind it."""
    await small_input(topology)
    coder, tried = topology.agent("coder"), Counter[int]()

    @coder.on("event")
    async def handle(payload: dict) -> None:
        tried[payload["n"]] += 1
        if payload["n"] == 0:
            helper = asyncio.create_task(asyncio.sleep(60))
            asyncio.get_running_loop().call_soon(helper.cancel)
            await helper

    async with coder, coder.running(concurrency=2):
        await until(lambda: topology.settled(group, GOOD + 1))
        assert coder.is_consuming
    assert tried == {0: 2, **dict.fromkeys(range(1, GOOD + 1), 1)}
    (record,) = await topology.dead_letters(group)
    assert record["error"] == b"CancelledError: something that the handler waits for was cancelled"


@pytest.mark.parametrize("batch_size", [None, 1, 2])
async def test_a_handler_that_cancels_the_workers_fails_as_often_as_the_group_allows(
    topology: Topology, group: Consumes, batch_size: int | None
) -> None:
    """Handed back without an attempt, its message would come again for ever."""
    await small_input(topology)
    coder, tried = topology.agent("coder"), Counter[int]()

    async def end(numbers: list[int]) -> None:
        tried.update(numbers)
        if 0 in numbers:
            for task in asyncio.all_tasks():
                if "_Worker.work" in repr(task.get_coro()):
                    task.cancel()
            await asyncio.Event().wait()

    if batch_size is None:

        @coder.on("event")
        async def handle(payload: dict) -> None:
            await end([payload["n"]])

    else:

        @coder.on("event", batch_size=batch_size)
        async def handle_batch(payloads: list[dict]) -> None:
            await end([payload["n"] for payload in payloads])

    async with coder, coder.running(concurrency=4):
        await until(lambda: topology.settled(group, GOOD + 1))
        assert coder.is_consuming
    assert tried[0] == 2
    assert tried.keys() == set(range(GOOD + 1))


class Handled:
    """What was handled, by the number of an ending, and what it says about where that was."""

    def __init__(self, endings: dict[str, Ending]) -> None:
        self.endings = list(endings.items())
        self.tried, self.escaped = Counter[str](), set[str]()
        self._lock = threading.Lock()

    def begin(self, payload: dict[str, Any]) -> Ending:
        name, ending = self.endings[payload["n"]]
        with self._lock:
            self.tried[name] += 1
        return ending

    async def single(self, payload: dict) -> None:
        await end(self.begin(payload))

    async def batch(self, payloads: list[dict]) -> None:
        await end(self.begin(payloads[0]))

    def blocking(self, payload: dict) -> None:
        self.begin(payload).end()

    def blocking_batch(self, payloads: list[dict]) -> None:
        self.begin(payloads[0]).end()


async def runs(handled: Handled, topology: Topology, *, way: str, **how: Any) -> AsyncIterator[None]:
    coder = topology.agent("coder")
    coder.on("event", **how)(getattr(handled, way))
    async with coder:
        at_work = asyncio.create_task(coder.run(concurrency=3))
        yield
        assert not at_work.done()
        coder.stop()
        await asyncio.wait_for(at_work, 10)


async def runs_in_threads(
    handled: Handled, topology: Topology, *, way: str, **how: Any
) -> AsyncIterator[None]:
    coder = sync.Agent.connect(topology.settings("coder"))
    coder.on("event", **how)(getattr(handled, way))
    await asyncio.to_thread(coder.__enter__)
    at_work = asyncio.create_task(asyncio.to_thread(coder.run, concurrency=3))
    yield
    assert not at_work.done()
    coder.stop()
    await asyncio.wait_for(at_work, 10)
    await asyncio.to_thread(coder.__exit__)


async def iterates(handled: Handled, topology: Topology) -> AsyncIterator[None]:
    async def work() -> None:
        async for delivery in deliveries:
            name = handled.endings[delivery.payload["n"]][0]
            try:
                async with delivery:
                    await handled.single(delivery.payload)
            except BaseException:  # noqa: BLE001 - as the model says
                handled.escaped.add(name)

    async with topology.agent("coder") as coder:
        deliveries = coder.stream_consume("tasks")
        workers = [asyncio.create_task(work()) for _ in range(3)]
        yield
        assert not any(worker.done() for worker in workers)
        coder.stop()
        await asyncio.gather(*workers)


async def iterates_in_threads(handled: Handled, topology: Topology) -> AsyncIterator[None]:
    def work() -> None:
        for delivery in deliveries:
            name = handled.endings[delivery.payload["n"]][0]
            try:
                with delivery:
                    handled.blocking(delivery.payload)
            except BaseException:  # noqa: BLE001 - as the model says
                handled.escaped.add(name)

    coder = sync.Agent.connect(topology.settings("coder"))
    await asyncio.to_thread(coder.__enter__)
    deliveries = coder.stream_consume("tasks")
    workers = [asyncio.create_task(asyncio.to_thread(work)) for _ in range(3)]
    yield
    assert not any(worker.done() for worker in workers)
    coder.stop()
    await asyncio.gather(*workers)
    await asyncio.to_thread(coder.__exit__)


BATCH = {"batch_size": 1}
ENTRIES: dict[str, tuple[Callable[..., AsyncIterator[None]], dict[str, Any]]] = {
    "run": (runs, {"way": "single"}),
    "run of batches": (runs, {"way": "batch", **BATCH}),
    "run in threads": (runs, {"way": "blocking"}),
    "run of batches in threads": (runs, {"way": "blocking_batch", **BATCH}),
    "iteration": (iterates, {}),
    "sync run": (runs_in_threads, {"way": "blocking"}),
    "sync run of batches": (runs_in_threads, {"way": "blocking_batch", **BATCH}),
    "sync iteration": (iterates_in_threads, {}),
}


def possible(entry: str) -> dict[str, Ending]:
    """The endings that handlers have there."""
    if entry in ("run", "run of batches"):
        return ENDINGS | OF_ITSELF
    if entry == "iteration":
        return ENDINGS
    return {name: ending for name, ending in ENDINGS.items() if not ending.waits}


async def send_each(topology: Topology, count: int) -> None:
    async with topology.agent("planner") as planner:
        for n in range(count):
            await planner.send_message(stream="tasks", type="event", payload={"n": n})


@pytest.mark.parametrize("entry", ENTRIES)
async def test_every_ending_at_every_entry_point(
    topology: Topology, group: Consumes, log: Log, entry: str
) -> None:
    endings = possible(entry)
    handled, (work, how) = Handled(endings), ENTRIES[entry]
    await send_each(topology, len(endings))
    async with asynccontextmanager(work)(handled, topology, **how):
        await until(lambda: topology.settled(group, len(endings)))
    names = list(endings)
    dead = {
        names[n]: (record["reason"].decode(), record["error"].decode())
        for record in await topology.dead_letters(group)
        for n in [int(record["m"].rpartition(b'"n":')[2].partition(b"}")[0])]
    }
    assert dict(handled.tried) == {name: ending.attempts for name, ending in endings.items()}
    assert dead.keys() == {name for name, ending in endings.items() if ending.why != HANDLED}
    for name, (reason, error) in dead.items():
        assert reason == endings[name].reason, name
        assert endings[name].why in error, name
    failed = [ending for ending in endings.values() if ending.why != HANDLED and ending.logged]
    assert sum(": attempt " in line for line in log.lines) == sum(ending.attempts for ending in failed)
    if "iteration" in entry:
        assert handled.escaped == {name for name, ending in endings.items() if ending.escapes}


@pytest.mark.parametrize("where", ["an upcaster", "a validator"])
async def test_every_ending_of_what_reads_a_payload(
    topology: Topology, group: Consumes, log: Log, where: str
) -> None:
    """It runs before any handler, where messages are fetched: each is a dead letter at once."""
    endings = [ending for ending in ENDINGS.values() if ending.why != HANDLED and not ending.waits]
    coder, handled = topology.agent("coder"), asyncio.Event()

    def read(payload: dict[str, Any]) -> dict[str, Any]:
        if payload["n"] < len(endings):
            endings[payload["n"]].end()
        return payload

    if where == "an upcaster":
        coder.upcast("event", from_version=1)(read)

    class Checked(pydantic.BaseModel):
        n: int

        @pydantic.model_validator(mode="before")
        @classmethod
        def check(cls, value: dict[str, Any]) -> dict[str, Any]:
            return read(value)

    async def handle(event):
        handled.set()

    handle.__annotations__["event"] = Checked if where == "a validator" else dict
    coder.on("event", version=2)(handle)

    version = 2 if where == "a validator" else 1
    async with topology.agent("planner") as planner:
        for n in range(len(endings) + 1):
            await planner.send_message(stream="tasks", type="event", payload={"n": n}, schema_version=version)
    async with coder, coder.running():
        await handled.wait()
        await until(lambda: topology.settled(group, len(endings) + 1))
        assert coder.is_consuming
    reasons = Counter(record["reason"] for record in await topology.dead_letters(group))
    assert reasons == {b"InvalidPayload": len(endings)}
    assert len(log.lines) == len(endings)


@pytest.mark.parametrize("entry", ENTRIES)
async def test_stopping_ends_whatever_handlers_do_just_then(
    topology: Topology, group: Consumes, log: Log, entry: str
) -> None:
    """Asked to end at the first message, it ends; each message is settled, or anybody's with its attempts."""
    endings = possible(entry)
    handled, (work, how) = Handled(endings), ENTRIES[entry]
    await send_each(topology, len(endings))
    async with asynccontextmanager(work)(handled, topology, **how):
        await until(lambda: handled.tried)
    tried, others = Counter(handled.tried), list[tuple[int, int]]()

    async def take_over() -> None:
        async for delivery in other.stream_consume("tasks"):
            others.append((delivery.attempt, tried[handled.endings[delivery.payload["n"]][0]] + 1))
            await delivery.ack()

    async with topology.agent("coder", pod="other") as other:
        taking_over = asyncio.create_task(take_over())
        await until(lambda: topology.settled(group, len(endings)))
        other.stop()
        await taking_over
    assert all(attempt == expected for attempt, expected in others)


async def test_a_run_that_is_cancelled_hands_back_what_its_handlers_lose_by_that(
    topology: Topology, group: Consumes
) -> None:
    """The cancellation comes from outside: no attempt counts."""
    await small_input(topology)
    coder, begun = topology.agent("coder"), Counter[int]()

    @coder.on("event")
    async def handle(payload: dict) -> None:
        begun[payload["n"]] += 1
        await asyncio.Event().wait()

    async with coder:
        at_work = asyncio.create_task(coder.run(concurrency=3))
        await until(lambda: len(begun) == 3)
        at_work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await at_work
    async with topology.agent("coder", pod="other") as other, other.stream_consume("tasks") as deliveries:
        assert {(await anext(deliveries)).attempt for _ in range(GOOD + 1)} == {1}
