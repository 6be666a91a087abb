"""Mistakes of callers: each is one clear line that says what to write instead, and nothing is sent."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pydantic
import pytest

from agentstream import AgentStreamError, InvalidMessage, InvalidPayload, NoRoute, OutgoingMessage
from agentstream.agent import Agent
from agentstream.sync import Agent as SyncAgent
from agentstream.transport.client import Client
from support.servers import Server
from support.topology import Topology
from support.waiting import until


@pytest.fixture
async def declared(topology: Topology) -> Topology:
    """`planner` produces to `tasks`, which `coder` consumes, and to `news`."""
    await topology.group("tasks", "coder")
    await topology.stream("news", "planner", broadcast=True)
    return topology


EVENT: dict[str, Any] = {"type": "event", "payload": {}}
SENDS: dict[str, Callable[..., Awaitable[Any]]] = {
    "send_message": lambda agent, **o: agent.send_message(**{"to": "coder", **EVENT, **o}),
    "send_many": lambda agent, timeout=30, **o: agent.send_many(
        [OutgoingMessage(**{"to": "coder", **EVENT, **o})], timeout=timeout
    ),
    "broadcast": lambda agent, **o: agent.broadcast(**{**EVENT, **o}),
    "request": lambda agent, **o: agent.request(**{"to": "coder", "payload": {}, **o}),
}
Wrong = tuple[dict[str, Any], type[Exception], str]
WRONG: list[Wrong] = [
    ({"timeout": None}, TypeError, "timeout= is a number of seconds, or math.inf to wait for ever; not None"),
    ({"timeout": "5"}, TypeError, "timeout= is a number of seconds, .*; not '5'"),
    ({"timeout": math.nan}, TypeError, "timeout= is a number of seconds"),
    ({"timeout": dt.timedelta(seconds=5)}, TypeError, "timeout= is a number of seconds"),
    ({"type": "task"}, InvalidMessage, "type= is one of task_request, task_result, event, not 'task'"),
    ({"to": "Coder"}, InvalidMessage, "to= is 'Coder', and names of agents .* did you mean 'coder'"),
    ({"to": "the coder"}, InvalidMessage, "to= is 'the coder', and names of agents .* hyphens$"),
    ({"to": ""}, InvalidMessage, "to= is '', and names of agents"),
    ({"to": 7}, InvalidMessage, "to= is 7, and names of agents"),
    ({"expires_at": 1_900_000_000_000}, InvalidMessage, "expires_at= is seconds .* looks like milliseconds"),
    ({"expires_at": math.nan}, InvalidMessage, "expires_at= is seconds since 1970; nan is no time"),
    (
        {"expires_at": dt.datetime(2030, 1, 1, tzinfo=dt.UTC)},
        InvalidMessage,
        "expires_at= is seconds .*; not",
    ),
    ({"payload": {"at": math.nan}}, InvalidMessage, "NaN"),
]


@pytest.mark.parametrize("verb", SENDS)
@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: str(wrong[0]))
async def test_every_verb_says_at_once_what_is_wrong(
    declared: Topology, wire: Client, verb: str, wrong: Wrong
) -> None:
    options, error, text = wrong
    async with declared.agent("planner") as planner, asyncio.timeout(5):
        with pytest.raises(error, match=text) as raised:
            await SENDS[verb](planner, **options)
    assert "\n" not in str(raised.value)
    assert await wire.call("XLEN", "{test.tasks}") == await wire.call("XLEN", "{test.news}") == 0


async def test_so_do_the_other_verbs(declared: Topology) -> None:
    async with declared.agent("planner") as planner:
        for send in (planner.send_message, planner.broadcast):
            with pytest.raises(ValueError, match="on_full= is one of wait, raise, shed, not 'drop'"):
                await send(**EVENT, stream="news", on_full="drop")  # type: ignore[arg-type]
        with pytest.raises(InvalidMessage, match="did you mean 'coder'"):
            await planner.notify("Coder", {})
        receipt = await planner.broadcast(**EVENT)
        with pytest.raises(TypeError, match="timeout= is a number of seconds"):
            await receipt.wait(timeout=None)  # type: ignore[arg-type]


@pytest.mark.parametrize("one", [{"to": "coder", **EVENT}, "text", None, 7])
async def test_many_messages_are_objects(declared: Topology, wire: Client, one: Any) -> None:
    good = OutgoingMessage(to="coder", **EVENT)
    async with declared.agent("planner") as planner:
        with pytest.raises(InvalidMessage, match=r"is an OutgoingMessage\(to=…, type=…, payload=…\), not "):
            await planner.send_many([good, one])
    assert await wire.call("XLEN", "{test.tasks}") == 0


async def test_who_waits_for_ever_for_an_answer_sets_no_expiry(declared: Topology, wire: Client) -> None:
    async with declared.agent("planner") as planner:
        asking = asyncio.create_task(planner.request(to="coder", payload={}, timeout=math.inf))
        await until(lambda: wire.call("XLEN", "{test.tasks}"))
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)


class Model(pydantic.BaseModel):
    data: bytes


class Odd(pydantic.BaseModel):
    @pydantic.model_serializer
    def refuse(self) -> dict[str, Any]:
        raise KeyError("no such field")


@pytest.mark.parametrize("payload", [Model(data=b"\xff\xfe"), Odd()], ids=["bytes", "serializer"])
async def test_a_model_that_is_no_json_is_an_invalid_payload(declared: Topology, payload: object) -> None:
    async with declared.agent("planner") as planner:
        with pytest.raises(InvalidPayload, match="cannot be serialized"):
            await planner.send_message(to="coder", type="event", payload=payload)


VERBS: dict[str, Callable[[Agent], Awaitable[Any]]] = {
    **SENDS,
    "notify": lambda agent: agent.notify("coder", {}),
    "next delivery": lambda agent: anext(agent.stream_consume("tasks")),
}


@pytest.mark.parametrize("verb", VERBS)
async def test_a_second_event_loop_is_told_so_and_sends_nothing(
    declared: Topology, wire: Client, verb: str
) -> None:
    await declared.group("tasks", "planner")
    async with declared.agent("planner") as planner:
        await planner.send_message(to="coder", **EVENT)

        async def use() -> Any:
            async with asyncio.timeout(5):
                return await VERBS[verb](planner)

        with pytest.raises(AgentStreamError, match="belongs to another event loop, so nothing was sent"):
            await asyncio.to_thread(asyncio.run, use())
        await planner.send_message(to="coder", **EVENT)
    assert await wire.call("XLEN", "{test.tasks}") == 2


async def test_a_sync_agent_says_that_it_is_one(declared: Topology) -> None:
    agent = SyncAgent.connect(declared.settings("planner"))
    with pytest.raises(TypeError, match="entered by `with`; for `async with`, use"):
        async with agent:
            pytest.fail("it was entered")


@pytest.mark.parametrize(("to", "meant"), [("codr", "; did you mean coder?"), ("zzz", "")])
async def test_a_wrong_addressee_is_logged_within_a_second(
    declared: Topology, caplog: pytest.LogCaptureFixture, to: str, meant: str
) -> None:
    caplog.set_level(logging.WARNING, "agentstream")
    async with declared.agent("planner") as planner:
        began = time.monotonic()
        sending = asyncio.create_task(planner.send_message(to=to, timeout=1.5, **EVENT))
        text = f"no group of {to} reads on what planner produces to: tasks, news; it consumes nothing{meant}"
        await until(lambda: text in caplog.text)
        assert not sending.done()
        with pytest.raises(NoRoute) as raised:
            await sending
    assert time.monotonic() - began < 5
    assert str(raised.value) == text
    assert caplog.text.count("waiting") == 1


async def test_who_may_not_list_names_gets_no_suggestion(
    server: Server, declared: Topology, wire: Client
) -> None:
    await wire.call("ACL", "SETUSER", "terse", "on", ">secret", "~*", "&*", "+@all", "-hkeys")
    url = server.url.replace("//", "//terse:secret@")
    async with declared.agent("planner", url=url) as planner:
        with pytest.raises(NoRoute, match=r"it consumes nothing$"):
            await planner.send_message(to="codr", timeout=0.3, **EVENT)
