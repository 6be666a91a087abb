"""Whatever agents write into keys of their group, or into entries, stops neither the janitor nor neighbours.

Agents may write these keys because functions run with their rights. So each key is written here as its agents
may write it, and then everything that can be done with the stream and its two groups is done.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
import redis
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agentstream.protocol import commands
from agentstream.protocol.commands import DONE, GroupCalls
from agentstream.protocol.keys import StreamKeys
from agentstream.protocol.routes import Consumes
from agentstream.transport.client import Client
from agentstream_operator.broker.broker import Broker
from agentstream_operator.broker.observe import Look
from agentstream_operator.plan.actions import CreateGroup, CreateStream, DestroyGroup
from agentstream_operator.plan.observed import Gone, JanitorReport, StreamSeen
from support.entries import HOUR, KEY, Pending, read, spec

KEYS = StreamKeys(KEY)
STATS, DELAY, PARKED = KEYS.stats("g"), KEYS.delay("g"), KEYS.parked("g")
FAR = 9_000_000_000_000
Written = tuple[Any, ...]
HEALTHY = b"healthy"


def member(*parts: Any) -> bytes:
    return msgspec.msgpack.encode(parts)


FIELDS = (
    "settled",
    "resettled",
    "acked",
    "retried",
    "released",
    "dead",
    "trimmed",
    "overrun",
    "le:1",
    "le:inf",
    "slowest",
    "unreadable",
    "base:read",
    "base:settled",
    "gone",
    "sweep:heard",
    "sweep:delayed",
    "sweep:mend",
    "sweep:due",
    "sweep:main",
    "sweep:retry",
    "sweep:ahead",
    "sweep:retries-ahead",
    "expire:at",
    "forget:at",
)
GARBAGE = (
    "",
    "x",
    "-1",
    "1.5",
    "1e999",
    "inf",
    "-inf",
    "nan",
    "0x10",
    "9" * 18,
    "9" * 19,
    "9" * 400,
    "1-1",
    "01-00",
    "1-",
    "99999999999999999999-1",
    "18446744073709551615-18446744073709551615",
    "9 9 9 9",
    f"{FAR} {'9' * 400} 0 0",
    f"{FAR}",
    "\0",
    b"\xff",
    "x" * 6000,
    " a" * 3000,
    " ",
)
MEMBERS = (
    b"",
    b"x",
    b"\xc1",
    b"\xdd\xff\xff\xff\xff",
    b"\x91" * 100_000,
    member(),
    member("1-1", 1),
    member("1-1", 1, "m"),
    member("1-1", 1, []),
    member("1-1", 1, ["m"]),
    member("1-1", 1, ["m", 1]),
    member("1-1", 1, ["m", None]),
    member("1-1", 1, ["m", ["x"]]),
    member("1-1", 1, {"m": "x"}),
    member("1-1", 1, ["m", "x"] * 5000),
    member("1-1", 1, ["m", "x"], "y"),
    member(math.nan, math.inf, ["m", "x"], math.inf),
)
SCORES = (0, -math.inf, math.inf, 1.5, 1e300, -1e300, FAR)
HEADERS = (
    '{"origin":"garbage"}',
    '{"a":nan}',
    '{"attempts":nan,"fence":1e999}',
    '{"attempts":"inf","fence":"nan"}',
    '{"origin":"01-00"}',
    '{"origin":"99999999999999999999-1"}',
    '{"origin":"' + "9" * 400 + '-1"}',
    '{"origin":{},"attempts":[],"fence":{}}',
    '{"reason":{"a":nan}}',
    b'{"origin":"\xff"}',
    "[" * 2000,
    "null",
    "",
)


@dataclass
class Group:
    """A group whose every function is called, on healthy messages beside what is there already."""

    name: str
    admin: redis.Redis
    wire: Client
    policy: Consumes = field(init=False)

    def __post_init__(self) -> None:
        self.policy = Consumes("tasks", KEY, self.name, broadcast=True)
        self.mine, self.other = (GroupCalls(self.policy, consumer) for consumer in ("c", "pod.1"))

    async def call(self, command: commands.Command) -> Any:
        return await self.wire.call(*command)

    async def deliver(self, count: int) -> list[Pending]:
        """Adds and reads healthy messages."""
        added = [self.admin.xadd(KEY, {"m": HEALTHY}) for _ in range(count)]
        ((_, entries),) = await self.call(self.mine.read([self.mine.main], 1000, None))
        assert set(added) <= {entry.decode() for entry, _ in entries}
        return [Pending(one, after="0-1") for one in added]

    async def sweep(self) -> tuple[list[str], int]:
        """Sweeps until nothing is left to do. Returns the claimed entries and the number of moved retries."""
        claimed, moved_in_all = [], 0
        for _ in range(50):
            moved, entries, _, wait = await self.call(self.other.sweep(HOUR, 1000, 100, now=True))
            claimed += [entry.decode() for entry, _, _ in entries]
            moved_in_all += moved
            if wait and not moved:
                return claimed, moved_in_all
        raise AssertionError("sweeping does not end")

    async def end_each_way(self) -> None:
        mine, dead_letters = self.mine, KEYS.dead_letters(self.name)
        dead_before = self.admin.xlen(dead_letters)
        acked, also, later, soon, dead, released = await self.deliver(6)
        assert await self.call(mine.begin(mine.main, [acked])) == [2]
        acked.counter = 2
        assert await self.call(mine.renew(mine.main, HOUR, [acked, also])) == [DONE, DONE]
        assert await self.call(mine.turn(mine.main, [released])) == [1]
        assert await self.call(mine.settle(mine.main, "acked", [acked, also])) == [DONE, DONE]
        assert await self.call(mine.retry(later, 1, 1, "Failed", "boom")) == DONE
        assert await self.call(mine.retry(soon, 0, 1, "Failed", "boom")) == DONE
        assert await self.call(mine.dead_letter(dead, 1, "Failed", "boom")) == DONE
        assert await self.call(mine.release(mine.main, "begun", [released])) == [DONE]
        assert self.admin.xlen(dead_letters) == dead_before + 1
        await self.end_retries({later.id, soon.id, released.id})

    async def end_retries(self, healthy: set[str]) -> None:
        """Settles all that is on the retry stream: the entries of these messages are among them."""
        deadline = int(self.admin.time()[0]) + 10
        found: set[str] = set()
        while not healthy <= found:
            assert int(self.admin.time()[0]) < deadline, (healthy, found)
            await self.sweep()
            reply = await self.call(self.mine.read([self.mine.retries], 1000, None))
            entries = [(entry.decode(), flat) for entry, flat in reply[0][1]] if reply else []
            bodies = [dict(zip(flat[::2], flat[1::2], strict=True)) for _, flat in entries]
            found |= {
                msgspec.json.decode(fields[b"x"])["origin"]
                for fields in bodies
                if fields.get(b"m") == HEALTHY
            }
            held = [Pending(entry, self.mine.retries) for entry, _ in entries]
            for part in (held[i : i + 100] for i in range(0, len(held), 100)):
                assert await self.call(self.mine.settle(self.mine.retries, "acked", part)) == [DONE] * len(
                    part
                )

    async def claim(self) -> None:
        """Claims what was handed back; takes what an ended process had."""
        one, two = await self.deliver(2)
        assert await self.call(self.mine.release(self.mine.main, "delivered", [one])) == [DONE]
        claimed, _ = await self.sweep()
        assert one.id in claimed
        start, taken = b"-", list[str]()
        while start:
            start, entries = await self.call(self.other.take(self.other.main, "c", start.decode(), 500))
            taken += [entry.decode() for entry, _, _ in entries]
        assert two.id in taken


@dataclass
class World:
    """A stream with the groups `g`, whose agents are hostile, and `h`."""

    admin: redis.Redis
    broker: Broker
    wire: Client

    def group(self, name: str) -> Group:
        return Group(name, self.admin, self.wire)

    async def start(self) -> None:
        self.admin.flushall()
        await self.broker.apply(CreateStream(KEY, {"name": "tasks"}))
        for group in ("g", "h"):
            await self.broker.apply(CreateGroup(KEY, group, "0"))

    def write(self, *command: Any) -> None:
        self.admin.execute_command(*command)

    async def janitor(self, **limits: Any) -> JanitorReport:
        return await self.broker.janitor(spec("g", "h", broadcast=True, **limits))

    def unreadable(self) -> int:
        return int(self.admin.hget(STATS, "unreadable") or 0)

    async def everything_works(self) -> None:
        """Does everything with the stream, and asserts that it has its effect."""
        assert (await self.janitor()).failed == {}
        for name in ("g", "h"):
            group = self.group(name)
            await group.end_each_way()
            await group.claim()
            await self.broker.release_pod(KEY, name, Gone("pod"), for_good=True)
        # what is pending expires
        report = await self.janitor(min_age=0, max_length=1, lease=1, keep_dead=1)
        assert (report.failed, report.missing) == ({}, None)
        seen, other = await self.broker.measure([Look(KEY, ("g", "h")), Look("{t.other}", ())])
        assert isinstance(seen, StreamSeen)
        assert isinstance(other, StreamSeen)
        assert not any(group.unreadable for group in seen.groups.values())
        await self.broker.apply(DestroyGroup(KEY, "g"))
        await self.broker.apply(CreateGroup(KEY, "g", "0"))
        await self.group("g").end_each_way()


@pytest.fixture
async def world(broker: Broker, admin: redis.Redis, wire: Client) -> World:
    world = World(admin, broker, wire)
    await world.start()
    return world


@pytest.mark.parametrize("name", FIELDS)
async def test_garbage_in_the_stats_of_a_group_stops_nothing(world: World, name: str) -> None:
    for value in GARBAGE:
        await world.start()
        world.write("HSET", STATS, name, value)
        await world.everything_works()


@pytest.mark.parametrize("garbage", MEMBERS, ids=range(len(MEMBERS)))
async def test_a_delayed_retry_that_cannot_be_read_is_dropped_and_counted(
    world: World, garbage: bytes
) -> None:
    world.write("ZADD", DELAY, 0, garbage)
    await world.everything_works()


async def test_what_is_dropped_is_counted_and_seen(world: World) -> None:
    world.write("ZADD", DELAY, 0, "x", 0, "y")
    world.write("HSET", STATS, "settled", "abc")
    await world.group("g").end_each_way()
    assert world.admin.zcard(DELAY) == 0
    assert (await world.broker.observe(KEY, ("g",))).groups["g"].stats["unreadable"] == 3


@pytest.mark.parametrize("score", SCORES)
async def test_a_retry_at_an_impossible_time_hides_no_stream(world: World, score: float) -> None:
    world.write("ZADD", DELAY, str(score), member("1-1", 1, ["m", "x"]))
    await world.everything_works()


async def test_retries_that_the_clock_left_behind_are_mended_beside_garbage(world: World) -> None:
    world.write("HSET", STATS, "sweep:delayed", FAR)
    world.write("ZADD", DELAY, FAR, member("1-1", 1, ["m", "late"], 1), FAR - 1, b"x", FAR - 2, member())
    await world.everything_works()
    assert world.unreadable() == 0  # the group was made again


@pytest.mark.parametrize("header", HEADERS)
async def test_a_header_on_the_retry_stream_harms_its_own_entry_at_most(
    world: World, header: str | bytes
) -> None:
    for _ in range(2):
        world.write("XADD", KEYS.retry("g"), "*", "m", "x", "x", header)
    group = world.group("g")
    reply = await group.call(group.mine.read([group.mine.retries], 2, None))
    one, two = (Pending(entry.decode(), group.mine.retries) for entry, _ in reply[0][1])
    assert await group.call(group.mine.retry(one, 0, 1, "Failed", "boom")) == DONE
    assert await group.call(group.mine.release(two.source, "begun", [two])) == [DONE]
    await world.everything_works()


@pytest.mark.parametrize("fields", [101, 4_001, 100_000])
@pytest.mark.parametrize("key", [KEY, KEYS.retry("g")])
async def test_an_entry_of_too_many_fields_ends_as_any_other_but_keeps_only_its_message(
    world: World, key: str, fields: int
) -> None:
    many = [part for i in range(fields) for part in (f"f{i}", "x")]
    ids = [world.admin.execute_command("XADD", key, "*", *many, "m", "body", "s", "signed") for _ in range(4)]
    world.admin.xreadgroup("g", "c", {key: ">"})
    group = world.group("g")
    source = group.mine.main if key == KEY else group.mine.retries
    soon, later, released, dead = (Pending(entry, source) for entry in ids)
    assert await group.call(group.mine.retry(soon, 0, 1, "Failed", "boom")) == DONE
    assert await group.call(group.mine.retry(later, 1, 1, "Failed", "boom")) == DONE
    assert await group.call(group.mine.release(source, "begun", [released])) == [DONE]
    assert await group.call(group.mine.dead_letter(dead, 1, "Failed", "boom")) == DONE
    ((_, letter),) = world.admin.xrange(KEYS.dead_letters("g"))
    assert set(letter) == {"m", "s", "origin", "attempts", "fence", "reason", "error"}
    for _, retried in world.admin.xrange(KEYS.retry("g")):
        assert set(retried) == {"m", "s", "x"}
    await world.everything_works()


async def test_what_is_longer_than_anything_that_agents_need_is_not_read_at_each_pass(world: World) -> None:
    long, later = "x" * 5_000, f"{FAR}-1"
    world.write("HSET", PARKED, later, long, f"{FAR}-2", "retrying")
    world.write("HSET", KEYS.order, long, later, "k", later)
    world.write("XADD", KEYS.retry("g"), "*", "m", "x")
    world.write("XADD", KEY, "*", "m", "x")
    for name in (long, "c"):
        world.write("XGROUP", "CREATECONSUMER", KEY, "g", name)
    world.admin.xreadgroup("g", long, {KEY: ">"})
    assert not (await world.janitor()).failed
    assert set(world.admin.hkeys(PARKED)) == {f"{FAR}-2", "since"}
    assert world.admin.hkeys(KEYS.order) == ["k"]
    assert [one["name"] for one in world.admin.xinfo_consumers(KEY, "g")] == ["c"]
    world.admin.delete(PARKED, KEYS.order)
    await world.everything_works()


async def test_an_entry_that_is_larger_than_any_message_is_not_copied_for_ever(world: World) -> None:
    large, largest_message = ("f", b"x" * (1 << 20)) * 18, ("m", b"x" * (16 << 20))
    now = int(world.admin.time()[0]) * 1000
    old, kept, newest, late = (
        f"{now - 11_000}-0",
        f"{now - 11_000}-1",
        f"{now - 10_999}-0",
        f"{now + 60_000}-0",
    )
    world.write("XADD", KEY, old, *large)
    read(world.admin, "h")
    world.write("XADD", KEY, kept, *largest_message)
    world.write("XADD", KEY, newest, *large)
    assert not (await world.janitor(min_age=HOUR)).failed
    assert [entry for entry, _ in world.admin.xrange(KEY)] == [kept]
    seen = await world.broker.observe(KEY, ("g", "h"))
    assert [seen.groups[group].stats.get("overrun", 0) for group in ("g", "h")] == [2, 1]
    assert [seen.groups[group].undelivered for group in ("g", "h")] == [1, 1]
    # consumers may still make a dead letter of this one, but not of one of the future
    added = world.admin.execute_command("XADD", KEY, "*", *large)
    await world.janitor(min_age=HOUR)
    assert [entry for entry, _ in world.admin.xrange(KEY)] == [kept, added]
    world.write("XADD", KEY, late, *large)
    report = await world.janitor(min_age=HOUR)
    assert report.overrun == 2
    assert [entry for entry, _ in world.admin.xrange(KEY)] == [kept, added]


@pytest.mark.parametrize("retries", [False, True])
async def test_what_a_dead_letter_says_of_its_entry_no_producer_says(world: World, *, retries: bool) -> None:
    said = ("origin", "attempts", "fence", "reason", "error")
    key = KEYS.retry("g") if retries else KEY
    made_up = [part for name in (*said, "other") for part in (name, "made up")]
    entry = world.admin.execute_command("XADD", key, "*", "m", "x", *made_up)
    world.admin.xreadgroup("g", "c", {key: ">"})
    group = world.group("g")
    source = group.mine.retries if retries else group.mine.main
    dead = Pending(entry, source)
    assert await group.call(group.mine.dead_letter(dead, 1, "Failed", "boom")) == DONE
    ((_, flat),) = await world.wire.call("XRANGE", KEYS.dead_letters("g"), "-", "+")
    assert [name.decode() for name in flat[::2]] == ["m", "other", *said]
    assert flat[-3:] == [b"Failed", b"error", b"boom"]


async def test_a_full_stream_expires_entries_of_too_many_fields(world: World) -> None:
    many = [part for i in range(4_001) for part in (f"f{i}", "x")]
    expired = world.admin.execute_command("XADD", KEY, "*", *many, "m", "body")
    world.admin.xreadgroup("g", "c", {KEY: ">"})
    world.admin.xclaim(KEY, "g", "c", 0, [expired], idle=60_000, justid=True)
    report = await world.janitor(max_length=1, min_age=0, lease=1000, on_full="Backpressure")
    assert (report.expired, report.failed) == (1, {})


async def test_a_key_of_the_wrong_type_stops_its_own_group_only_and_is_said(world: World) -> None:
    healthy = world.group("h")
    for key in (DELAY, STATS, PARKED, KEYS.retry("g"), KEYS.dead_letters("g")):
        await world.start()
        world.admin.delete(key)
        world.write("SET", key, "x")
        report = await world.janitor()
        assert set(report.failed) <= {"g"}
        await healthy.end_each_way()
        await healthy.claim()
        seen, other = await world.broker.measure([Look(KEY, ("g", "h")), Look("{t.other}", ())])
        assert isinstance(seen, StreamSeen)
        assert isinstance(other, StreamSeen)
        assert not seen.groups["h"].unreadable
        assert seen.groups["g"].unreadable or "WRONGTYPE" in report.failed["g"]


@pytest.mark.parametrize("garbage", GARBAGE, ids=range(len(GARBAGE)))
async def test_what_a_producer_writes_for_receipts_and_order_stops_nothing(
    world: World, garbage: str | bytes
) -> None:
    world.write("ZADD", KEYS.receipts, 0, garbage, math.inf, "since")
    world.write("HSET", KEYS.order, "k", garbage, garbage, "1-1")
    world.write("HSET", PARKED, garbage, "retrying", "since", garbage, "1-1", garbage)
    await world.everything_works()
    assert world.admin.fcall_ro(*commands.receipt(KEYS, ("g", "h"), ("1-1",))[1:])


async def test_made_up_receipts_keep_no_others_from_being_finished(world: World) -> None:
    world.write("ZADD", KEYS.receipts, *(part for i in range(1200) for part in (i, f"{FAR}-{i}")))
    world.write("ZADD", KEYS.receipts, 1_000_000, "1000000-1")
    world.write("XADD", KEY, "*", "m", "x")
    await world.janitor()
    assert world.admin.zscore(KEYS.receipts, "1000000-1") is None


async def test_the_last_id_of_all_stops_no_pass_of_the_janitor(world: World) -> None:
    world.write("XADD", KEY, "18446744073709551615-18446744073709551615", "m", "x")
    for group in ("g", "h"):
        read(world.admin, group)
    assert (await world.janitor()).failed == {}
    group = world.group("g")
    following, taken = await group.call(group.other.take(group.other.main, "c", "-", 1))
    assert (len(taken), following) == (1, b"")


anything = st.one_of(
    st.binary(max_size=40), st.sampled_from(GARBAGE), st.integers().map(str), st.floats().map(str)
)
writes = st.one_of(
    st.tuples(st.just("HSET"), st.just(STATS), st.one_of(st.sampled_from(FIELDS), anything), anything),
    st.tuples(st.just("ZADD"), st.just(DELAY), st.sampled_from(SCORES).map(str), anything),
    st.tuples(
        st.just("ZADD"),
        st.just(DELAY),
        st.sampled_from(SCORES).map(str),
        st.recursive(
            st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**63), st.floats(), st.text()),
            lambda inner: st.one_of(st.lists(inner, max_size=6), st.dictionaries(st.text(max_size=3), inner)),
        ).map(msgspec.msgpack.encode),
    ),
    st.tuples(st.just("HSET"), st.just(PARKED), anything, anything),
    st.tuples(st.just("ZADD"), st.just(KEYS.receipts), st.sampled_from(SCORES).map(str), anything),
    st.tuples(st.just("HSET"), st.just(KEYS.order), anything, anything),
    st.tuples(st.just("XADD"), st.just(KEYS.retry("g")), st.just("*"), st.just("x"), anything),
    st.tuples(st.just("XADD"), st.just(KEY), st.just("*"), anything, anything),
)


@settings(max_examples=100)
@given(written=st.lists(writes, min_size=1, max_size=8))
@example(written=[("ZADD", DELAY, "0", "x"), ("HSET", STATS, "forget:at", "x")])
async def test_whatever_is_written_stops_nothing(world: World, written: list[Written]) -> None:
    await world.start()
    for command in written:
        world.write(*command)
    await world.everything_works()
