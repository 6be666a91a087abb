"""Consuming: what is delivered, to whom, how often, and what a handler can do with it."""

from __future__ import annotations

import asyncio
import logging

import msgspec
import pytest

from agentstream.consuming.delivery import Delivery
from agentstream.errors import AgentStreamError, NoConsumerGroup, Reject, Retry
from agentstream.protocol.envelope import decode
from agentstream.protocol.keys import StreamKeys
from agentstream.protocol.routes import Route
from agentstream.transport.client import Client
from support.topology import Topology, body_of, fields_of, following, numbers
from support.waiting import until

MESSAGE = decode(
    b'{"v":1,"id":"0b0e9d3e-4b55-4f6e-8f1c-2f6f0d6f3a11","from":"planner","to":"coder","type":"event",'
    b'"payload":{"n":0},"timestamp":1}'
)


async def send(topology: Topology, *payloads: int, to: str = "coder") -> None:
    async with topology.agent("planner") as planner:
        for n in payloads:
            await planner.send_message(to=to, stream="tasks", type="event", payload={"n": n})


async def test_every_message_is_handled_once_and_settled(topology: Topology) -> None:
    group = await topology.group("tasks", "coder")
    await send(topology, *range(200))
    async with topology.agent("coder") as coder:
        assert await numbers(coder.stream_consume("tasks"), 200) == list(range(200))
        assert await topology.settled(group, 200)
    stats = await topology.stats(group)
    assert stats["acked"] == 200
    assert sum(count for name, count in stats.items() if name.startswith("le:")) == 200


async def test_several_tasks_share_one_iterator(topology: Topology) -> None:
    group = await topology.group("tasks", "coder")
    await send(topology, *range(100))
    seen: list[int] = []
    most, running = 0, 0

    async def work(agent_deliveries) -> None:
        nonlocal most, running
        async for delivery in agent_deliveries:
            async with delivery:
                running += 1
                most = max(most, running)
                await asyncio.sleep(0)
                seen.append(delivery.message.payload["n"])
                running -= 1
            if len(seen) == 100:
                coder.stop()

    async with topology.agent("coder") as coder:
        deliveries = coder.stream_consume("tasks", concurrency=8)
        await asyncio.gather(*(work(deliveries) for _ in range(4)))
        assert await topology.settled(group, 100)
    assert sorted(seen) == list(range(100))
    assert most > 1


async def test_a_process_holds_no_more_than_its_concurrency(topology: Topology) -> None:
    group = await topology.group("tasks", "coder")
    await send(topology, *range(20))
    async with topology.agent("coder") as coder, coder.stream_consume("tasks", concurrency=3) as deliveries:
        held = [await following(deliveries) for _ in range(3)]
        assert len(await topology.pending(group)) == 3
        for delivery in held:
            assert await delivery.ack()
        await following(deliveries)
        assert len(await topology.pending(group)) <= 3


async def test_only_what_is_addressed_to_the_agent_or_to_all_is_delivered(topology: Topology) -> None:
    group = await topology.group("tasks", "coder")
    await topology.group("tasks", "tester")
    await send(topology, 1, to="tester")
    await send(topology, 2, to="coder")
    await send(topology, 3, to="broadcast")
    async with topology.agent("coder") as coder:
        assert await numbers(coder.stream_consume("tasks"), 2) == [2, 3]
        await until(lambda: topology.settled(group, 3))
    stats = await topology.stats(group)
    assert (stats["skipped"], stats["acked"]) == (1, 2)


async def test_a_group_that_wants_everything_gets_everything(topology: Topology) -> None:
    await topology.group("tasks", "auditor", deliver_all=True)
    await topology.group("tasks", "coder")
    await send(topology, 1, 2)
    async with topology.agent("auditor") as auditor:
        assert await numbers(auditor.stream_consume("tasks"), 2) == [1, 2]


