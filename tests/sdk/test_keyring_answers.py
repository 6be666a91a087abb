"""Answers to requests on signed streams: which count, and what becomes of the others."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agentstream import Message, NoReply, Reject, RequestFailed
from agentstream.agent import Agent
from agentstream.consuming.delivery import Delivery
from agentstream.errors import SettingsError
from agentstream.protocol.envelope import encode
from agentstream.protocol.keys import reply_key
from agentstream.protocol.signatures import sign
from agentstream.telemetry.counters import ANSWERS_UNVERIFIED
from agentstream.transport.client import Client
from support.servers import Server
from support.signed import KEY, NEW, OLD, Signed
from support.topology import NAMESPACE, Topology, fields_of, following
from support.waiting import until


@pytest.fixture
async def signed(server: Server, wire: Client, tmp_path: Path) -> Signed:
    return Signed(Topology(wire, server.url), tmp_path)


@pytest.fixture
async def strict(signed: Signed) -> Signed:
    """Signatures are required, and both have the key."""
    await signed.declare("Require", max_deliveries=1)
    for agent in ("planner", "coder"):
        signed.give(agent, OLD)
    return signed


@pytest.fixture
async def planner(strict: Signed) -> AsyncIterator[Agent]:
    async with strict.agent("planner") as agent:
        yield agent


def ask(planner: Agent, timeout: float = 30.0) -> asyncio.Task[Message]:
    return asyncio.create_task(planner.request(to="coder", payload={"n": 1}, timeout=timeout))


def answer_to(request: Message, n: int) -> bytes:
    """An answer as `coder` would make it."""
    return encode(
        Message(
            v=1,
            id=f"0b0e9d3e-4b55-4f6e-8f1c-{n:012d}",
            sender="coder",
            to="planner",
            type="task_result",
            payload={"n": n},
            timestamp=1.0,
            correlation_id=request.id,
        )
    )


def count(agent: Agent, reason: str) -> int:
    return agent._counters.of(ANSWERS_UNVERIFIED, "tasks", reason)


async def put(signed: Signed, delivery: Delivery, *fields: bytes | str) -> str:
    """Adds to the stream of answers what nobody else would. Returns its key."""
    key = delivery.message.reply_to
    assert key is not None
    await signed.topology.wire.call("XADD", key, "*", *fields)
    return key


async def test_an_answer_is_signed_for_the_stream_of_whoever_asked(strict: Signed, planner: Agent) -> None:
    async with strict.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        asking = ask(planner)
        async with await following(deliveries) as delivery:
            await delivery.reply({"n": 2})
        assert (await asking).payload == {"n": 2}
        # nobody reads this one
        key = reply_key(NAMESPACE, "planner", "0123456789abcdef" * 2)
        await planner.send_message(to="coder", type="task_request", payload={}, reply_to=key)
        async with await following(deliveries) as delivery:
            await delivery.reply({"n": 2})
    ((_, fields),) = await strict.topology.wire.call("XRANGE", key, "-", "+")
    answer = fields_of(fields)
    at = float(answer["s"].split(b":")[1])
    assert answer["s"] == sign(OLD, key, answer["m"], at)
    assert abs(at - time.time()) < 60


async def test_what_is_no_valid_answer_is_dropped_and_counted(strict: Signed, planner: Agent) -> None:
    async with strict.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        asking = ask(planner)
        delivery = await following(deliveries)
        now, key = time.time(), str(delivery.message.reply_to)
        body = answer_to(delivery.message, 9)
        await put(strict, delivery, "m", body)
        await put(strict, delivery, "m", body, "s", "junk")
        await put(strict, delivery, "m", body, "s", sign(OLD, KEY, body, now))
        await put(strict, delivery, "m", body, "s", sign(NEW, key, body, now))
        await put(strict, delivery, "m", body, "s", sign(OLD, key, body, now - 3600))
        # an answer is not made a failure
        await put(strict, delivery, "m", body, "s", sign(OLD, key, body, now), "e", "Nonsense")
        async with delivery:
            await delivery.reply({"n": 2})
        assert (await asking).payload == {"n": 2}
    reasons = ("Unsigned", "Forged", "UnknownKey", "Replayed")
    assert [count(planner, reason) for reason in reasons] == [1, 3, 1, 1]


async def test_who_gets_forged_answers_only_is_told_that_nobody_answered(
    strict: Signed, planner: Agent, caplog: pytest.LogCaptureFixture
) -> None:
    async with strict.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        asking = ask(planner, timeout=1.0)
        async with await following(deliveries) as delivery:
            for n in range(11):
                await put(strict, delivery, "m", answer_to(delivery.message, n))
        with pytest.raises(NoReply, match="11 replies without a valid signature were dropped"):
            await asking
    said = [record.getMessage() for record in caplog.records if "valid signature" in record.message]
    assert [text.partition("(")[2] for text in said] == ["Unsigned, 1 so far)", "Unsigned, 10 so far)"]


async def test_that_a_request_was_given_up_is_signed_too(strict: Signed, planner: Agent) -> None:
    async with strict.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        asking = ask(planner)
        async with await following(deliveries):
            raise Reject("NotMine")
        with pytest.raises(RequestFailed, match="NotMine"):
            await asking
    assert count(planner, "Unsigned") == 0


async def test_nobody_gets_a_signature_for_what_is_not_signed_itself(strict: Signed, planner: Agent) -> None:
    async with strict.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        asking = ask(planner, timeout=1.0)
        delivery = await following(deliveries)
        # who may write to the stream copies the request, for whose end its sender waits
        await strict.add("m", encode(delivery.message))
        waiting = asyncio.create_task(anext(deliveries))
        await until(strict.reasons)
        assert await strict.reasons() == ["Unsigned"]
        with pytest.raises(NoReply):
            await asking
        coder.stop()
        await asyncio.wait({waiting})
        await delivery.ack()
    assert count(planner, "Unsigned") == 1


async def test_an_answer_waits_for_the_key_and_says_in_the_end_that_there_is_none(
    strict: Signed, planner: Agent
) -> None:
    async with strict.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        asking = ask(planner)
        async with await following(deliveries) as delivery:
            coder._keyring._known.clear()
            strict.give("coder")
            with pytest.raises(SettingsError, match="no readable entry `signing-tasks`"):
                await delivery.reply({}, timeout=0.1)
            replying = asyncio.create_task(delivery.reply({"n": 2}))
            await until(lambda: coder._keyring._known)
            assert not replying.done()
            strict.give("coder", OLD)
            await replying
        assert (await asking).payload == {"n": 2}


async def test_where_it_is_only_warned_of_any_answer_is_taken_and_counted(
    signed: Signed, caplog: pytest.LogCaptureFixture
) -> None:
    await signed.declare("Warn")
    signed.give("planner", OLD)
    with caplog.at_level(logging.WARNING, "agentstream"):
        async with (
            signed.agent("planner") as planner,
            signed.agent("coder") as coder,
            coder.stream_consume("tasks") as deliveries,
        ):
            asking = ask(planner)
            async with await following(deliveries) as delivery:
                # there is no key yet
                await delivery.reply({"n": 2})
            assert (await asking).payload == {"n": 2}
            assert count(planner, "Unsigned") == 1
    assert "accepted a reply without a valid signature (Unsigned, 1 so far)" in caplog.text


async def test_answers_on_streams_without_signatures_are_not_looked_at(signed: Signed) -> None:
    await signed.declare("Off")
    async with (
        signed.agent("planner") as planner,
        signed.agent("coder") as coder,
        coder.stream_consume("tasks") as deliveries,
    ):
        asking = ask(planner)
        async with await following(deliveries) as delivery:
            await put(signed, delivery, "m", answer_to(delivery.message, 9), "s", "junk")
        assert (await asking).payload == {"n": 9}
