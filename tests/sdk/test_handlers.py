"""Handlers: what they are called with, what becomes of what they return, and what no handler gets."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import signal
import threading
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypedDict

import msgspec
import pydantic
import pytest

from agentstream.agent import Agent
from agentstream.consuming.delivery import Delivery
from agentstream.errors import AgentStreamError, NoConsumerGroup, Reject, Retry
from agentstream.handlers.run import _Threads
from agentstream.protocol.envelope import Message
from agentstream.transport.client import Client
from support.servers import Server
from support.topology import Topology
from support.waiting import until


class Plan(msgspec.Struct):
    __schema_version__ = 2
    doc: int


class Unread(msgspec.Struct):
    doc: list[str] | set[str]


@dataclasses.dataclass
class Order:
    doc: int


class Note(TypedDict):
    doc: int


class Model(pydantic.BaseModel):
    doc: int


@pytest.fixture
async def topology(topology: Topology) -> Topology:
    """`planner` produces to `tasks`, and `coder` consumes it."""
    await topology.group("tasks", "coder")
    return topology


@asynccontextmanager
async def running(agent: Agent, **how: Any):
    """The agent's handlers at work."""
    async with agent:
        at_work = asyncio.create_task(agent.run(**how))
        try:
            yield at_work
        finally:
            agent.stop()
            await asyncio.gather(at_work, return_exceptions=True)


async def send(topology: Topology, *payloads: Any, kind: str = "task_request", **how: Any) -> None:
    async with topology.agent("planner") as planner:
        for payload in payloads:
            await planner.send_message(to="coder", stream="tasks", type=kind, payload=payload, **how)


async def records(topology: Topology, count: int = 1) -> list[tuple[str, str]]:
    """Reason and error of the coder's dead letters, once there are so many."""
    group = topology.routes["coder"].consumes[0]
    await until(lambda: _has(topology, count))
    return [
        (record["reason"].decode(), record["error"].decode()) for record in await topology.dead_letters(group)
    ]


async def _has(topology: Topology, count: int) -> bool:
    return len(await topology.dead_letters(topology.routes["coder"].consumes[0])) == count


async def settled(topology: Topology, count: int) -> None:
    group = topology.routes["coder"].consumes[0]
    await until(lambda: topology.settled(group, count))


async def test_a_handler_gets_the_payload_as_its_annotation_says(topology: Topology) -> None:
    coder, seen = topology.agent("coder"), asyncio.Queue[Any]()

    @coder.on("task_request", stream="tasks")
    async def plan(task: Plan) -> None:
        await seen.put(task)

    @coder.on("event", stream="tasks")
    async def note(order: Order) -> None:
        await seen.put(order)

    @coder.on("task_result", stream="tasks")
    async def result(model: Model) -> None:
        await seen.put(model)

    async with running(coder):
        await send(topology, Plan(1))
        assert await seen.get() == Plan(1)
        await send(topology, Order(2), kind="event")
        assert await seen.get() == Order(2)
        await send(topology, Model(doc=3), kind="task_result")
        assert await seen.get() == Model(doc=3)
        await settled(topology, 3)


class Forms:
    """A handler in every form, which remembers what it was called with."""

    def __init__(self) -> None:
        self.given: list[Any] = []

    async def payload(self, task: dict) -> None:
        self.given.append((task,))

    async def unannotated(self, task) -> None:
        self.given.append((task,))

    async def typed_dict(self, task: Note) -> None:
        self.given.append((task,))

    async def order(self, task: Order) -> None:
        self.given.append((task,))

    async def order_and_delivery(self, task: Order, delivery: Delivery) -> None:
        self.given.append((task, delivery))

    async def task_and_delivery_of_order(self, task, delivery: Delivery[Order]) -> None:
        self.given.append((task, delivery))

    async def task_and_delivery(self, task, delivery) -> None:
        self.given.append((task, delivery))

    async def delivery(self, delivery: Delivery) -> None:
        self.given.append((delivery,))

    async def delivery_of_order(self, delivery: Delivery[Order]) -> None:
        self.given.append((delivery,))

    async def message(self, message: Message) -> None:
        self.given.append((message,))

    async def keyword(self, task: dict, *, factor: int = 1) -> None:
        self.given.append((task,) * factor)

    async def __call__(self, task: dict) -> None:
        self.given.append((task,))

    def decorated(self) -> Callable[..., Any]:
        @functools.wraps(self.payload)
        def wrapped(*args: Any) -> Awaitable[None]:
            return self.payload(*args)

        return wrapped

    def all(self) -> dict[str, Callable[..., Any]]:
        names = [
            name for name in vars(Forms) if not name.startswith("_") and name not in ("decorated", "all")
        ]
        return {
            **{name: getattr(self, name) for name in names},
            "called": self,
            "partial": functools.partial(self.keyword, factor=1),
            "decorated": self.decorated(),
        }