async def test_a_delivery_says_what_it_is(topology: Topology) -> None:
    await topology.group("tasks", "coder")
    await send(topology, 7)
    async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        delivery = await following(deliveries)
        assert (delivery.stream, delivery.attempt, delivery.held, delivery.settled) == (
            "tasks",
            1,
            True,
            False,
        )
        assert delivery.message.payload == {"n": 7}
        assert delivery.message.id in repr(delivery)
        assert "payload" not in repr(delivery)


async def test_settling_twice_answers_the_same_and_another_verb_does_nothing(topology: Topology) -> None:
    group = await topology.group("tasks", "coder")
    await send(topology, 1)
    async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        async with await following(deliveries) as delivery:
            assert await delivery.ack()
            assert await delivery.ack()
            assert not await delivery.retry()
            assert not await delivery.dead_letter("late")
            assert not await delivery.release()
        assert await topology.settled(group, 1)
    assert await topology.dead_letters(group) == []


async def test_a_failed_message_is_tried_again_and_then_becomes_a_dead_letter(
    topology: Topology, caplog: pytest.LogCaptureFixture
) -> None:
    group = await topology.group("tasks", "coder", max_deliveries=4)
    await send(topology, 1)
    attempts: list[tuple[int, str]] = []
    async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        while len(attempts) < 4:
            async with await following(deliveries) as delivery:
                attempts.append((delivery.attempt, delivery.entry))
                raise ValueError("no such document")
        await until(lambda: topology.settled(group, 1))
    assert [attempt for attempt, _ in attempts] == [1, 2, 3, 4]
    (record,) = await topology.dead_letters(group)
    assert record["reason"] == b"MaxDeliveries"
    assert record["error"] == b"ValueError: no such document"
    assert (record["attempts"], {entry for _, entry in attempts}) == (b"4", {record["origin"].decode()})
    assert decode(record["m"]).payload == {"n": 1}
    assert "x" not in record
    assert (await topology.stats(group))["retried"] == 3
    said = [record for record in caplog.records if ": attempt " in record.getMessage()]
    # with its traceback, or, where that was logged before, with the traceback as a field
    assert sum(record.exc_info is not None or hasattr(record, "traceback") for record in said) == 4


async def test_a_handler_may_ask_for_a_retry_or_refuse_for_good(topology: Topology) -> None:
    group = await topology.group("tasks", "coder")
    await send(topology, 1)
    async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        async with await following(deliveries):
            raise Retry("rate limited", after=0)
        async with await following(deliveries) as second:
            assert second.attempt == 2
            raise Reject("not for me")
        assert await topology.settled(group, 1)
    (record,) = await topology.dead_letters(group)
    assert (record["reason"], record["attempts"]) == (b"not for me", b"2")


async def test_a_retry_comes_after_its_delay_and_soon_after_it(topology: Topology) -> None:
    await topology.group("tasks", "coder")
    await send(topology, 1)
    loop = asyncio.get_running_loop()
    async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        delivery = await following(deliveries)
        asked = loop.time()
        assert await delivery.retry(after=0.3, reason="busy")
        again = await following(deliveries)
        assert 0.3 <= loop.time() - asked < 1.0
        assert (again.attempt, again.message.id) == (2, delivery.message.id)
        assert await again.ack()


async def test_a_delayed_retry_outlives_the_process_that_asked_for_it(topology: Topology) -> None:
    group = await topology.group("tasks", "coder")
    await send(topology, 1)
    async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        assert await (await following(deliveries)).retry(after=0.2)
    async with topology.agent("coder", pod="other") as coder:
        assert await numbers(coder.stream_consume("tasks"), 1) == [1]
    assert await topology.settled(group, 1)


async def test_an_error_after_settling_is_logged_and_changes_nothing(
    topology: Topology, caplog: pytest.LogCaptureFixture
) -> None:
    group = await topology.group("tasks", "coder")
    await send(topology, 1, 2)
    async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        async with await following(deliveries) as delivery:
            await delivery.ack()
            raise ValueError("too late")
        async with await following(deliveries) as delivery:
            await delivery.ack()
            raise Retry
        assert await topology.settled(group, 2)
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


