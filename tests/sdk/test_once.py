"""Effects that must not be repeated: once per group, again after an error, in doubt after a crash."""

from __future__ import annotations

import asyncio

import pytest

from agentstream.consuming.delivery import Delivery
from agentstream.consuming.once import Once
from agentstream.errors import AccessDenied, Backpressure, ConnectionLost, EffectInDoubt, ServerRefused
from agentstream.protocol.routes import Consumes
from agentstream.telemetry.counters import Counters
from agentstream.testing import Faults
from agentstream.testing.sandbox import KillableAgent
from agentstream.transport.client import Client
from support.topology import Topology, following
from support.waiting import until

DONE = "{test.tasks}:done:coder:charge-7"
COUNTERS = Counters().group("tasks", "coder")


@pytest.fixture
async def topology(topology: Topology) -> Topology:
    """`planner` produces to `tasks`, which `coder` consumes."""
    await topology.group("tasks", "coder", max_deliveries=3)
    return topology


async def send(topology: Topology, count: int = 1) -> None:
    async with topology.agent("planner") as planner:
        for _ in range(count):
            await planner.send_message(to="coder", type="event", payload={})


async def test_an_effect_comes_about_once_whatever_the_messages(topology: Topology, wire: Client) -> None:
    await send(topology, 3)
    seen = []
    async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        for _ in range(3):
            async with await following(deliveries) as delivery, delivery.once("charge-7") as first:
                seen.append(first)
    assert seen == [True, False, False]
    assert await wire.call("GET", DONE) == b"done"
    week = 7 * 86_400_000
    assert week - 60_000 < await wire.call("PTTL", DONE) <= week


async def test_other_keys_and_other_groups_are_other_effects(topology: Topology) -> None:
    await topology.group("tasks", "tester", deliver_all=True)
    await send(topology)
    for agent in ("coder", "tester"):
        async with topology.agent(agent) as consumer, consumer.stream_consume("tasks") as deliveries:
            async with await following(deliveries) as delivery:
                async with delivery.once("charge-7") as first, delivery.once("charge-8") as other:
                    assert first
                    assert other


async def test_an_error_takes_the_note_back_and_the_next_attempt_is_the_first_again(
    topology: Topology, wire: Client
) -> None:
    await send(topology)
    async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        async with await following(deliveries) as delivery, delivery.once("charge-7") as first:
            assert first
            raise ZeroDivisionError
        assert await wire.call("EXISTS", DONE) == 0
        async with await following(deliveries) as delivery, delivery.once("charge-7") as first:
            assert delivery.attempt == 2
            assert first


async def test_a_crash_leaves_it_in_doubt_and_in_the_end_a_dead_letter(
    topology: Topology, wire: Client
) -> None:
    await send(topology)
    consumes = topology.routes["coder"].consumes[0]
    crashed = KillableAgent.connect(topology.settings("coder"))
    delivery = await following(crashed.stream_consume("tasks"))
    assert await delivery.once("charge-7").__aenter__()
    await crashed.crash()
    async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        for attempt in (2, 3):
            async with await following(deliveries) as delivery:
                assert delivery.attempt == attempt
                async with delivery.once("charge-7"):
                    pytest.fail("it may have come about")
        await until(lambda: topology.dead_letters(consumes))
    (record,) = await topology.dead_letters(consumes)
    assert b"EffectInDoubt" in record["error"] + record["reason"]


async def test_a_handler_may_ask_whoever_knows_and_go_on(topology: Topology, wire: Client) -> None:
    await send(topology)
    await wire.call("SET", DONE, "running an-earlier-delivery")
    async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        async with await following(deliveries) as delivery:
            with pytest.raises(EffectInDoubt, match="charge-7"):
                async with delivery.once("charge-7"):
                    pytest.fail("it may have come about")
        assert await delivery.ack()


async def test_whoever_is_cancelled_in_it_leaves_it_in_doubt(topology: Topology) -> None:
    await send(topology)
    begun = asyncio.Event()

    async def charge(delivery: Delivery) -> None:
        async with delivery.once("charge-7") as first:
            assert first
            begun.set()
            await asyncio.Event().wait()

    async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        delivery = await following(deliveries)
        charging = asyncio.create_task(charge(delivery))
        await begun.wait()
        charging.cancel()
        await asyncio.gather(charging, return_exceptions=True)
        with pytest.raises(EffectInDoubt):
            await delivery.once("charge-7").__aenter__()


