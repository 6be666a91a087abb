"""Messages with one ordering key are handled in turn by each group, and keys are forgotten in time."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
import redis

from agentstream.agent import Agent
from agentstream.consuming.delivery import Delivery
from agentstream.consuming.session import Deliveries
from agentstream.errors import Retry
from agentstream.protocol.commands import GroupCalls
from agentstream.protocol.entry import position
from agentstream.protocol.envelope import Message
from agentstream.protocol.keys import StreamKeys
from agentstream.transport.client import Client
from agentstream_operator.broker.broker import Broker
from agentstream_operator.plan.actions import CreateGroup
from support.entries import HOUR, KEY, fill, left, read, spec
from support.holds import a_hold
from support.servers import Server
from support.topology import Topology, fields_of, following, numbers
from support.waiting import until


@pytest.fixture
async def planner(topology: Topology) -> AsyncIterator[Agent]:
    async with topology.agent("planner") as agent:
        yield agent


async def send(planner: Agent, *payloads: int, key: str | None = "k", to: str = "coder") -> None:
    """Messages of one key, in this order."""
    await asyncio.gather(
        *(
            planner.send_message(to=to, stream="tasks", type="event", payload={"n": n}, key=key)
            for n in payloads
        )
    )


class Record:
    """What handlers did with messages, each of which has a key and a number.

    Attributes:
        done: the numbers that were handled, by key, in the order of their handling.
        attempts: how many there were.
        overlaps: keys of which two messages were in handlers' hands at a time.
        tokens: what grows over all deliveries of a key, by key.
    """

    def __init__(self) -> None:
        self.done: dict[str | None, list[int]] = defaultdict(list)
        self.attempts = 0
        self.overlaps: list[str] = []
        self.tokens: dict[str, list[tuple[tuple[int, int], int]]] = defaultdict(list)
        self._running: set[str] = set()

    @property
    def count(self) -> int:
        return sum(map(len, self.done.values()))

    async def handle(self, delivery: Delivery, failing: float = 0.0) -> None:
        """Takes some time for a delivery, and may fail at its first and second attempt."""
        key = delivery.message.key or ""
        if key in self._running:
            self.overlaps.append(key)
        if key:
            self._running.add(key)
        self.attempts += 1
        self.tokens[key].append((position(delivery.entry), delivery.fence))
        try:
            await asyncio.sleep(random.random() * 0.002)
            if delivery.attempt < 3 and random.random() < failing:
                raise Retry("again", after=random.random() * 0.03)
            self.done[delivery.message.key].append(delivery.message.payload["n"])
        finally:
            self._running.discard(key)


async def consume(coder: Agent, record: Record, total: int, concurrency: int, failing: float = 0.0) -> None:
    """Handles messages until there are `total`, in as many tasks as there may be messages."""
    deliveries = coder.stream_consume("tasks", concurrency=concurrency)

    async def work() -> None:
        async for delivery in deliveries:
            async with delivery:
                await record.handle(delivery, failing)
            if record.count >= total:
                coder.stop()

    await asyncio.gather(*(work() for _ in range(concurrency)))


async def test_order_holds_under_three_consumers_with_failures(topology: Topology, planner: Agent) -> None:
    group = await topology.group("tasks", "coder")
    keys = [f"key-{n}" for n in range(50)]
    record = Record()
    async with AsyncExitStack() as stack:
        coders = [await stack.enter_async_context(topology.agent("coder", pod=f"pod-{n}")) for n in range(3)]
        consuming = asyncio.gather(*(consume(coder, record, 2_000, 16, failing=0.05) for coder in coders))
        for n in range(40):
            await asyncio.gather(*(send(planner, n, key=key) for key in keys))
        await until(lambda: record.count == 2_000, timeout=60)
        for coder in coders:
            coder.stop()
        await consuming
    assert not record.overlaps
    assert record.done == {key: list(range(40)) for key in keys}
    assert record.attempts > 2_000
    for tokens in record.tokens.values():
        assert tokens == sorted(set(tokens))
    await until(lambda: topology.settled(group, 2_000))
    # what was tried again is forgotten with its last attempt
    assert await topology.wire.call("EXISTS", StreamKeys(group.key).parked("coder")) == 0


async def test_messages_of_a_key_come_one_at_a_time_and_others_in_between(
    topology: Topology, planner: Agent
) -> None:
    group = await topology.group("tasks", "coder")
    await send(planner, *range(100))
    await send(planner, *range(200), key=None)
    async with topology.agent("coder") as coder, coder.stream_consume("tasks", concurrency=4) as deliveries:
        first = await following(deliveries)
        # all that has no key passes by what waits for the first
        assert await numbers(deliveries, 200) == list(range(200))
        assert await first.ack()
        assert await numbers(deliveries, 99) == list(range(1, 100))
    assert await topology.settled(group, 300)


async def test_what_comes_after_a_message_waits_for_its_retries_and_not_for_its_dead_letter(
    topology: Topology, planner: Agent
) -> None:
    group = await topology.group("tasks", "coder", max_deliveries=4)
    await send(planner, 0, 1, 2)
    seen: list[tuple[int, int]] = []
    async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        while len(seen) < 6:
            async with await following(deliveries) as delivery:
                n = delivery.message.payload["n"]
                seen.append((n, delivery.attempt))
                if n == 1:
                    raise Retry("again", after=0.05)
    assert seen == [(0, 1), (1, 1), (1, 2), (1, 3), (1, 4), (2, 1)]
    assert await topology.settled(group, 3)
    assert len(await topology.dead_letters(group)) == 1


async def test_another_consumer_waits_for_a_retry_and_not_for_a_dead_letter(
    topology: Topology, planner: Agent
) -> None:
    group = await topology.group("tasks", "coder")
    parked = StreamKeys(group.key).parked("coder")
    async with topology.agent("coder", pod="a") as one, topology.agent("coder", pod="b") as two:
        async with one.stream_consume("tasks") as deliveries:
            await send(planner, 0)
            first = await following(deliveries)
            async with two.stream_consume("tasks") as others:
                waiting = asyncio.create_task(following(others))
                await until(lambda: _reads(others))
                one.stop()
                await send(planner, 1)
                await until(lambda: _waits(others, 1))
                await first.retry(after=0.3)
                assert list(fields_of(await topology.wire.call("HGETALL", parked)).values()) == [b"retrying"]
                again = await waiting
                assert (again.message.payload["n"], again.attempt) == (0, 2)
                assert _waits(others, 1)
                await again.dead_letter("hopeless")
                assert (await following(others)).message.payload["n"] == 1


def _key_order(deliveries: Deliveries[Any]) -> Any:
    dispatch = deliveries._consumption._dispatcher
    return None if dispatch is None else dispatch._key_order


def _reads(deliveries: Deliveries[Any]) -> bool:
    return _key_order(deliveries) is not None


def _waits(deliveries: Deliveries[Any], count: int) -> bool:
    """Whether so many wait for their turn."""
    return len(_key_order(deliveries)) == count


async def test_what_is_not_for_the_agent_is_skipped_in_its_turn(topology: Topology, planner: Agent) -> None:
    group = await topology.group("tasks", "coder")
    await topology.group("tasks", "tester")
    await send(planner, 0)
    await send(planner, 1, to="tester")
    await send(planner, 2)
    async with topology.agent("coder", pod="a") as one, one.stream_consume("tasks") as deliveries:
        first = await following(deliveries)
        await until(lambda: _waits(deliveries, 2))
        assert len(await topology.pending(group)) == 3
        assert await first.ack()
        assert await numbers(deliveries, 1) == [2]
        assert await topology.settled(group, 3)
        async with topology.agent("tester") as tester:
            assert await numbers(tester.stream_consume("tasks"), 1) == [1]


async def test_what_cannot_be_handled_is_given_up_in_its_turn(
    topology: Topology, planner: Agent, wire: Client
) -> None:
    group = await topology.group("tasks", "coder")
    await send(planner, 0)
    order = StreamKeys(group.key).order
    last = (await wire.call("HGET", order, "k")).decode()
    broken = (await wire.call("XADD", group.key, "*", "m", b'{"key":"k"}', "p", last)).decode()
    await wire.call("HSET", order, "k", broken)
    await send(planner, 2)
    async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        first = await following(deliveries)
        await until(lambda: _waits(deliveries, 2))
        assert not await topology.dead_letters(group)
        assert await first.ack()
        assert await numbers(deliveries, 1) == [2]
    (record,) = await topology.dead_letters(group)
    assert record["origin"].decode() == broken


async def test_what_waits_is_handed_back_at_the_end_and_counts_no_attempt(
    topology: Topology, planner: Agent
) -> None:
    group = await topology.group("tasks", "coder", lease=60_000)
    await send(planner, 0, 1, 2)
    async with topology.agent("coder", pod="a") as one, one.stream_consume("tasks") as deliveries:
        first = await following(deliveries)
        await until(lambda: _waits(deliveries, 2))
        one.stop()
        async with topology.agent("coder", pod="b") as two, two.stream_consume("tasks") as others:
            waiting = asyncio.create_task(following(others))
            await until(lambda: _reads(others) and _waits(others, 2))
            assert not waiting.done()
            # goes to the end of the retries, and is still the first of its key
            assert await first.release()
            seen = []
            for delivery in [await waiting, None, None]:
                async with delivery or await following(others) as each:
                    seen.append((each.message.payload["n"], each.attempt))
    assert seen == [(0, 1), (1, 1), (2, 1)]
    assert await topology.settled(group, 3)


async def test_a_lost_message_is_waited_for_wherever_it_is(
    topology: Topology, planner: Agent, wire: Client
) -> None:
    group = await topology.group("tasks", "coder", lease=600)
    await send(planner, 0, 1)
    async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        first = await following(deliveries)
        entries = [entry for entry, *_ in await topology.pending(group)]
        await wire.call("XCLAIM", group.key, "coder", "other.1", 0, entries[0], "JUSTID")
        await until(lambda: not first.held)
        asking = asyncio.create_task(following(deliveries))
        dispatch = deliveries._consumption._dispatcher
        assert dispatch is not None
        # asked, and refused
        await until(lambda: (dispatch._key_order.ask_at or 0) > 0)
        assert not asking.done()
        assert await wire.call("XACK", group.key, "coder", entries[0]) == 1
        second = await asking
        assert second.message.payload["n"] == 1
        assert await second.ack()


async def test_a_process_that_is_full_of_what_waits_reads_retries_and_then_goes_on(
    topology: Topology, planner: Agent
) -> None:
    group = await topology.group("tasks", "coder")
    await send(planner, *range(400))
    await send(planner, 400, key=None)
    async with topology.agent("coder") as coder, coder.stream_consume("tasks", concurrency=1) as deliveries:
        first = await following(deliveries)
        # one slot is filled at a time: it takes a while on a busy machine
        await first.retry(after=3)
        asking = asyncio.create_task(following(deliveries))
        await until(lambda: _waits(deliveries, 256))
        again = await asking
        assert (again.message.payload["n"], again.attempt) == (0, 2)
        # no more than that is read ahead
        assert _waits(deliveries, 256)
        await again.ack()
        seen = await numbers(deliveries, 400)
    assert [n for n in seen if n < 400] == list(range(1, 400))
    assert await topology.settled(group, 401)


async def test_a_group_that_was_made_anew_hands_out_in_order_what_it_hands_out_again(
    topology: Topology, planner: Agent, wire: Client, caplog: pytest.LogCaptureFixture
) -> None:
    group = await topology.group("tasks", "coder")
    await send(planner, *range(5))
    async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        assert await numbers(deliveries, 2) == [0, 1]
        await wire.call("XGROUP", "DESTROY", group.key, "coder")
        await wire.call("FCALL", "as1_create_group", 1, group.key, StreamKeys(group.key).base, "coder", "0")
        seen: list[int] = []
        while len(seen) < 5:
            async with await following(deliveries) as delivery:
                if delivery.held:
                    seen.append(delivery.message.payload["n"])
    assert seen[-5:] in ([0, 1, 2, 3, 4], [1, 2, 3, 4, 0])


async def test_in_a_group_that_was_made_anew_nobody_overtakes_who_has_the_predecessor_again(
    topology: Topology, planner: Agent, wire: Client
) -> None:
    group = await topology.group("tasks", "coder", lease=60_000)
    await send(planner, 0)
    async with topology.agent("coder") as coder, coder.stream_consume("tasks", concurrency=1) as deliveries:
        assert await numbers(deliveries, 1) == [0]
        await send(planner, 100, key=None)
        # while this is in hand, nothing is read
        busy = await following(deliveries)
        await wire.call("XGROUP", "DESTROY", group.key, "coder")
        await wire.call("FCALL", "as1_create_group", 1, group.key, StreamKeys(group.key).base, "coder", "0")
        await wire.call("XREADGROUP", "GROUP", "coder", "other.1", "STREAMS", group.key, ">")
        (again, _, _, _), _ = await topology.pending(group)
        await send(planner, 1)
        assert not await busy.ack()
        asking = asyncio.create_task(following(deliveries))
        await until(lambda: _waits(deliveries, 1) or asking.done())
        assert not asking.done()
        await wire.call("XACK", group.key, "coder", again)
        assert (await asking).message.payload["n"] == 1


async def test_who_held_an_entry_before_the_group_was_made_anew_has_no_turn(
    topology: Topology, planner: Agent, wire: Client
) -> None:
    group = await topology.group("tasks", "coder")
    await send(planner, 0, 1)
    who = ("XREADGROUP", "GROUP", "coder")
    await wire.call(*who, "first.1", "STREAMS", group.key, ">")
    first, second = [entry for entry, *_ in await topology.pending(group)]
    hold = a_hold(second, [b"m", b'{"key":"k"}', b"p", first.encode()])

    async def turn(consumer: str) -> list[int]:
        return await wire.call(*GroupCalls(group, consumer).turn(hold.source, (hold,)))

    assert await turn("first.1") == [0]
    await wire.call("XACK", group.key, "coder", first)
    assert (await turn("first.1"), await turn("second.1")) == ([1], [0])
    await wire.call("XGROUP", "DESTROY", group.key, "coder")
    assert await wire.call("XGROUP", "CREATE", group.key, "coder", "0") == b"OK"
    assert await turn("first.1") == [0], "it is nobody's yet, and neither is the one before it finished"
    await wire.call(*who, "second.1", "STREAMS", group.key, ">")
    assert (await turn("first.1"), await turn("second.1")) == ([0], [0])
    await wire.call("XACK", group.key, "coder", first)
    assert (await turn("first.1"), await turn("second.1")) == ([0], [1])


async def test_what_was_delayed_while_the_clock_was_ahead_holds_up_its_key_no_longer_than_it_was_to(
    topology: Topology, planner: Agent, wire: Client
) -> None:
    group = await topology.group("tasks", "coder")
    keys = StreamKeys(group.key)
    await send(planner, 0, 1)
    async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        first = await following(deliveries)
        await first.retry(after=0.5)
        # as if the clock had been ahead by an hour, and was set back
        ((member, due),) = [await wire.call("ZRANGE", keys.delay("coder"), 0, 0, "WITHSCORES")]
        await wire.call("ZADD", keys.delay("coder"), int(due) + HOUR, member)
        await wire.call("HINCRBY", keys.stats("coder"), "sweep:delayed", HOUR)
        assert await numbers(deliveries, 2) == [0, 1]


async def test_a_server_that_does_not_answer_is_asked_again(
    server: Server, topology: Topology, planner: Agent, wire: Client, caplog: pytest.LogCaptureFixture
) -> None:
    group = await topology.group("tasks", "coder", lease=60_000)
    await send(planner, 0)
    await wire.call("XREADGROUP", "GROUP", "coder", "other.1", "STREAMS", group.key, ">")
    await send(planner, 1)
    others = [f"+fcall|as1_{name}" for name in ("take", "begin", "renew", "sweep", "settle", "release")]
    await wire.call("ACL", "SETUSER", "agent", "on", ">secret", "~*", "+@all", "-fcall", *others)
    url = server.url.replace("//", "//agent:secret@")
    async with topology.agent("coder", url=url) as coder, coder.stream_consume("tasks") as deliveries:
        asking = asyncio.create_task(following(deliveries))
        await until(
            lambda: any("ask for finished predecessors" in record.message for record in caplog.records)
        )
        await wire.call("XACK", group.key, "coder", (await topology.pending(group))[0][0])
        assert not asking.done()
        await wire.call("ACL", "SETUSER", "agent", "+fcall|as1_turn")
        assert (await asking).message.payload["n"] == 1
    await wire.call("ACL", "DELUSER", "agent")


async def test_a_batch_has_one_message_of_a_key(topology: Topology, planner: Agent) -> None:
    await topology.group("tasks", "coder")
    for n in range(3):
        await asyncio.gather(*(send(planner, n, key=key) for key in "abcd"))
    batches: list[list[tuple[str | None, int]]] = []
    async with topology.agent("coder") as coder:

        @coder.on("event", batch_size=4, max_wait=1.0)
        async def handle(deliveries: list[Message]) -> None:
            batches.append([(each.key, each.payload["n"]) for each in deliveries])
            if len(batches) == 3:
                coder.stop()

        await asyncio.wait_for(coder.run(), 20)
    assert [sorted(batch, key=str) for batch in batches] == [[(key, n) for key in "abcd"] for n in range(3)]


ORDER = StreamKeys(KEY).order


def add(admin: redis.Redis, *keys: str) -> list[str]:
    """Adds a message for each ordering key, in one batch."""
    names = StreamKeys(KEY)
    messages = [argument for key in keys for argument in ("x", 2, "key", key)]
    head = (names.sent(secrets.token_hex(8)), 0, 60_000, names.gate, names.order)
    reply = str(admin.fcall("as1_add", 1, KEY, *head, *messages))
    return reply.split(" ")[1:]


def predecessors(admin: redis.Redis) -> dict[str, str]:
    entries = admin.xrange(KEY)
    return {entry: fields["p"] for entry, fields in entries if "p" in fields}


async def test_each_entry_names_the_one_before_it_with_the_same_key(
    server: Server, broker: Broker, stream: redis.Redis
) -> None:
    a1, b1, a2 = add(stream, "a", "b", "a")
    a3, b2 = add(stream, "a", "b")
    stream.xadd(KEY, {"m": "without a key"})
    assert predecessors(stream) == {a1: "0-0", b1: "0-0", a2: a1, a3: a2, b2: b1}
    assert stream.hgetall(ORDER) == {"a": a3, "b": b2}


async def test_keys_are_forgotten_once_their_last_entry_is_trimmed(
    server: Server, broker: Broker, stream: redis.Redis
) -> None:
    old = {f"old-{n}": entry for n, entry in enumerate(fill(stream, 3_000, age=2 * HOUR))}
    stream.hset(ORDER, mapping=old)
    stream.hset(ORDER, "made up", "x")
    fill(stream, 100)
    young = add(stream, *(f"young-{n}" for n in range(100)))
    read(stream, ack=True)
    # a page at a time; at once after one another while there is much to forget
    await broker.janitor(spec("g"))
    assert stream.hlen(ORDER) < 1_000
    for _ in range(3):
        await broker.janitor(spec("g"))
    assert stream.hgetall(ORDER) == {f"young-{n}": entry for n, entry in enumerate(young)}


async def test_nothing_is_forgotten_while_a_declared_group_is_missing(
    server: Server, broker: Broker, stream: redis.Redis
) -> None:
    (entry,) = fill(stream, 1, age=2 * HOUR)
    stream.hset(ORDER, "k", entry)
    fill(stream, 300)
    stream.xtrim(KEY, maxlen=300, approximate=False)
    assert (await broker.janitor(spec("g", "gone"))).missing == "gone"
    assert stream.hgetall(ORDER) == {"k": entry}
    await broker.janitor(spec("g"))
    assert stream.exists(ORDER) == 0


async def test_a_key_is_remembered_while_a_group_tries_its_last_entry_again(
    server: Server, broker: Broker, stream: redis.Redis
) -> None:
    await broker.apply(CreateGroup(KEY, "h", "0"))
    (entry,) = fill(stream, 1, age=2 * HOUR)
    fill(stream, 300)
    stream.hset(ORDER, "k", entry)
    parked = StreamKeys(KEY).parked("h")
    stream.hset(parked, entry, "retrying")
    stream.xadd(StreamKeys(KEY).retry("h"), {"m": "x"})
    stream.xtrim(KEY, maxlen=300, approximate=False)
    for group in "gh":
        read(stream, group, ack=True)
    await broker.janitor(spec("g", "h"))
    assert stream.hgetall(ORDER) == {"k": entry}
    stream.hset(parked, entry, "dead")
    await broker.janitor(spec("g", "h"))
    assert stream.exists(ORDER) == 0


async def test_a_key_is_remembered_while_a_group_holds_what_was_trimmed_by_length(
    server: Server, broker: Broker, stream: redis.Redis
) -> None:
    (entry,) = add(stream, "k")
    read(stream)
    for _ in range(300):
        stream.xadd(KEY, {"m": "x"})
    read(stream)
    await broker.janitor(spec("g", on_full="TrimOldest", max_length=100))
    assert entry not in left(stream)
    assert stream.hgetall(ORDER) == {"k": entry}
    stream.xack(KEY, "g", entry)
    read(stream)
    stream.xack(KEY, "g", *(p["message_id"] for p in stream.xpending_range(KEY, "g", "-", "+", 1000)))
    await broker.janitor(spec("g"))
    assert stream.exists(ORDER) == 0


@pytest.mark.parametrize("group", ["g", "late"])
async def test_a_key_is_remembered_as_long_as_a_group_may_still_begin_with_its_entry(
    server: Server, broker: Broker, stream: redis.Redis, group: str
) -> None:
    (first,) = add(stream, "k")
    read(stream, ack=True)
    await broker.janitor(spec("g"))
    (second,) = add(stream, "k")
    await broker.apply(CreateGroup(KEY, "late", "0"))
    assert read(stream, group) == ([first, second] if group == "late" else [second])
    assert predecessors(stream)[second] == first


async def test_a_stream_that_is_deleted_leaves_nothing_of_its_keys(
    server: Server, broker: Broker, stream: redis.Redis
) -> None:
    add(stream, "k")
    assert stream.fcall("as1_delete_stream", 1, KEY, StreamKeys(KEY).base, 0, "g") == 1
    assert stream.exists(ORDER) == 0