async def test_a_released_message_goes_to_another_consumer_and_counts_no_attempt(topology: Topology) -> None:
    group = await topology.group("tasks", "coder", lease=60_000)
    await send(topology, 1)
    async with topology.agent("coder", pod="a") as first, first.stream_consume("tasks") as deliveries:
        delivery = await following(deliveries)
        async with topology.agent("coder", pod="b") as second, second.stream_consume("tasks") as others:
            waiting = asyncio.create_task(anext(others))
            assert await delivery.release()
            first.stop()
            again = await asyncio.wait_for(waiting, 10)
            assert (again.attempt, again.message.id) == (1, delivery.message.id)
            assert await again.ack()
    assert await topology.settled(group, 1)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"{", b"Malformed"),
        (body_of(MESSAGE, v=2), b"UnknownVersion"),
        (body_of(MESSAGE, type="order"), b"Malformed"),
        (body_of(MESSAGE, expires_at=1.0), b"Expired"),
    ],
)
async def test_what_no_handler_could_handle_becomes_a_dead_letter(
    topology: Topology, wire: Client, body: bytes, reason: bytes
) -> None:
    group = await topology.group("tasks", "coder")
    origin = await topology.add_raw(group.key, body)
    await send(topology, 5)
    async with topology.agent("coder") as coder:
        assert await numbers(coder.stream_consume("tasks"), 1) == [5]
        await until(lambda: topology.settled(group, 2))
    (record,) = await topology.dead_letters(group)
    assert (record["reason"], record["m"], record["origin"].decode()) == (reason, body, origin)
    assert record["error"]


async def test_what_expires_while_it_waits_for_a_handler_is_not_handled(topology: Topology) -> None:
    group = await topology.group("tasks", "coder")
    loop = asyncio.get_running_loop()
    async with topology.agent("planner") as planner, topology.agent("coder") as coder:
        await planner.send_message(to="coder", type="event", payload={"n": 1})
        message = await planner.send_message(
            to="coder", type="event", payload={"n": 2}, expires_at=MESSAGE.timestamp + 10**10
        )
        async with coder.stream_consume("tasks") as deliveries:
            first = await following(deliveries)
            # what was read with it is made to expire in the buffer
            consumption = deliveries._consumption
            (waiting,) = consumption._dispatcher._prefetched._ordinary
            waiting.message = decode(body_of(waiting.message, expires_at=1.0))
            assert waiting.message.id == message.id
            asking = asyncio.ensure_future(anext(deliveries))
            await until(lambda: topology.dead_letters(group))
            assert not asking.done()
            asking.cancel()
            assert await first.ack()
    assert loop.is_running()
    assert (await topology.dead_letters(group))[0]["reason"] == b"Expired"


async def test_without_dead_letters_a_message_is_tried_for_ever(topology: Topology) -> None:
    group = await topology.group("tasks", "coder", dead_letters=False, max_deliveries=1, backoff_max=10)
    await send(topology, 1)
    async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        for attempt in (1, 2, 3):
            async with await following(deliveries) as delivery:
                assert delivery.attempt == attempt
                raise Reject("hopeless")
        assert await (await following(deliveries)).ack()
        assert await topology.settled(group, 1)
    assert await topology.dead_letters(group) == []


async def test_from_its_third_attempt_a_message_runs_alone(topology: Topology) -> None:
    await topology.group("tasks", "coder", lease=60_000)
    await send(topology, 1)
    async with topology.agent("coder") as coder, coder.stream_consume("tasks", concurrency=8) as deliveries:
        for _ in range(2):
            await (await following(deliveries)).retry(after=0)
        suspect = await following(deliveries)
        assert suspect.attempt == 3
        await send(topology, 2)
        asking: asyncio.Future[Delivery] = asyncio.ensure_future(anext(deliveries))
        await until(lambda: len(deliveries._consumption._dispatcher._prefetched) == 1)
        assert not asking.done()
        assert await suspect.ack()
        assert await (await asking).ack()