async def test_one_delivery_does_not_begin_it_twice(topology: Topology) -> None:
    await send(topology)
    async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        async with await following(deliveries) as delivery, delivery.once("charge-7") as first:
            assert first
            with pytest.raises(EffectInDoubt):
                await delivery.once("charge-7").__aenter__()


async def test_lost_replies_change_nothing(topology: Topology, proxy: Faults, wire: Client) -> None:
    await send(topology, 2)
    async with topology.agent("coder", url=proxy.url) as coder, coder.stream_consume("tasks") as deliveries:
        proxy.lose_reply("as1_once", times=2)
        proxy.lose_reply("done\r\n$9", times=2)
        async with await following(deliveries) as delivery, delivery.once("charge-7", ttl=600_000) as first:
            assert first
        assert proxy.lost == 4
        assert await wire.call("GET", DONE) == b"done"
        proxy.lose_reply("undone", times=2)
        async with await following(deliveries) as delivery, delivery.once("charge-8") as first:
            assert first
            raise ZeroDivisionError
        assert proxy.lost == 6
    assert await wire.call("EXISTS", DONE.replace("7", "8")) == 0


async def test_a_server_without_memory_still_notes_what_came_about(topology: Topology, wire: Client) -> None:
    await send(topology)
    async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        async with await following(deliveries) as delivery:
            async with delivery.once("charge-7") as first:
                assert first
                await wire.call("CONFIG", "SET", "maxmemory", 1)
            await wire.call("CONFIG", "SET", "maxmemory", 0)
    assert await wire.call("GET", DONE) == b"done"


async def test_a_server_without_memory_begins_no_effect(
    topology: Topology, wire: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentstream.consuming.once._PATIENCE", 0.1)
    await send(topology)
    async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        async with await following(deliveries) as delivery:
            await wire.call("CONFIG", "SET", "maxmemory", 1)
            with pytest.raises(Backpressure):
                await delivery.once("charge-7").__aenter__()
            await wire.call("CONFIG", "SET", "maxmemory", 0)
    assert await wire.call("EXISTS", DONE) == 0


async def test_a_note_that_is_late_takes_nothing_from_others(topology: Topology, wire: Client) -> None:
    begin, end = (("FCALL", name, 1, "{test.tasks}", DONE) for name in ("as1_once", "as1_end_once"))
    assert await wire.call(*begin, "a", 60_000) == 1
    assert await wire.call(*end, "b", "undone", 60_000) == 0
    assert await wire.call(*begin, "b", 60_000) == -1
    assert await wire.call(*end, "a", "undone", 60_000) == 1
    assert await wire.call(*begin, "b", 60_000) == 1
    assert await wire.call(*end, "a", "undone", 60_000) == 0
    assert await wire.call(*end, "b", "done", 60_000) == 1
    assert await wire.call(*begin, "a", 60_000) == 0
    assert await wire.call(*end, "b", "undone", 60_000) == 0
    assert await wire.call("GET", DONE) == b"done"


@pytest.mark.parametrize(
    ("error", "passes"),
    [(ConnectionLost("away"), True), (AccessDenied("no"), True), (ServerRefused("ERR no"), False)],
)
async def test_a_server_that_does_not_answer_is_an_error(
    monkeypatch: pytest.MonkeyPatch, error: Exception, *, passes: bool
) -> None:
    monkeypatch.setattr("agentstream.consuming.once._PATIENCE", 0.1)
    calls = 0

    async def call(*_: object) -> int:
        nonlocal calls
        calls += 1
        raise error

    once = Once(
        call, Consumes("tasks", "{test.tasks}", "coder"), "charge-7", "delivery", 60, counters=COUNTERS
    )
    with pytest.raises(type(error)):
        await once.__aenter__()
    assert (calls > 1) is passes


@pytest.mark.parametrize(("key", "ttl"), [("", 60.0), ("k", 0.0), ("k", -1.0)])
async def test_an_effect_needs_a_key_and_a_time(key: str, ttl: float) -> None:
    async def call(*_: object) -> int:
        return 1

    with pytest.raises(ValueError, match="needs a text as its key"):
        Once(call, Consumes("tasks", "{test.tasks}", "coder"), key, "delivery", ttl, counters=COUNTERS)
