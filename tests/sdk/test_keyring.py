"""Signed streams, and answers on them: what is delivered, what is not and why, keys that change meanwhile."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agentstream import NoReply, Reject, RequestFailed
from agentstream.agent import Agent
from agentstream.consuming.delivery import Delivery
from agentstream.errors import SettingsError
from agentstream.protocol.envelope import Message, encode
from agentstream.protocol.keys import StreamKeys, default_stream_key, reply_key
from agentstream.protocol.signatures import Keys, SigningKey, sign
from agentstream.telemetry.counters import ANSWERS_UNVERIFIED, UNVERIFIED
from agentstream.testing import Faults
from agentstream.transport.client import Client
from support.servers import Server
from support.signed import KEY, NEW, OLD, Signed
from support.topology import NAMESPACE, Topology, fields_of, following, numbers
from support.waiting import until


@pytest.fixture
async def signed(server: Server, wire: Client, tmp_path: Path) -> Signed:
    return Signed(Topology(wire, server.url), tmp_path)


@pytest.fixture
async def strict(signed: Signed) -> Signed:
    """Signatures are required, and both have the key."""
    await signed.declare("Require")
    for agent in ("planner", "coder"):
        signed.give(agent, OLD)
    return signed


def body(n: int) -> bytes:
    """A message as `planner` would make it."""
    return encode(
        Message(
            v=1,
            id=f"0b0e9d3e-4b55-4f6e-8f1c-{n:012d}",
            sender="planner",
            to="coder",
            type="event",
            payload={"n": n},
            timestamp=1.0,
        )
    )


def count(agent: Agent, reason: str) -> int:
    return agent._counters.of(UNVERIFIED, "tasks", "coder", reason)


async def test_what_is_signed_is_delivered(strict: Signed) -> None:
    await strict.send(*range(50))
    async with strict.agent("coder") as coder:
        assert await numbers(coder.stream_consume("tasks"), 50) == list(range(50))
        assert await strict.topology.settled(strict.group, 50)
    assert {entry["s"].partition(b":")[0] for entry in await strict.entries()} == {b"old"}
    assert await strict.reasons() == []


async def test_what_is_not_validly_signed_becomes_a_dead_letter_and_is_counted(strict: Signed) -> None:
    await strict.send(0, 1)
    first, second = await strict.entries()
    now = time.time()
    altered = first["m"].replace(b'"n":0', b'"n":9')
    assert altered != first["m"]
    await strict.add("m", altered, "s", first["s"])
    await strict.add("m", first["m"], "s", second["s"])
    await strict.add("m", body(3), "s", sign(OLD, default_stream_key(NAMESPACE, "orders"), body(3), now))
    await strict.add("m", body(4))
    await strict.add("m", first["m"], "s", first["s"])
    await strict.add("m", body(5), "s", sign(OLD, KEY, body(5), now - 3600))
    await strict.send(6)
    async with strict.agent("coder") as coder:
        assert await numbers(coder.stream_consume("tasks"), 3) == [0, 1, 6]
        assert await strict.topology.settled(strict.group, 9)
        assert await strict.reasons() == ["Forged", "Forged", "Forged", "Unsigned", "Replayed", "Replayed"]
        counted = [count(coder, reason) for reason in ("Forged", "Unsigned", "Replayed", "UnknownKey")]
    assert counted == [3, 1, 2, 0]
    record = (await strict.topology.dead_letters(strict.group))[0]
    assert (record["m"], record["s"]) == (altered, first["s"])
    assert b"does not fit the message" in record["error"]
    assert (await strict.topology.stats(strict.group))["dead"] == 6


async def test_a_retry_and_its_dead_letter_keep_the_signature(signed: Signed) -> None:
    await signed.declare("Require", max_deliveries=3)
    for agent in ("planner", "coder"):
        signed.give(agent, OLD)
    await signed.send(0)
    attempts = 0
    async with signed.agent("coder") as coder:
        deliveries = coder.stream_consume("tasks")
        for _ in range(3):
            async with await following(deliveries):
                attempts += 1
                raise ZeroDivisionError
        await until(signed.reasons)
        await deliveries.aclose()
    assert attempts == 3
    assert await signed.reasons() == ["MaxDeliveries"]
    (entry,), (record,) = await signed.entries(), await signed.topology.dead_letters(signed.group)
    assert (record["m"], record["s"]) == (entry["m"], entry["s"])


async def test_a_message_waits_for_the_key_that_its_consumer_does_not_have_yet(signed: Signed) -> None:
    await signed.declare("Require", max_deliveries=1)
    signed.give("planner", NEW, OLD)
    signed.give("coder", OLD)
    await signed.send(0)
    delay = StreamKeys(KEY).delay("coder")
    async with signed.agent("coder") as coder:
        deliveries = coder.stream_consume("tasks")
        waiting = asyncio.create_task(following(deliveries))
        await until(lambda: signed.topology.wire.call("ZCARD", delay))
        signed.give("coder", NEW, OLD)
        delivery = await waiting
        assert delivery.message.payload == {"n": 0}
        assert delivery.attempt == 1, "no handler had it before"
        assert await delivery.ack()
        await deliveries.aclose()
        assert count(coder, "UnknownKey") == 0
    assert await signed.reasons() == []


async def test_what_was_signed_with_a_key_that_never_comes_is_given_up_in_the_end(strict: Signed) -> None:
    long_ago = time.time() - 400
    signature = sign(NEW, KEY, body(0), long_ago)
    await strict.topology.wire.call("XADD", KEY, f"{int(long_ago * 1000)}-0", "m", body(0), "s", signature)
    async with strict.agent("coder") as coder:
        deliveries = coder.stream_consume("tasks")
        waiting = asyncio.create_task(anext(deliveries))
        await until(strict.reasons)
        assert await strict.reasons() == ["UnknownKey"]
        assert (await strict.topology.stats(strict.group))["retried"] == 1, "it was looked at twice"
        assert count(coder, "UnknownKey") == 1
        coder.stop()
        with pytest.raises(StopAsyncIteration):
            await waiting


async def test_keys_are_rotated_under_traffic_and_no_message_is_refused(
    strict: Signed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentstream.identity.keyring.FRESH", 0.05)
    keys: Keys = (OLD,)
    sent, room = 0, asyncio.Semaphore(100)

    async def produce(planner: Agent) -> None:
        nonlocal sent
        while True:
            await room.acquire()
            await planner.send_message(to="coder", type="event", payload={"n": sent})
            sent += 1

    async def consume(coder: Agent) -> None:
        async for delivery in coder.stream_consume("tasks"):
            await delivery.ack()
            room.release()

    async with strict.agent("planner") as planner, strict.agent("coder") as coder:
        consuming, producing = asyncio.create_task(consume(coder)), asyncio.create_task(produce(planner))
        for rotation in ("second", "third", "fourth"):
            made = SigningKey(rotation, rotation * 8, signs_from=int(time.time()) + 2)
            keys = (made, *keys[:1])
            # senders and consumers get it at different times, all before it signs
            strict.give("planner", *keys)
            await until(lambda before=sent: sent > before + 20)
            strict.give("coder", *keys)
            await until(lambda name=rotation: _last_key(strict, name))
            # what the oldest key signed is handled before that goes
            await until(lambda before=sent: sent > before + 200)
        producing.cancel()
        await asyncio.wait({producing})
        total = len(await strict.entries())
        await until(lambda: strict.topology.settled(strict.group, total), timeout=20)
        coder.stop()
        await consuming
    used = {entry["s"].partition(b":")[0] for entry in await strict.entries()}
    assert used == {b"old", b"second", b"third", b"fourth"}
    stats = await strict.topology.stats(strict.group)
    assert (stats["acked"], stats.get("dead", 0), stats.get("retried", 0)) == (total, 0, 0)


async def _last_key(strict: Signed, name: str) -> bool:
    """Whether the newest message is signed with a key."""
    ((_, fields),) = await strict.topology.wire.call("XREVRANGE", KEY, "+", "-", "COUNT", 1)
    return fields_of(fields)["s"].startswith(name.encode() + b":")


async def test_where_it_is_only_warned_of_everything_is_delivered_counted_and_logged(
    signed: Signed, caplog: pytest.LogCaptureFixture
) -> None:
    await signed.declare("Warn")
    await signed.send(0)
    assert "s" not in (await signed.entries())[0], "there is no key yet"
    for agent in ("planner", "coder"):
        signed.give(agent, OLD)
    await signed.send(1)
    valid = (await signed.entries())[1]
    await signed.add("m", valid["m"].replace(b'"n":1', b'"n":2'), "s", valid["s"])
    await signed.add("m", body(3), "s", sign(NEW, KEY, body(3), time.time()))
    for n in range(4, 13):
        await signed.add("m", body(n))
    with caplog.at_level(logging.WARNING, "agentstream"):
        async with signed.agent("coder") as coder:
            assert await numbers(coder.stream_consume("tasks"), 13) == list(range(13))
            counted = {reason: count(coder, reason) for reason in ("Unsigned", "Forged", "UnknownKey")}
    assert counted == {"Unsigned": 10, "Forged": 1, "UnknownKey": 1}
    said = [record.getMessage() for record in caplog.records if "without a valid signature" in record.message]
    assert [text.partition("(")[2] for text in said] == [
        "Unsigned, 1 so far)",
        "Forged, 1 so far)",
        "UnknownKey, 1 so far)",
        "Unsigned, 10 so far)",
    ]
    assert await signed.reasons() == []


async def test_a_stream_that_is_not_signed_costs_nothing(signed: Signed) -> None:
    await signed.declare("Off")
    await signed.send(0)
    assert set((await signed.entries())[0]) == {"m"}
    await signed.add("m", body(1), "s", "junk")
    async with signed.agent("coder") as coder:
        assert await numbers(coder.stream_consume("tasks"), 2) == [0, 1]


async def test_a_sender_waits_for_its_key(signed: Signed) -> None:
    await signed.declare("Require")
    async with signed.agent("planner") as planner:
        sending = asyncio.create_task(planner.send_message(to="coder", type="event", payload={}))
        await until(lambda: planner._sender._keyring._known)
        assert not sending.done()
        signed.give("planner", OLD)
        await sending
    assert (await signed.entries())[0]["s"].startswith(b"old:")


async def test_a_sender_without_a_key_is_told_what_to_do(signed: Signed) -> None:
    await signed.declare("Require")
    async with signed.agent("planner") as planner:
        with pytest.raises(SettingsError, match="no readable entry `signing-tasks`; mount the Secret"):
            await planner.send_message(to="coder", type="event", payload={}, timeout=0.2)
    assert await signed.entries() == []


async def test_what_is_sent_for_long_is_signed_again(
    strict: Signed, proxy: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentstream.sending.batcher._SIGNED_FOR", -1.0)
    ago = 3600.0
    monkeypatch.setattr(
        "agentstream.identity.keyring.sign", lambda key, stream, body, now: sign(key, stream, body, now - ago)
    )
    async with strict.agent("planner", proxy.url) as planner:
        # the route is known, so that nothing but the message itself is sent while the server is away
        await planner.send_message(to="coder", type="event", payload={"n": 0})
        proxy.refuse()
        sending = asyncio.create_task(planner.send_message(to="coder", type="event", payload={"n": 1}))
        await until(lambda: planner._sender._batchers[KEY]._doubt is not None)
        ago = 0.0
        proxy.accept()
        await sending
    async with strict.agent("coder") as coder:
        assert await numbers(coder.stream_consume("tasks"), 1) == [1]
        await until(strict.reasons)
    assert await strict.reasons() == ["Replayed"], "the first, which was sent at once"


@pytest.fixture
async def strict_once(signed: Signed) -> Signed:
    """Signatures are required, and both have the key."""
    await signed.declare("Require", max_deliveries=1)
    for agent in ("planner", "coder"):
        signed.give(agent, OLD)
    return signed


@pytest.fixture
async def planner(strict_once: Signed) -> AsyncIterator[Agent]:
    async with strict_once.agent("planner") as agent:
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


def count_answers(agent: Agent, reason: str) -> int:
    return agent._counters.of(ANSWERS_UNVERIFIED, "tasks", reason)


async def put(signed: Signed, delivery: Delivery, *fields: bytes | str) -> str:
    """Adds to the stream of answers what nobody else would. Returns its key."""
    key = delivery.message.reply_to
    assert key is not None
    await signed.topology.wire.call("XADD", key, "*", *fields)
    return key


async def test_an_answer_is_signed_for_the_stream_of_whoever_asked(
    strict_once: Signed, planner: Agent
) -> None:
    async with strict_once.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        asking = ask(planner)
        async with await following(deliveries) as delivery:
            await delivery.reply({"n": 2})
        assert (await asking).payload == {"n": 2}
        # nobody reads this one
        key = reply_key(NAMESPACE, "planner", "0123456789abcdef" * 2)
        await planner.send_message(to="coder", type="task_request", payload={}, reply_to=key)
        async with await following(deliveries) as delivery:
            await delivery.reply({"n": 2})
    ((_, fields),) = await strict_once.topology.wire.call("XRANGE", key, "-", "+")
    answer = fields_of(fields)
    at = float(answer["s"].split(b":")[1])
    assert answer["s"] == sign(OLD, key, answer["m"], at)
    assert abs(at - time.time()) < 60


async def test_what_is_no_valid_answer_is_dropped_and_counted(strict_once: Signed, planner: Agent) -> None:
    async with strict_once.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        asking = ask(planner)
        delivery = await following(deliveries)
        now, key = time.time(), str(delivery.message.reply_to)
        body = answer_to(delivery.message, 9)
        await put(strict_once, delivery, "m", body)
        await put(strict_once, delivery, "m", body, "s", "junk")
        await put(strict_once, delivery, "m", body, "s", sign(OLD, KEY, body, now))
        await put(strict_once, delivery, "m", body, "s", sign(NEW, key, body, now))
        await put(strict_once, delivery, "m", body, "s", sign(OLD, key, body, now - 3600))
        # an answer is not made a failure
        await put(strict_once, delivery, "m", body, "s", sign(OLD, key, body, now), "e", "Nonsense")
        async with delivery:
            await delivery.reply({"n": 2})
        assert (await asking).payload == {"n": 2}
    reasons = ("Unsigned", "Forged", "UnknownKey", "Replayed")
    assert [count_answers(planner, reason) for reason in reasons] == [1, 3, 1, 1]


async def test_who_gets_forged_answers_only_is_told_that_nobody_answered(
    strict_once: Signed, planner: Agent, caplog: pytest.LogCaptureFixture
) -> None:
    async with strict_once.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        asking = ask(planner, timeout=1.0)
        async with await following(deliveries) as delivery:
            for n in range(11):
                await put(strict_once, delivery, "m", answer_to(delivery.message, n))
        with pytest.raises(NoReply, match="11 replies without a valid signature were dropped"):
            await asking
    said = [record.getMessage() for record in caplog.records if "valid signature" in record.message]
    assert [text.partition("(")[2] for text in said] == ["Unsigned, 1 so far)", "Unsigned, 10 so far)"]


async def test_that_a_request_was_given_up_is_signed_too(strict_once: Signed, planner: Agent) -> None:
    async with strict_once.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        asking = ask(planner)
        async with await following(deliveries):
            raise Reject("NotMine")
        with pytest.raises(RequestFailed, match="NotMine"):
            await asking
    assert count_answers(planner, "Unsigned") == 0


async def test_nobody_gets_a_signature_for_what_is_not_signed_itself(
    strict_once: Signed, planner: Agent
) -> None:
    async with strict_once.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        asking = ask(planner, timeout=1.0)
        delivery = await following(deliveries)
        # who may write to the stream copies the request, for whose end its sender waits
        await strict_once.add("m", encode(delivery.message))
        waiting = asyncio.create_task(anext(deliveries))
        await until(strict_once.reasons)
        assert await strict_once.reasons() == ["Unsigned"]
        with pytest.raises(NoReply):
            await asking
        coder.stop()
        await asyncio.wait({waiting})
        await delivery.ack()
    assert count_answers(planner, "Unsigned") == 1


async def test_an_answer_waits_for_the_key_and_says_in_the_end_that_there_is_none(
    strict_once: Signed, planner: Agent
) -> None:
    async with strict_once.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        asking = ask(planner)
        async with await following(deliveries) as delivery:
            coder._keyring._known.clear()
            strict_once.give("coder")
            with pytest.raises(SettingsError, match="no readable entry `signing-tasks`"):
                await delivery.reply({}, timeout=0.1)
            replying = asyncio.create_task(delivery.reply({"n": 2}))
            await until(lambda: coder._keyring._known)
            assert not replying.done()
            strict_once.give("coder", OLD)
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
            assert count_answers(planner, "Unsigned") == 1
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