RAW = {"doc": 7}


async def test_a_handler_takes_payload_delivery_message_or_payload_and_delivery(topology: Topology) -> None:
    forms = Forms()
    for number, (name, handler) in enumerate(forms.all().items(), 1):
        coder = topology.agent("coder")
        coder.on("task_request")(handler)
        async with running(coder):
            await send(topology, RAW)
            await settled(topology, number)
        ((first, *rest),) = forms.given
        payload = Order(7) if "order" in name else RAW
        if isinstance(first, Delivery):
            rest.append(first)
        else:
            assert (first.payload if isinstance(first, Message) else first) == payload, name
        assert [delivery.payload for delivery in rest] == [payload] * ("delivery" in name), name
        forms.given.clear()


def takes_nothing() -> None: ...
def takes_too_much(a: dict, b: Delivery, c: int) -> None: ...
def takes_any(*args: Any) -> None: ...
def takes_a_number(a: int) -> None: ...
def takes_a_keyword(a: dict, *, b: int) -> None: ...
def takes_them_the_wrong_way_round(a: Delivery, b: dict) -> None: ...
def takes_a_message_and_more(a: Message, b: Delivery) -> None: ...
def takes_two_types(a: Plan, b: Delivery[Order]) -> None: ...
def returns_a_number(a: dict) -> int: ...  # type: ignore[empty-body]
def returns_a_list_or_nothing(a: dict) -> list[Plan] | None: ...
def takes_what_cannot_be_read(a: Unread) -> None: ...
def takes_the_unknown(a: Unknown) -> None: ...  # noqa: F821


WRONG = [
    takes_nothing,
    takes_too_much,
    takes_any,
    takes_a_number,
    takes_a_keyword,
    takes_them_the_wrong_way_round,
    takes_a_message_and_more,
    takes_two_types,
    takes_what_cannot_be_read,
    returns_a_number,
    returns_a_list_or_nothing,
    takes_the_unknown,
]


@pytest.mark.parametrize("handler", WRONG, ids=lambda handler: handler.__name__)
def test_what_a_handler_cannot_take_is_said_where_it_is_declared(handler: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match=f"{handler.__name__}: "):
        offline().on("event", stream="tasks")(handler)


def offline() -> Agent:
    return Topology(None, "redis://127.0.0.1:1").agent("coder")  # type: ignore[arg-type]


async def nothing(task: dict) -> None: ...


@pytest.mark.parametrize(
    ("first", "second", "problem"),
    [
        ({"stream": "tasks"}, {"stream": "tasks"}, "event has a handler already: nothing"),
        ({}, {}, "event has a handler already"),
        ({"stream": "tasks"}, {}, "name the stream of all handlers, or of none"),
        ({}, {"stream": "tasks"}, "name the stream of all handlers, or of none"),
        ({}, {"type": "wish"}, "a message is a task_request, task_result, event, not wish"),
        ({}, {"type": "task_result", "batch_size": 0}, "must be positive"),
        ({}, {"type": "task_result", "max_wait": 0}, "must be positive"),
        ({}, {"type": "task_result", "version": 0}, "versions are counted from 1"),
    ],
)
def test_handlers_that_contradict_each_other_or_make_no_sense_are_refused(
    first: dict[str, Any], second: dict[str, Any], problem: str
) -> None:
    coder = offline()
    coder.on("event", **first)(nothing)
    with pytest.raises(ValueError, match=problem):
        coder.on(second.pop("type", "event"), **second)(nothing)


