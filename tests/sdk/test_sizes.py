"""What is larger than the server takes is refused before it is sent, whatever the verb."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from agentstream import InvalidMessage, Message, OutgoingMessage, Reject, RequestFailed, Retry, SendFailed
from agentstream.agent import Agent
from agentstream.consuming.delivery import Delivery
from agentstream.transport.client import Client
from support.servers import Server
from support.topology import Topology, following
from support.waiting import until

LIMIT = 1 << 20
LARGE = {"text": "x" * 2 * LIMIT}


@pytest.fixture
async def declared(server: Server, wire: Client) -> AsyncIterator[Topology]:
    """`coder` consumes `tasks`; `planner` also produces to `news`. The server takes a MiB."""
    topology = Topology(wire, server.url)
    await topology.stream("tasks", "planner", max_message_bytes=16 * LIMIT)
    await topology.group("tasks", "coder", max_deliveries=3)
    await topology.stream("news", "planner", broadcast=True, max_message_bytes=16 * LIMIT)
    await topology.group("news", "auditor")
    (_, before) = await wire.call("CONFIG", "GET", "proto-max-bulk-len")
    await wire.call("CONFIG", "SET", "proto-max-bulk-len", LIMIT)
    yield topology
    await wire.call("CONFIG", "SET", "proto-max-bulk-len", before)


@pytest.fixture
async def planner(declared: Topology) -> AsyncIterator[Agent]:
    async with declared.agent("planner") as agent:
        yield agent


async def test_an_answer_that_is_too_large_is_given_up_at_once_and_the_requester_is_told(
    declared: Topology, planner: Agent
) -> None:
    handled = 0
    async with declared.agent("coder") as coder:

        @coder.on("task_request")
        async def answer(message: Message) -> dict[str, Any]:
            nonlocal handled
            handled += 1
            return LARGE

        running = asyncio.create_task(coder.run())
        async with asyncio.timeout(10):
            with pytest.raises(RequestFailed, match="the handler returned an answer that cannot be sent"):
                await planner.request(to="coder", payload={}, timeout=60)
        coder.stop()
        await running
        assert coder._write.connects == 1
    assert handled == 1


async def test_a_handler_whose_reply_is_refused_is_not_called_again(
    declared: Topology, planner: Agent
) -> None:
    handled = 0
    async with declared.agent("coder") as coder:

        @coder.on("task_request")
        async def answer(delivery: Delivery) -> None:
            nonlocal handled
            handled += 1
            await delivery.reply(LARGE if handled == 1 else {"at": math.nan})

        async with coder.running(), asyncio.timeout(10):
            for _ in range(2):
                with pytest.raises(RequestFailed) as told:
                    await planner.request(to="coder", payload={}, timeout=60)
                assert told.value.reason == "InvalidAnswer"
    assert handled == 2


VERBS: dict[str, Callable[[Agent], Awaitable[Any]]] = {
    "send_message": lambda agent: agent.send_message(to="coder", type="event", payload=LARGE),
    "send_message, beside the limit": lambda agent: agent.send_message(
        to="coder", type="event", payload={"text": "x" * LIMIT}
    ),
    "not ASCII": lambda agent: agent.send_message(
        to="coder", type="event", payload={"text": "é" * (LIMIT // 2)}
    ),
    "shed": lambda agent: agent.send_message(to="coder", type="event", payload=LARGE, on_full="shed"),
    "keyed": lambda agent: agent.send_message(to="coder", type="event", payload=LARGE, key="k", once="o"),
    "request": lambda agent: agent.request(to="coder", payload=LARGE),
    "broadcast": lambda agent: agent.broadcast(type="event", payload=LARGE),
    "notify": lambda agent: agent.notify("coder", LARGE),
}


@pytest.mark.parametrize("verb", VERBS)
async def test_every_verb_refuses_at_once_and_breaks_no_connection(planner: Agent, verb: str) -> None:
    others = [
        asyncio.create_task(planner.send_message(to="coder", type="event", payload={"n": n}))
        for n in range(9)
    ]
    async with asyncio.timeout(10):
        with pytest.raises(
            InvalidMessage, match=r"\d+ bytes are larger than the server's proto-max-bulk-len"
        ):
            await VERBS[verb](planner)
    await asyncio.gather(*others)
    assert planner._write.connects == 1


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "notify"])
async def test_what_its_stream_does_not_take_is_refused_before_anything_is_sent(
    topology: Topology, wire: Client, verb: str
) -> None:
    await topology.group("tasks", "coder")
    await topology.stream("news", "planner", broadcast=True)
    await topology.group("news", "auditor")
    async with topology.agent("planner") as agent:
        await agent.send_message(to="coder", type="event", payload={})
        with pytest.raises(
            InvalidMessage, match=r"takes 1048576 at most: send a reference .* maxMessageBytes"
        ) as e:
            await VERBS[verb](agent)
        assert e.value.reason == "TooLarge"
        payloads: list[dict[str, Any]] = [{"n": 1}, LARGE, {"n": 2}]
        with pytest.raises(SendFailed) as failed:
            await agent.send_many(OutgoingMessage(to="coder", type="event", payload=one) for one in payloads)
        assert [isinstance(one, InvalidMessage) for one in failed.value.results] == [False, True, False]
    assert (await wire.call("XLEN", "{test.tasks}"), await wire.call("XLEN", "{test.news}")) == (3, 0)


async def test_a_message_may_have_as_many_bytes_as_its_stream_takes(topology: Topology) -> None:
    await topology.group("tasks", "coder")
    async with topology.agent("planner") as agent:
        one = await agent.send_message(to="coder", type="event", payload={"text": ""})
        ((_, fields),) = await topology.wire.call("XRANGE", "{test.tasks}", one.entry, one.entry)
        room = LIMIT - len(fields[1])
        # a timestamp has more or fewer digits
        await agent.send_message(to="coder", type="event", payload={"text": "x" * (room - 20)})
        with pytest.raises(InvalidMessage):
            await agent.send_message(to="coder", type="event", payload={"text": "x" * (room + 20)})


async def test_of_a_batch_the_others_are_sent(planner: Agent, wire: Client) -> None:
    payloads: list[dict[str, Any]] = [{"n": 1}, LARGE, {"n": 2}]
    async with asyncio.timeout(10):
        with pytest.raises(SendFailed) as failed:
            await planner.send_many(
                OutgoingMessage(to="coder", type="event", payload=payload) for payload in payloads
            )
    assert [isinstance(one, InvalidMessage) for one in failed.value.results] == [False, True, False]
    assert planner._write.connects == 1
    assert await wire.call("XLEN", "{test.tasks}") == 2


async def fails(delivery: Delivery, error: Exception) -> None:
    async with delivery:
        raise error


HANDLED: dict[str, Callable[[Delivery], Awaitable[Any]]] = {
    "rejected": lambda delivery: fails(delivery, Reject("x" * 2 * LIMIT)),
    "failed": lambda delivery: fails(delivery, ValueError("x" * 2 * LIMIT)),
    "to be retried": lambda delivery: fails(delivery, Retry("é" * 2 * LIMIT)),
    "dead_letter": lambda delivery: delivery.dead_letter("x" * 2 * LIMIT),
}


@pytest.mark.parametrize("verb", HANDLED)
async def test_a_reason_is_cut_short(declared: Topology, planner: Agent, verb: str) -> None:
    await declared.stream("jobs", "planner")
    group = await declared.group("jobs", "coder", max_deliveries=1)
    await planner.send_message(stream="jobs", type="event", payload={})
    async with declared.agent("coder") as coder, coder.stream_consume("jobs") as deliveries:
        await HANDLED[verb](await following(deliveries))
        await until(lambda: declared.dead_letters(group))
        assert coder._write.connects == 1
    (record,) = await declared.dead_letters(group)
    assert 400 < len(record["reason"]) + len(record["error"]) < 1_200


async def test_an_effect_with_too_long_a_name_and_a_reply_are_refused_at_once(
    declared: Topology, planner: Agent
) -> None:
    asking = asyncio.create_task(planner.request(to="coder", payload={}))
    async with declared.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        async with asyncio.timeout(10), await following(deliveries) as delivery:
            with pytest.raises(InvalidMessage, match="proto-max-bulk-len"):
                async with delivery.once("x" * 2 * LIMIT):
                    pass
            with pytest.raises(InvalidMessage, match="proto-max-bulk-len"):
                await delivery.reply(LARGE)
            await delivery.reply({"n": 1})
        assert coder._write.connects == 1
    assert (await asking).payload == {"n": 1}


async def test_what_the_server_takes_is_sent_and_asked_for_once(planner: Agent, wire: Client) -> None:
    await wire.call("CONFIG", "SET", "proto-max-bulk-len", 8 * LIMIT)

    async def connections() -> int:
        info = (await wire.call("INFO", "stats")).decode()
        return int(info.partition("total_connections_received:")[2].split()[0])

    await planner.send_message(to="coder", type="event", payload={})
    before = await connections()
    for _ in range(3):
        await planner.send_message(to="coder", type="event", payload=LARGE)
    assert await connections() == before + 1
    await asyncio.gather(
        *(planner.send_message(to="coder", type="event", payload={"text": "x" * 7 * LIMIT}) for _ in range(3))
    )
    assert planner._write.connects == 1
    assert await wire.call("XLEN", "{test.tasks}") == 7
