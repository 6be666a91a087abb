"""What a handler returns: once, whatever it is, and nobody waits for what cannot be an answer."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import msgspec
import pydantic
import pytest

from agentstream.agent import Agent
from agentstream.errors import RequestFailed
from agentstream.protocol.routes import Consumes
from support.topology import Topology
from support.waiting import until


class Nested:
    """What JSON cannot hold."""


@dataclasses.dataclass
class Holds:
    value: Any


class Plan(msgspec.Struct):
    doc: int


class Listed(msgspec.Struct, array_like=True):
    doc: int


class Model(pydantic.BaseModel):
    doc: int


class Unserializable(pydantic.BaseModel):
    doc: int = 0

    @pydantic.model_serializer
    def fail(self) -> dict[str, Any]:
        raise LookupError("not today")


def numbers() -> Any:
    yield 1


NO_PAYLOADS: dict[str, Callable[[], Any]] = {
    "True": lambda: True,
    "False": lambda: False,
    "a count": lambda: 7,
    "a list": lambda: [Plan(1)],
    "a text": lambda: "done",
    "bytes": lambda: b"\xff",
    "a generator": numbers,
    "a class": lambda: Plan,
    "a number that is none": lambda: float("nan"),
    "an object": Nested,
    "an error": lambda: ValueError("returned, not raised"),
}
UNFIT: dict[str, Callable[[], Any]] = {
    "a dict with an object": lambda: {"value": Nested()},
    "a dict with a number that is none": lambda: {"value": float("nan")},
    "a dataclass with an object": lambda: Holds(Nested()),
    "a dict with a text that is not Unicode": lambda: {"value": "\ud800"},
    "a struct that is a list": lambda: Listed(1),
    "a model that cannot be serialized": Unserializable,
}
ANSWERS: dict[str, Callable[[], Any]] = {
    "an empty dict": dict,
    "a dict": lambda: {"doc": 1},
    "a struct": lambda: Plan(1),
    "a dataclass": lambda: Holds(1),
    "a model": lambda: Model(doc=1),
}
EVERY = NO_PAYLOADS | UNFIT | ANSWERS


@pytest.fixture
async def group(topology: Topology) -> Consumes:
    """`coder` consumes `tasks`, with three attempts."""
    return await topology.group("tasks", "coder", max_deliveries=3, lease=60_000)


class Returning:
    """A handler that returns what the message names, and counts."""

    def __init__(self, agent: Agent, **how: Any) -> None:
        self.returned: list[str] = []
        agent.on("task_request", **how)(self.handle if how == {} else self.handle_batch)

    async def handle(self, payload: dict):
        self.returned.append(payload["name"])
        return EVERY[payload["name"]]()

    async def handle_batch(self, payloads: list[dict]):
        return [await self.handle(payload) for payload in payloads]


@pytest.mark.parametrize("name", EVERY)
async def test_who_waits_for_an_answer_gets_it_or_is_told_at_once(
    topology: Topology, group: Consumes, name: str
) -> None:
    coder = topology.agent("coder")
    handler = Returning(coder)
    async with coder, coder.running(), topology.agent("planner") as planner:
        asking = planner.request(to="coder", payload={"name": name}, timeout=30)
        if name in ANSWERS:
            assert (await asyncio.wait_for(asking, 5)).type == "task_result"
        else:
            with pytest.raises(RequestFailed) as told:
                await asyncio.wait_for(asking, 5)
            assert told.value.reason == "InvalidAnswer"
        await until(lambda: topology.settled(group, 1))
    assert handler.returned == [name]
    errors = [record["error"] for record in await topology.dead_letters(group)]
    assert [error[:21] for error in errors] == [b"the handler returned "] * (name not in ANSWERS)


async def test_a_value_that_nobody_asked_for_is_ignored_with_one_warning(
    topology: Topology, group: Consumes, caplog: pytest.LogCaptureFixture
) -> None:
    coder = topology.agent("coder")
    handler = Returning(coder)
    async with topology.agent("planner") as planner:
        for name in NO_PAYLOADS:
            await planner.send_message(to="coder", type="task_request", payload={"name": name})
    with caplog.at_level(logging.WARNING, "agentstream"):
        async with coder, coder.running(concurrency=1):
            await until(lambda: topology.settled(group, len(NO_PAYLOADS)))
    assert handler.returned == list(NO_PAYLOADS)
    assert (await topology.stats(group))["acked"] == len(NO_PAYLOADS)
    (warning,) = caplog.messages
    assert "the handler returned bool, which is ignored here and from now on" in warning


async def test_what_is_meant_as_a_result_and_cannot_be_sent_is_a_dead_letter_at_once(
    topology: Topology, group: Consumes
) -> None:
    coder = topology.agent("coder")
    handler = Returning(coder)
    async with topology.agent("planner") as planner:
        for name in UNFIT:
            await planner.send_message(to="coder", type="task_request", payload={"name": name})
    async with coder, coder.running(concurrency=1):
        await until(lambda: topology.settled(group, len(UNFIT)))
    assert handler.returned == list(UNFIT)
    errors = [record["error"].decode() for record in await topology.dead_letters(group)]
    assert len(errors) == len(UNFIT)
    assert all(error.startswith("the handler returned an answer that cannot be sent: ") for error in errors)


async def test_what_is_still_to_be_awaited_is_awaited(topology: Topology, group: Consumes) -> None:
    """As where an `await` was forgotten: nothing would have been done, and the message acknowledged."""
    coder = topology.agent("coder")

    async def double(doc: int) -> dict[str, int]:
        return {"doc": 2 * doc}

    @coder.on("task_request")
    async def handle(payload: dict):
        return double(payload["doc"])

    async with coder, coder.running(), topology.agent("planner") as planner:
        answer = await planner.request(to="coder", payload={"doc": 4}, timeout=10)
        await until(lambda: topology.settled(group, 1))
    assert answer.payload == {"doc": 8}


async def test_a_group_without_dead_letters_repeats_no_effect_either(topology: Topology) -> None:
    group = await topology.group("tasks", "coder", dead_letters=False)
    coder = topology.agent("coder")
    handler = Returning(coder)
    async with coder, coder.running(), topology.agent("planner") as planner:
        with pytest.raises(RequestFailed, match="the handler returned an answer that cannot be sent"):
            await asyncio.wait_for(planner.request(to="coder", payload={"name": "True"}), 5)
        await until(lambda: topology.settled(group, 1))
    assert handler.returned == ["True"]
    assert (await topology.stats(group))["acked"] == 1


async def test_what_a_handler_of_batches_returns_is_ignored_with_one_warning(
    topology: Topology, group: Consumes, caplog: pytest.LogCaptureFixture
) -> None:
    coder = topology.agent("coder")
    handler = Returning(coder, batch_size=1)
    async with topology.agent("planner") as planner:
        for name in ("True", "a dict"):
            await planner.send_message(to="coder", type="task_request", payload={"name": name})
    with caplog.at_level(logging.WARNING, "agentstream"):
        async with coder, coder.running(concurrency=1):
            await until(lambda: topology.settled(group, 2))
    assert handler.returned == ["True", "a dict"]
    assert caplog.messages == [
        "tasks: the handler returned list, which is ignored: a handler of batches uses delivery.reply"
    ]


def yields(payload: dict):
    yield payload


async def yields_later(payload: dict):
    yield payload


@pytest.mark.parametrize("handler", [yields, yields_later])
def test_a_generator_is_no_handler(handler: Any) -> None:
    """Calling it would run nothing of it."""
    agent = Topology(None, "redis://127.0.0.1:1").agent("coder")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=f"{handler.__name__}: it is a generator"):
        agent.on("event")(handler)