def returns_an_awaitable(a: dict) -> Awaitable[None]: ...  # type: ignore[empty-body]
def returns_a_plan_or_nothing(a: dict) -> Plan | None: ...
def returns_anything(a: dict) -> Any: ...


@pytest.mark.parametrize("handler", [returns_an_awaitable, returns_a_plan_or_nothing, returns_anything])
def test_a_handler_may_return_what_can_be_an_answer(handler: Callable[..., Any]) -> None:
    assert offline().on("event")(handler) is handler


def test_the_same_type_may_have_handlers_on_several_streams() -> None:
    coder = offline()
    coder.on("event", stream="tasks")(nothing)
    assert coder.on("event", stream="news")(nothing) is nothing


def test_a_message_is_taken_whatever_its_version() -> None:
    async def handle(message: Message) -> None: ...

    with pytest.raises(TypeError, match="a handler of messages gets all versions"):
        offline().on("event", version=2)(handle)


async def test_what_a_handler_returns_is_the_answer(topology: Topology) -> None:
    coder = topology.agent("coder")

    @coder.on("task_request")
    async def plan(task: Plan) -> Order:
        return Order(task.doc + 1)

    async with running(coder), topology.agent("planner") as planner:
        answer = await planner.request(to="coder", payload=Plan(1))
        await settled(topology, 1)
    assert answer.payload == {"doc": 2}


async def test_without_a_return_value_the_handler_answers_itself_or_not_at_all(topology: Topology) -> None:
    coder = topology.agent("coder")

    @coder.on("task_request")
    async def plan(delivery: Delivery[Plan]) -> None:
        await delivery.reply(Plan(delivery.payload.doc + 1))

    async with running(coder), topology.agent("planner") as planner:
        answer = await planner.request(to="coder", payload=Plan(1))
    assert (answer.payload, answer.schema_version) == ({"doc": 2}, 2)


async def test_a_message_without_a_handler_is_a_dead_letter(topology: Topology) -> None:
    coder = topology.agent("coder")
    coder.on("event")(nothing)
    await send(topology, {}, kind="task_result")
    async with running(coder):
        ((reason, error),) = await records(topology)
    assert reason == "NoHandler"
    assert error == "no handler takes task_result; there are handlers of event"


async def test_a_payload_that_does_not_fit_is_a_dead_letter_that_says_where(topology: Topology) -> None:
    coder, seen = topology.agent("coder"), asyncio.Queue[Any]()

    @coder.on("event")
    async def note(note: Order) -> None:
        await seen.put(note)

    await send(topology, {"doc": "seven"}, {"doc": 7}, kind="event")
    async with running(coder):
        assert await seen.get() == Order(7)
        ((reason, error),) = await records(topology)
    assert reason == "InvalidPayload"
    assert error == "the payload is no Order: Expected `int`, got `str` - at `$.doc`"


async def test_a_typed_iteration_yields_typed_payloads(topology: Topology) -> None:
    await send(topology, {"doc": "seven"}, {"doc": 7}, schema_version=2)
    async with topology.agent("coder") as coder:
        async for delivery in coder.stream_consume("tasks", payload=Plan):
            async with delivery:
                assert delivery.payload == Plan(7)
            break
        assert [reason for reason, _ in await records(topology)] == ["InvalidPayload"]


async def test_an_iteration_without_a_type_yields_the_objects_themselves(topology: Topology) -> None:
    await send(topology, RAW, schema_version=7)
    async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        delivery = await anext(deliveries)
        assert delivery.payload == delivery.message.payload == RAW


