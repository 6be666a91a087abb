"""Streams with contracts and signatures, as a test declares them."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from agentstream import Agent, InvalidPayload, SettingsError, json_schema_of
from agentstream.protocol.keys import default_stream_key
from agentstream.testing import Sandbox
from support.topology import body_of, following, numbers
from support.waiting import until


class Task(msgspec.Struct):
    n: int


CONTRACT = {"type": "task_request", "schema": json_schema_of(Task)}


async def send(agent: Agent, n: Any, **how: Any) -> None:
    await agent.send_message(to="coder", type="task_request", payload={"n": n}, **how)


async def test_what_violates_a_contract_is_not_sent(sandbox: Sandbox) -> None:
    await sandbox.declare_stream("tasks", producers=["planner"], contracts=[CONTRACT])
    planner = sandbox.agent("planner")
    await send(planner, 1)
    with pytest.raises(InvalidPayload, match="violates the contract"):
        await send(planner, "one")
    # a type that has none is free
    await planner.send_message(to="coder", type="event", payload={"n": 2})
    assert await numbers(sandbox.agent("coder").stream_consume("tasks"), 2) == [1, 2]


async def test_what_others_add_is_checked_before_a_handler_gets_it(sandbox: Sandbox) -> None:
    await send(sandbox.agent("planner"), "one")
    await sandbox.declare_stream("tasks", producers=["planner"], contracts=[CONTRACT])
    coder = sandbox.agent("coder")
    waiting = asyncio.create_task(anext(coder.stream_consume("tasks")))
    await sandbox.settled("tasks")
    (letter,) = await sandbox.dead_letters("tasks", group="coder")
    assert letter.reason == "ContractViolated"
    coder.stop()
    with pytest.raises(StopAsyncIteration):
        await waiting


async def test_contracts_go_when_a_stream_is_declared_without(sandbox: Sandbox) -> None:
    await sandbox.declare_stream("tasks", producers=["planner"], contracts=[{**CONTRACT, "version": 2}])
    with pytest.raises(InvalidPayload):
        await send(sandbox.agent("planner"), "one", schema_version=2)
    await sandbox.declare_stream("tasks", producers=["planner"])
    await send(sandbox.agent("planner"), "one", schema_version=2)


@pytest.mark.parametrize(
    ("contract", "why"),
    [
        ({"type": "question", "schema": {}}, "question"),
        ({"type": "event", "schema": {"type": 7}}, "the value is not valid"),
        ({"type": "event", "schema": {}, "version": 0}, ">= 1"),
        ({"type": "event", "schemas": {}}, "schemas"),
        ({"type": "event"}, "schema"),
    ],
)
async def test_what_is_no_contract_is_an_error(sandbox: Sandbox, contract: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        await sandbox.declare_stream("tasks", contracts=[contract])


async def test_on_a_signed_stream_messages_and_answers_are_signed(sandbox: Sandbox) -> None:
    await sandbox.declare_stream("tasks", producers=["planner"], signed="Require")
    planner, coder = sandbox.agent("planner"), sandbox.agent("coder")
    asking = asyncio.create_task(planner.request(to="coder", payload={"n": 1}))
    async with await following(coder.stream_consume("tasks")) as delivery:
        await delivery.reply({"n": 2})
    assert (await asking).payload == {"n": 2}


async def test_what_was_forged_is_given_up(sandbox: Sandbox) -> None:
    await sandbox.declare_stream("tasks", producers=["planner"], signed="Require")
    planner, coder = sandbox.agent("planner"), sandbox.agent("coder")
    await send(planner, 1)
    (message,) = await sandbox.messages("tasks")
    await sandbox._call(
        "XADD", default_stream_key("test", "tasks"), "*", "m", body_of(message, payload={"n": 9})
    )
    assert await numbers(coder.stream_consume("tasks"), 1) == [1]
    await until(lambda: sandbox.dead_letters("tasks", group="coder"))
    (letter,) = await sandbox.dead_letters("tasks", group="coder")
    assert letter.reason == "Unsigned"


async def test_programs_have_the_keys_also_of_streams_that_are_declared_later(sandbox: Sandbox) -> None:
    environ, orders = sandbox.environ("planner"), sandbox.environ("coder")
    await sandbox.declare_stream("tasks", producers=["planner"], signed="Require")
    async with Agent.from_env(environ) as planner, Agent.from_env(orders) as coder:
        await send(planner, 1)
        assert await numbers(coder.stream_consume("tasks"), 1) == [1]
    async with Agent.from_env(sandbox.environ("planner")) as planner:
        await send(planner, 2)
    assert await numbers(sandbox.agent("coder").stream_consume("tasks"), 1) == [2]


async def test_where_it_is_only_warned_of_what_is_not_signed_is_delivered(sandbox: Sandbox) -> None:
    await send(sandbox.agent("planner"), 1)
    await sandbox.declare_stream("tasks", producers=["planner"], signed="Warn")
    assert await numbers(sandbox.agent("coder").stream_consume("tasks"), 1) == [1]


async def test_an_agent_without_the_key_is_told_so(sandbox: Sandbox) -> None:
    await sandbox.declare_stream("tasks", producers=["planner"], signed="Require")
    keyless = msgspec.structs.replace(sandbox.settings("planner"), signing_keys={})
    async with Agent.connect(keyless) as planner:
        with pytest.raises(SettingsError, match="there is no key"):
            await send(planner, 1, timeout=0.1)
        with pytest.raises(SettingsError):
            await planner.request(to="coder", payload={}, timeout=0.1)
