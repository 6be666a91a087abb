"""The janitor drops what is old and settled, and nothing that a group still needs or will need again."""

from __future__ import annotations

import asyncio
import random

import pytest
import redis

from agentstream.protocol import library
from agentstream.transport.client import Client
from agentstream_operator.broker.broker import Broker
from agentstream_operator.plan.actions import CreateGroup, CreateStream
from agentstream_operator.plan.observed import JanitorReport
from support.entries import GATE, HOUR, KEY, fill, left, now, read, refuses, settle, spec
from support.servers import Server
from support.waiting import until


async def test_settled_entries_go_when_they_are_old_enough(
    server: Server, broker: Broker, stream: redis.Redis
) -> None:
    fill(stream, 250, age=2 * HOUR)
    young = fill(stream, 50, age=HOUR // 2)
    read(stream, ack=True)
    report = await broker.janitor(spec("g"))
    assert report == JanitorReport(type="stream", length=100, trimmed=200, gate=1_000_100)
    assert left(stream)[-50:] == young


async def test_unsettled_entries_stay_however_old_they_are_and_the_group_is_named(
    server: Server, broker: Broker, stream: redis.Redis
) -> None:
    fill(stream, 300, age=2 * HOUR)
    fill(stream, 1)
    read(stream, count=150, ack=True)
    report = await broker.janitor(spec("g"))
    assert (report.trimmed, report.held_by, report.unsettled) == (100, "g", 151)


async def test_one_pending_entry_holds_what_follows_it(
    server: Server, broker: Broker, stream: redis.Redis
) -> None:
    ids = fill(stream, 300, age=2 * HOUR)
    fill(stream, 1)
    read(stream)
    stream.xack(KEY, "g", *ids[:120], *ids[121:])
    report = await broker.janitor(spec("g"))
    assert (report.trimmed, report.held_by, report.unsettled) == (100, "g", 181)


async def test_a_group_that_was_set_back_holds_what_it_will_read_again(
    server: Server, broker: Broker, stream: redis.Redis
) -> None:
    ids = fill(stream, 300, age=2 * HOUR)
    fill(stream, 1)
    read(stream, ack=True)
    stream.xgroup_setid(KEY, "g", ids[249])
    read(stream, count=10)
    stream.xgroup_setid(KEY, "g", ids[49])
    report = await broker.janitor(spec("g"))
    assert (report.trimmed, report.held_by) == (0, "g")
    assert (await broker.observe(KEY, ())).checkpoint("g") == ids[49]


async def test_a_clock_that_jumped_ahead_trims_nothing_before_new_entries_come(
    server: Server, broker: Broker, stream: redis.Redis
) -> None:
    fill(stream, 300, age=100 * HOUR)
    read(stream, ack=True)
    assert (await broker.janitor(spec("g"))).trimmed == 0
    fill(stream, 1)
    read(stream, ack=True)
    assert (await broker.janitor(spec("g"))).trimmed == 300


async def test_a_pass_goes_on_while_there_is_much_to_trim(
    server: Server, broker: Broker, stream: redis.Redis
) -> None:
    stream.eval("for i = 1, 250000 do redis.call('XADD', KEYS[1], '1-' .. i, 'm', '') end", *(1, KEY))
    fill(stream, 1)
    stream.xgroup_setid(KEY, "g", "$")
    report = await broker.janitor(spec("g"))
    assert (report.trimmed, report.length, report.more) == (250_000, 1, False)


async def test_what_was_given_up_is_known_as_long_as_history_is_kept(
    server: Server, broker: Broker, stream: redis.Redis
) -> None:
    parked = f"{KEY}:parked:g"
    old, young = fill(stream, 700, age=2 * HOUR), fill(stream, 300)
    read(stream, ack=True)
    stream.hset(parked, mapping={**dict.fromkeys(old[100:] + young, "dead"), "made up": "dead"})
    stream.hset(parked, mapping=dict.fromkeys(old[:100], "retrying"))
    stream.xadd(f"{KEY}:retry:g", {"m": "x"})

    async def what_is_old_is_forgotten() -> bool:
        # a page of them a pass, in the order that the server likes
        await broker.janitor(spec("g"))
        return stream.hlen(parked) == 400

    await until(what_is_old_is_forgotten)
    for _ in range(3):
        await broker.janitor(spec("g"))
    assert stream.hgetall(parked) == {**dict.fromkeys(young, "dead"), **dict.fromkeys(old[:100], "retrying")}


async def test_what_was_given_up_by_thousands_is_forgotten_in_one_go(
    server: Server, broker: Broker, stream: redis.Redis
) -> None:
    parked = f"{KEY}:parked:g"
    fill(stream, 1)
    stream.eval("for i = 1, 20000 do redis.call('HSET', KEYS[1], '1-' .. i, 'dead') end", 1, parked)
    for _ in range(2):
        await broker.janitor(spec("g"))
    assert stream.hlen(parked) < 2000


async def test_what_somebody_deleted_is_not_tried_again(
    server: Server, broker: Broker, stream: redis.Redis
) -> None:
    (entry,) = fill(stream, 1)
    parked, delayed = f"{KEY}:parked:g", f"{KEY}:delay:g"
    stream.hset(parked, entry, "retrying")
    stream.zadd(delayed, {"x": now(stream) + HOUR})
    await broker.janitor(spec("g"))
    assert stream.hgetall(parked) == {entry: "retrying"}
    stream.delete(delayed)
    await broker.janitor(spec("g"))
    assert not stream.exists(parked)


async def test_what_was_given_up_outlives_history_that_was_shortened(
    server: Server, broker: Broker, stream: redis.Redis
) -> None:
    ids = fill(stream, 300)
    read(stream, ack=True)
    stream.hset(f"{KEY}:parked:g", ids[0], "dead")
    await broker.janitor(spec("g", max_length=100))
    assert ids[0] not in left(stream)
    assert stream.hgetall(f"{KEY}:parked:g") == {ids[0]: "dead"}


async def test_a_stream_without_groups_keeps_its_entries_for_their_age(
    server: Server, broker: Broker, stream: redis.Redis
) -> None:
    stream.xgroup_destroy(KEY, "g")
    fill(stream, 100, age=2 * HOUR)
    fill(stream, 200)
    report = await broker.janitor(spec(max_length=250))
    assert (report.trimmed, report.length, report.refusing) == (100, 200, True)
    report = await broker.janitor(spec(max_length=250))
    assert (report.trimmed, report.unsettled, report.refusing, report.gate) == (0, 200, False, 250)


async def test_nothing_goes_while_a_declared_group_is_missing(
    server: Server, broker: Broker, stream: redis.Redis
) -> None:
    fill(stream, 300, age=2 * HOUR)
    fill(stream, 300)
    read(stream, ack=True)
    report = await broker.janitor(spec("g", "gone", max_length=10))
    assert report == JanitorReport(type="stream", length=600, missing="gone")
    assert stream.get(GATE) is None


@pytest.mark.parametrize("node", [100, 1000], ids=lambda node: f"{node} entries a node")
async def test_what_is_old_goes_from_the_stream_and_the_dead_letters_whatever_a_node_holds(
    server: Server, broker: Broker, stream: redis.Redis, node: int
) -> None:
    """1,000 is what the servers have that are made here, 100 the default."""
    dead_letters = f"{KEY}:dlq:g"
    stream.config_set("stream-node-max-entries", node)
    stream.config_set("stream-node-max-bytes", 1 << 20)
    try:
        for key in (KEY, dead_letters):
            for n in range(2_500):
                stream.xadd(key, {"m": "x"}, id=f"1-{n + 1}")
            stream.xadd(key, {"m": "x"})
        read(stream, ack=True, count=2_501)
        while (await broker.janitor(spec("g"))).more:
            pass
        assert [stream.xlen(key) <= node for key in (KEY, dead_letters)] == [True, True]
    finally:
        stream.config_set("stream-node-max-entries", 100)
        stream.config_set("stream-node-max-bytes", 4096)


@pytest.mark.parametrize("kind", ["none", "string"])
async def test_without_a_stream_only_due_retries_move(
    server: Server, broker: Broker, stream: redis.Redis, kind: str
) -> None:
    stream.delete(KEY)
    if kind == "string":
        stream.set(KEY, "x")
    stream.xadd(f"{KEY}:dlq:g", {"m": "x"}, id="1-1")
    assert await broker.janitor(spec("g")) == JanitorReport(type=kind)
    assert stream.xlen(f"{KEY}:dlq:g") == 1
    stream.delete(KEY)


async def test_a_foreign_group_without_consumers_holds_nothing(
    server: Server, broker: Broker, stream: redis.Redis
) -> None:
    stream.xgroup_create(KEY, "stranger", "0")
    fill(stream, 300, age=2 * HOUR)
    fill(stream, 1)
    read(stream, ack=True)
    assert (await broker.janitor(spec("g"))).trimmed == 300


async def test_a_foreign_group_with_a_consumer_holds_what_it_needs_but_never_stops_adding(
    server: Server, broker: Broker, stream: redis.Redis
) -> None:
    stream.xgroup_create(KEY, "stranger", "0")
    fill(stream, 300, age=2 * HOUR)
    fill(stream, 1)
    read(stream, ack=True)
    read(stream, "stranger", count=100, ack=True)
    report = await broker.janitor(spec("g", max_length=50))
    assert (report.trimmed, report.held_by) == (100, "stranger")
    assert (report.unsettled, report.refusing) == (0, False)
    assert not refuses(stream)


async def test_a_foreign_group_holds_nothing_once_its_consumers_were_away_too_long(
    server: Server, broker: Broker, stream: redis.Redis
) -> None:
    # what is a day in the library is 50 ms here
    source = library.source().replace("DAY = 86400000", "DAY = 50")
    assert source != library.source()
    stream.function_load(source, replace=True)
    stream.xgroup_create(KEY, "stranger", "0")
    fill(stream, 300, age=2 * HOUR)
    fill(stream, 1)
    read(stream, ack=True)
    stream.xgroup_createconsumer(KEY, "stranger", "c")

    async def gone() -> bool:
        return (await broker.janitor(spec("g"))).trimmed == 300

    await until(gone)


async def test_each_pass_records_where_groups_would_resume(
    server: Server, broker: Broker, stream: redis.Redis
) -> None:
    ids = fill(stream, 10)

    async def checkpoint() -> str | None:
        await broker.janitor(spec("g"))
        return (await broker.observe(KEY, ("g",))).checkpoint("g")

    assert await checkpoint() == "0-0"
    read(stream, count=5, ack=True)
    assert await checkpoint() == ids[4]
    read(stream, count=3)
    settle(stream, ids[5])
    assert await checkpoint() == ids[5]
    settle(stream, ids[6], ids[7])
    assert await checkpoint() == ids[7]
    read(stream, count=1)
    stream.xack(KEY, "g", ids[8])
    assert await checkpoint() == ids[7], "that was nobody of ours"


@pytest.mark.parametrize(
    ("entry", "checkpoint"),
    [
        ("5-0", "4-18446744073709551615"),
        ("100-0", "99-18446744073709551615"),
        ("7-18446744073709551615", "7-18446744073709551614"),
        ("7-9007199254740993", "7-9007199254740992"),
        ("7-1000", "7-999"),
        ("0-1", "0-0"),
    ],
)
async def test_a_group_that_comes_back_at_its_checkpoint_reads_exactly_what_was_pending(
    server: Server, broker: Broker, stream: redis.Redis, entry: str, checkpoint: str
) -> None:
    stream.xadd(KEY, {"m": "x"}, id=entry)
    read(stream)
    await broker.janitor(spec("g"))
    assert (await broker.observe(KEY, ())).checkpoint("g") == checkpoint
    stream.xgroup_destroy(KEY, "g")
    await broker.apply(CreateGroup(KEY, "g", checkpoint))
    assert read(stream) == [entry]


@pytest.mark.parametrize(
    "entries",
    [
        ("5-18446744073709551614", "5-18446744073709551615", "6-0"),
        ("5-9007199254740992", "5-9007199254740993", "5-9007199254740994"),
        ("5-18446744073709551615", "6-0", "6-1"),
        ("9-9", "9-10", "10-0"),
    ],
)
async def test_ids_of_any_size_are_trimmed_to_the_entry(
    server: Server, broker: Broker, stream: redis.Redis, entries: tuple[str, ...]
) -> None:
    for entry in entries:
        stream.xadd(KEY, {"m": "x"}, id=entry)
    fill(stream, 1)
    for settled in range(3):
        await broker.janitor(spec("g", on_full="Backpressure", max_length=1))
        assert left(stream)[: 3 - settled] == list(entries[settled:])
        read(stream, count=1, ack=True)


@pytest.mark.parametrize("on_full", ["TrimAcknowledged", "Backpressure"])
@pytest.mark.parametrize("seed", range(3))
async def test_nothing_unsettled_is_ever_trimmed(
    server: Server, broker: Broker, admin: redis.Redis, seed: int, on_full: str
) -> None:
    chance = random.Random(seed)
    await broker.apply(CreateStream(KEY, {"name": "tasks"}))
    owed: dict[str, set[str]] = {"a": set(), "b": set()}
    for group in owed:
        await broker.apply(CreateGroup(KEY, group, "0"))
    admin.config_set("stream-node-max-entries", 10)
    trimmed = 0
    try:
        for _ in range(250):
            # up to 1,000 are counted and not estimated
            most = min(40, 900 - max(len(ids) for ids in owed.values()))
            for entry in [admin.xadd(KEY, {"m": "x"}) for _ in range(chance.randint(0, most))]:
                for ids in owed.values():
                    ids.add(entry)
            group = chance.choice(sorted(owed))
            read(admin, group, count=chance.choice((1, 20, 60)))
            pending = [p["message_id"] for p in admin.xpending_range(KEY, group, "-", "+", 1000)]
            done = chance.sample(pending, len(pending) * chance.choice((0, 1, 2)) // 2)
            if done:
                admin.xack(KEY, group, *done)
                owed[group].difference_update(done)
            if chance.random() < 0.1:
                seen = await broker.observe(KEY, tuple(owed))
                admin.xgroup_destroy(KEY, group)
                await broker.apply(CreateGroup(KEY, group, seen.checkpoint(group) or "0"))
            report = await broker.janitor(spec(*owed, min_age=5, max_length=100, on_full=on_full))
            trimmed += report.trimmed
            assert set().union(*owed.values()) <= set(left(admin))
            assert report.unsettled >= max(len(ids) for ids in owed.values())
    finally:
        admin.config_set("stream-node-max-entries", 100)
    assert trimmed > 500


async def consumer(admin: redis.Redis, name: str, *, age: int, group: str = "g") -> None:
    """A consumer that has done nothing for so many ms, on both of the group's streams."""
    for key in (KEY, f"{KEY}:retry:{group}"):
        admin.xgroup_createconsumer(key, group, name)
    await until(lambda: all(idle >= age for idle in idle_times(admin, name, group)))


def idle_times(admin: redis.Redis, name: str, group: str = "g") -> list[int]:
    """For how many ms a consumer has been idle on each stream that knows it."""
    return [
        found["idle"]
        for key in (KEY, f"{KEY}:retry:{group}")
        for found in admin.xinfo_consumers(key, group)
        if found["name"] == name
    ]


@pytest.fixture
def hasty(stream: redis.Redis) -> redis.Redis:
    """Who was not heard of for 50 ms is gone."""
    source = library.source().replace("FORGET = 60000", "FORGET = 50")
    assert source != library.source()
    stream.function_load(source, replace=True)
    return stream


async def test_a_consumer_that_was_heard_of_lately_stays(broker: Broker, stream: redis.Redis) -> None:
    await consumer(stream, "pod.1", age=50)
    assert (await broker.janitor(spec("g"))).forgotten == 0
    assert len(idle_times(stream, "pod.1")) == 2


async def test_consumers_that_are_gone_leave_both_streams(broker: Broker, hasty: redis.Redis) -> None:
    for n in range(100):
        await consumer(hasty, f"pod.{n}", age=0)
    await until(lambda: min(idle_times(hasty, "pod.99")) > 50)
    fill(hasty, 1)
    read(hasty)
    assert (await broker.janitor(spec("g"))).forgotten == 100
    assert [found["name"] for found in hasty.xinfo_consumers(KEY, "g")] == ["c"]
    assert hasty.xinfo_consumers(f"{KEY}:retry:g", "g") == []
    assert (await broker.janitor(spec("g"))).forgotten == 0


@pytest.mark.parametrize("key", [KEY, f"{KEY}:retry:g"])
async def test_a_consumer_that_holds_entries_of_either_stream_stays(
    broker: Broker, hasty: redis.Redis, key: str
) -> None:
    hasty.xadd(key, {"m": "x"})
    hasty.xreadgroup("g", "pod.1", {key: ">"})
    await consumer(hasty, "pod.1", age=50)
    assert (await broker.janitor(spec("g"))).forgotten == 0
    assert len(idle_times(hasty, "pod.1")) == 2
    assert hasty.xpending(key, "g")["pending"] == 1


async def test_consumers_of_a_group_that_nobody_declared_stay(broker: Broker, hasty: redis.Redis) -> None:
    hasty.xgroup_create(KEY, "stranger", "0")
    hasty.xgroup_create(f"{KEY}:retry:stranger", "stranger", "0", mkstream=True)
    await consumer(hasty, "c", age=50, group="stranger")
    assert (await broker.janitor(spec("g"))).forgotten == 0


async def test_a_consumer_that_blocks_is_made_again_when_it_was_removed(
    broker: Broker, hasty: redis.Redis, wire: Client
) -> None:
    retry = f"{KEY}:retry:g"
    reading = asyncio.create_task(
        wire.call("XREADGROUP", "GROUP", "g", "pod.1", "BLOCK", 5_000, "STREAMS", KEY, retry, ">", ">")
    )
    await until(lambda: idle_times(hasty, "pod.1"))
    await until(lambda: min(idle_times(hasty, "pod.1")) > 50)
    assert (await broker.janitor(spec("g"))).forgotten == 1
    (entry,) = fill(hasty, 1)
    ((_, ((read_id, _),)),) = await reading
    assert read_id.decode() == entry
    ((held, by),) = [(p["message_id"], p["consumer"]) for p in hasty.xpending_range(KEY, "g", "-", "+", 10)]
    assert (held, by) == (entry, "pod.1")
    assert (await broker.janitor(spec("g"))).forgotten == 0


async def test_a_group_that_lost_its_last_consumer_holds_on_for_a_day_after_nobody_declares_it(
    broker: Broker, hasty: redis.Redis
) -> None:
    await consumer(hasty, "pod.1", age=50)
    fill(hasty, 300, age=2 * HOUR)
    fill(hasty, 1)
    assert (await broker.janitor(spec("g"))).forgotten == 1
    report = await broker.janitor(spec())
    assert (report.trimmed, report.held_by) == (0, "g")
    # as if that had been a day ago
    hasty.hincrby(f"{KEY}:meta", "left:g", -24 * HOUR)
    assert (await broker.janitor(spec())).trimmed == 300