async def test_older_payloads_are_brought_to_the_version_of_the_handler(topology: Topology) -> None:
    coder, seen = topology.agent("coder"), asyncio.Queue[Any]()

    @coder.upcast("task_request", from_version=1)
    def name_the_document(payload: dict[str, Any]) -> dict[str, Any]:
        payload["doc"] = payload.pop("document")
        return payload

    @coder.on("task_request")
    async def plan(task: Plan, delivery: Delivery[Plan]) -> None:
        await seen.put((task, delivery.message.payload))

    await send(topology, {"document": 1})
    await send(topology, Plan(2))
    async with running(coder):
        assert await seen.get() == (Plan(1), {"document": 1})
        assert await seen.get() == (Plan(2), {"doc": 2})


async def test_a_version_that_nobody_knows_is_a_dead_letter(topology: Topology) -> None:
    coder = topology.agent("coder")

    @coder.on("task_request")
    async def plan(task: Plan) -> None: ...

    await send(topology, {"doc": 1}, schema_version=3)
    await send(topology, {"doc": 1})
    async with running(coder):
        found = await records(topology, 2)
    assert sorted(found) == [
        ("UnknownVersion", "task_request has version 1 of its payload, and version 2 can be handled"),
        ("UnknownVersion", "task_request has version 3 of its payload, and version 2 can be handled"),
    ]


async def test_a_handler_that_fails_is_tried_again(topology: Topology) -> None:
    coder, attempts = topology.agent("coder"), []

    @coder.on("event")
    async def flaky(task: dict, delivery: Delivery) -> None:
        attempts.append(delivery.attempt)
        if delivery.attempt == 1:
            raise RuntimeError("not today")
        if delivery.attempt == 2:
            raise Retry("not yet", after=0.01)

    await send(topology, {}, kind="event")
    async with running(coder):
        await settled(topology, 1)
    assert attempts == [1, 2, 3]


async def test_a_handler_that_blocks_runs_in_a_thread_with_as_many_as_are_wanted(topology: Topology) -> None:
    coder, together = topology.agent("coder"), threading.Barrier(20)

    @coder.on("event")
    def work(task: dict) -> None:
        together.wait(10)
        if task["n"] == 3:
            raise Reject("no threes")

    await send(topology, *({"n": n} for n in range(20)), kind="event")
    async with running(coder, concurrency=20):
        await settled(topology, 20)
        assert [reason for reason, _ in await records(topology)] == ["no threes"]


async def test_a_handler_in_a_thread_may_fail_in_any_way(topology: Topology) -> None:
    coder = topology.agent("coder")

    @coder.on("event")
    def work(task: dict) -> None:
        next(iter(()))

    await topology.group("tasks", "coder", max_deliveries=1)
    topology.routes["coder"] = type(topology.routes["coder"])((), topology.routes["coder"].consumes[1:])
    await topology.write_routes()
    await send(topology, {}, kind="event")
    async with running(coder):
        ((reason, error),) = await records(topology)
    assert (reason, error) == ("MaxDeliveries", "RuntimeError: the handler raised StopIteration")


async def test_a_run_that_is_cancelled_waits_for_what_threads_do(topology: Topology) -> None:
    coder, begun, go_on = topology.agent("coder"), threading.Event(), threading.Event()

    @coder.on("event")
    def work(task: dict) -> None:
        begun.set()
        go_on.wait(10)

    await send(topology, {}, kind="event")
    async with coder:
        at_work = asyncio.create_task(coder.run())
        await asyncio.to_thread(begun.wait, 10)
        at_work.cancel()
        done, _ = await asyncio.wait({at_work}, timeout=0.05)
        assert not done
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await at_work
    await settled(topology, 1)


async def test_handlers_of_several_streams_run_in_one_process(topology: Topology) -> None:
    await topology.stream("news", "planner")
    await topology.group("news", "coder")
    coder, seen = topology.agent("coder"), asyncio.Queue[Any]()

    @coder.on("event", stream="news")
    async def news(item: dict) -> None:
        await seen.put(("news", item))

    @coder.on("event", stream="tasks", group="coder")
    async def task(item: dict) -> None:
        await seen.put(("tasks", item))

    async with running(coder), topology.agent("planner") as planner:
        for stream in ("news", "tasks"):
            await planner.send_message(to="coder", stream=stream, type="event", payload={"on": stream})
            assert await seen.get() == (stream, {"on": stream})


