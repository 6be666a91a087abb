"""Sending many messages: few round trips, in order, and for each whether it was sent."""

from __future__ import annotations

import asyncio

import pytest

from agentstream.errors import Backpressure, InvalidMessage, MessageExpired, NoRoute, SendFailed
from agentstream.protocol.envelope import decode
from agentstream.sending.outgoing import OutgoingMessage
from agentstream.sent import SentMessage
from agentstream.testing import Faults
from agentstream.transport.client import Client
from support.topology import Topology, fields_of
from support.waiting import until


@pytest.fixture
async def declared(topology: Topology) -> Topology:
    """`planner` produces to `tasks`, which `coder` consumes, and to the broadcast stream `news`."""
    await topology.stream("news", "planner", broadcast=True)
    await topology.group("tasks", "coder")
    return topology


async def test_many_messages_take_few_round_trips_and_keep_their_order(
    declared: Topology, wire: Client
) -> None:
    async with declared.agent("planner") as planner:
        before = planner._write.round_trips
        sent = await planner.send_many(
            OutgoingMessage(to="coder", type="event", payload={"n": n}, schema_version=2)
            for n in range(1_000)
        )
        assert planner._write.round_trips - before < 8
        assert await planner.send_many([]) == []
    entries = await wire.call("XRANGE", "{test.tasks}", "-", "+")
    assert [one.entry for one in sent] == [entry.decode() for entry, _ in entries]
    messages = [decode(fields_of(fields)["m"]) for _, fields in entries]
    assert [message.payload["n"] for message in messages] == list(range(1_000))
    assert [message.id for message in messages] == [one.id for one in sent]
    assert {message.schema_version for message in messages} == {2}


async def test_of_many_messages_it_is_said_which_were_sent(declared: Topology, wire: Client) -> None:
    await wire.call("SET", "{test.tasks}:gate", 2)
    many = [
        OutgoingMessage(to="coder", type="event", payload={"n": 0}),
        OutgoingMessage(to="nobody", type="event", payload={"n": 1}),
        OutgoingMessage(to="coder", type="event", payload={"n": 2}),
        OutgoingMessage(to="coder", type="event", payload={"n": 3}),
        OutgoingMessage(to="coder", type="event", payload={"n": 4}, expires_at=1),
        OutgoingMessage(to="broadcast", type="event", payload={"n": 5}),
    ]
    async with declared.agent("planner") as planner:
        with pytest.raises(SendFailed, match="3 of 6 messages were not sent: no group of nobody") as caught:
            await planner.send_many(many, timeout=0.3)
    expected = [SentMessage, NoRoute, SentMessage, Backpressure, MessageExpired, SentMessage]
    assert [type(result) for result in caught.value.results] == expected
    assert await numbers_on(wire) == [0, 2]


async def test_many_messages_wait_for_room(declared: Topology, wire: Client) -> None:
    await wire.call("SET", "{test.tasks}:gate", 10)
    async with declared.agent("planner") as planner:
        sending = asyncio.create_task(
            planner.send_many(OutgoingMessage(to="coder", type="event", payload={"n": n}) for n in range(700))
        )
        await until(lambda: wire.call("XLEN", "{test.tasks}"))
        assert not sending.done()
        await wire.call("SET", "{test.tasks}:gate", 1_000)
        await sending
    assert sorted(await numbers_on(wire)) == list(range(700))


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (OutgoingMessage(to="No Agent", type="event", payload={}), InvalidMessage),
        (OutgoingMessage(type="event", payload={}), NoRoute),
        (OutgoingMessage(to="coder", type="event", payload={}, once="x" * 513), InvalidMessage),
    ],
)
async def test_of_many_messages_none_is_sent_if_one_does_not_fit(
    declared: Topology, wire: Client, bad: OutgoingMessage, error: type[Exception]
) -> None:
    async with declared.agent("planner") as planner:
        with pytest.raises(error):
            await planner.send_many([OutgoingMessage(to="coder", type="event", payload={}), bad])
    assert await wire.call("XLEN", "{test.tasks}") == 0


async def test_whoever_is_cancelled_while_sending_many_sends_no_more(
    proxy: Faults, declared: Topology, wire: Client
) -> None:
    async with declared.agent("planner", url=proxy.url) as planner:
        await planner.send_message(to="coder", type="event", payload={"n": 0})
        with proxy.hold():
            sending = asyncio.create_task(
                planner.send_many(
                    OutgoingMessage(to="coder", type="event", payload={"n": n}) for n in range(1, 200)
                )
            )
            await until(lambda: planner._sender._batchers["{test.tasks}"]._in_flight)
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
        await planner.send_message(to="coder", type="event", payload={"n": 200})
    assert await numbers_on(wire) == [*range(65), 200]


async def numbers_on(wire: Client, key: str = "{test.tasks}") -> list[int]:
    """The numbers of the messages on a stream."""
    entries = await wire.call("XRANGE", key, "-", "+")
    return [decode(fields_of(fields)["m"]).payload["n"] for _, fields in entries]