async def test_a_suspect_starts_in_the_end_though_another_handler_never_does_end(topology: Topology) -> None:
    await topology.group("tasks", "coder", lease=300)
    await send(topology, 1, 2)
    async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        endless = await following(deliveries)
        for _ in range(2):
            await (await following(deliveries)).retry(after=0)
        suspect = await asyncio.wait_for(anext(deliveries), 10)
        assert (suspect.attempt, suspect.message.payload) == (3, {"n": 2})
        assert await suspect.ack()
        assert await endless.ack()


async def test_a_broadcast_group_keeps_account_of_what_is_parked(topology: Topology, wire: Client) -> None:
    await topology.stream("news", "planner", broadcast=True)
    group = await topology.group("news", "coder", broadcast=True)
    async with topology.agent("planner") as planner:
        sent = await planner.send_message(to="broadcast", type="event", payload={})
    parked = StreamKeys(group.key).parked("coder")
    async with topology.agent("coder") as coder, coder.stream_consume("news") as deliveries:
        await (await following(deliveries)).retry(after=0)
        assert fields_of(await wire.call("HGETALL", parked)) == {sent.entry: b"retrying"}
        await (await following(deliveries)).ack()
        # a note for receipts, until every group has finished the message
        assert fields_of(await wire.call("HGETALL", parked)) == {sent.entry: b"acknowledged"}


async def test_consuming_what_nobody_declared_is_an_error_that_says_what_is_declared(
    topology: Topology, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentstream.consuming.session._ROUTE_PATIENCE", 0.1)
    await topology.group("tasks", "coder")
    async with topology.agent("coder") as coder:
        with pytest.raises(NoConsumerGroup, match=r"it consumes tasks \(group coder\)"):
            await following(coder.stream_consume("results"))


async def test_a_consumer_waits_for_its_group_to_be_declared(topology: Topology) -> None:
    async with topology.agent("coder") as coder:
        first = asyncio.create_task(numbers(coder.stream_consume("tasks"), 1))
        await asyncio.wait({first}, timeout=0.1)
        await topology.group("tasks", "coder")
        await send(topology, 1)
        assert await first == [1]


async def test_one_group_is_consumed_once_in_a_process(topology: Topology) -> None:
    await topology.group("tasks", "coder")
    await send(topology, 1)
    async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        await (await following(deliveries)).ack()
        with pytest.raises(AgentStreamError, match="consumes tasks already"):
            await following(coder.stream_consume("tasks"))


async def test_a_group_can_be_consumed_again_after_it_was_left(topology: Topology) -> None:
    await topology.group("tasks", "coder")
    await send(topology, *range(10))
    seen = []
    async with topology.agent("coder") as coder:
        for _ in range(10):
            seen += await numbers(coder.stream_consume("tasks"), 1)
    assert sorted(seen) == list(range(10))


async def test_a_changed_policy_is_followed(topology: Topology, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentstream.routing.directory._GOOD_FOR", 0.05)
    group = await topology.group("tasks", "coder", max_deliveries=9)
    await send(topology, 1)
    async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        delivery = await following(deliveries)
        changed = msgspec.structs.replace(group, max_deliveries=1)
        topology.routes["coder"] = Route(consumes=(changed,))
        await topology.write_routes()
        await until(lambda: deliveries._consumption._dispatcher.policy.max_deliveries == 1)
        await delivery.retry(after=0)
        await until(lambda: topology.dead_letters(group))


@pytest.mark.parametrize("concurrency", [0, -1])
async def test_a_concurrency_that_is_none_is_refused(topology: Topology, concurrency: int) -> None:
    async with topology.agent("coder") as coder:
        with pytest.raises(ValueError, match="at least 1"):
            coder.stream_consume("tasks", concurrency=concurrency)