async def test_the_stream_may_only_be_left_out_where_there_is_one(
    topology: Topology, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentstream.consuming.session._ROUTE_PATIENCE", 0.05)
    await topology.stream("news", "planner")
    await topology.group("news", "coder")
    coder = topology.agent("coder")
    coder.on("event")(nothing)
    async with coder:
        with pytest.raises(NoConsumerGroup, match=r"several groups: tasks \(group coder\), news .*stream="):
            await coder.run()


async def test_who_consumes_nothing_cannot_run_handlers(
    topology: Topology, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentstream.consuming.session._ROUTE_PATIENCE", 0.05)
    nobody = topology.agent("nobody")
    nobody.on("event")(nothing)
    async with nobody:
        with pytest.raises(
            NoConsumerGroup, match="nobody consumes no group of any stream; it consumes nothing"
        ):
            await nobody.run()


async def test_what_is_consumed_already_cannot_run(topology: Topology) -> None:
    coder = topology.agent("coder")
    coder.on("event")(nothing)
    async with running(coder):
        await send(topology, {}, kind="event")
        await settled(topology, 1)
        with pytest.raises(AgentStreamError, match="consumes tasks already"):
            await coder.run()


async def test_without_handlers_there_is_nothing_to_run() -> None:
    with pytest.raises(ValueError, match="there are no handlers"):
        await offline().run()
    coder = offline()
    coder.on("event")(nothing)
    with pytest.raises(ValueError, match="concurrency must be at least 1"):
        await coder.run(concurrency=0)


async def test_a_run_ends_at_sigterm_after_what_is_in_hand(topology: Topology) -> None:
    coder = Agent(topology.settings("coder"), ends_on_signals=True)
    begun, go_on = asyncio.Event(), asyncio.Event()

    @coder.on("event")
    async def work(task: dict) -> None:
        begun.set()
        await go_on.wait()

    await send(topology, {}, {}, kind="event")
    async with coder:
        at_work = asyncio.create_task(coder.run(concurrency=1))
        await begun.wait()
        signal.raise_signal(signal.SIGTERM)
        await asyncio.sleep(0)
        go_on.set()
        await asyncio.wait_for(at_work, 10)
    group = topology.routes["coder"].consumes[0]
    assert (await topology.stats(group))["settled"] == 1


async def test_a_run_after_the_end_ends_at_once(topology: Topology) -> None:
    coder = topology.agent("coder")
    coder.on("event")(nothing)
    async with coder:
        coder.stop()
        await coder.run()


async def test_what_a_thread_does_counts_though_its_deadline_is_over(server: Server, wire: Client) -> None:
    topology = Topology(wire, server.url)
    await topology.stream("tasks", "planner")
    group = await topology.group("tasks", "coder", deadline=50, max_deliveries=1)
    coder, go_on, deliveries = topology.agent("coder"), threading.Event(), list[Delivery]()

    @coder.on("event")
    def work(delivery: Delivery) -> None:
        deliveries.append(delivery)
        go_on.wait(10)

    await send(topology, {}, kind="event")
    async with running(coder):
        await until(lambda: deliveries and deliveries[0]._attempt.interruption is not None)
        go_on.set()
        await settled(topology, 1)
    assert (await topology.stats(group))["acked"] == 1


async def test_who_cancels_twice_gives_a_thread_up() -> None:
    threads, begun, go_on = _Threads(1), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        go_on.wait(10)

    working = asyncio.create_task(threads.run(work))
    try:
        await asyncio.to_thread(begun.wait, 10)
        working.cancel()
        done, _ = await asyncio.wait({working}, timeout=0.05)
        assert not done
        working.cancel()
        with pytest.raises(asyncio.CancelledError):
            await working
    finally:
        go_on.set()
        threads.close()
