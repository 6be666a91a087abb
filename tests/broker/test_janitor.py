"""The janitor keeps what is promised, drops what may go, and says when adding has to stop."""

from __future__ import annotations

import random

import pytest
import redis

from agentstream import library
from agentstream_operator.broker.broker import Broker
from agentstream_operator.plan.actions import CreateGroup, CreateStream
from agentstream_operator.plan.observed import JanitorReport
from agentstream_operator.plan.retention import JanitorSpec
from support.servers import Server
from support.waiting import until

KEY = "{t.tasks}"
GATE = f"{KEY}:gate"
HOUR = 3_600_000


def spec(
    *groups: str,
    min_age: int = HOUR,
    max_length: int = 1_000_000,
    max_bytes: int = 0,
    on_full: str = "TrimAcknowledged",
    broadcast: bool = False,
    lease: int = HOUR,
    keep_dead: int = HOUR,
) -> JanitorSpec:
    declared = tuple((name, lease, keep_dead) for name in groups)
    return JanitorSpec(
        key=KEY,
        min_age=min_age,
        max_length=max_length,
        max_bytes=max_bytes,
        on_full=on_full,
        groups=declared,
        broadcast=broadcast,
    )


@pytest.fixture
async def stream(broker: Broker, admin: redis.Redis) -> redis.Redis:
    """An empty stream with the group `g`; in this file, entries get ids of their own."""
    await broker.apply(CreateStream(KEY, {"name": "tasks"}))
    await broker.apply(CreateGroup(KEY, "g", "0"))
    return admin


def now(admin: redis.Redis) -> int:
    seconds, microseconds = admin.time()
    return seconds * 1000 + microseconds // 1000


def fill(admin: redis.Redis, count: int, *, age: int = 0, key: str = KEY) -> list[str]:
    """Adds entries that are this many ms old."""
    ms = now(admin) - age
    with admin.pipeline(transaction=False) as batch:
        for sequence in range(count):
            batch.xadd(key, {"m": "x"}, id=f"{ms}-{sequence}")
        ids: list[str] = batch.execute()
    return ids


def read(admin: redis.Redis, group: str = "g", *, count: int = 100_000, ack: bool = False) -> list[str]:
    reply = admin.xreadgroup(group, "c", {KEY: ">"}, count=count)
    ids = [entry for entry, _ in reply[0][1]] if reply else []
    if ack and ids:
        admin.xack(KEY, group, *ids)
    return ids


def left(admin: redis.Redis) -> list[str]:
    return [entry for entry, _ in admin.xrange(KEY)]


def refuses(admin: redis.Redis) -> bool:
    try:
        admin.fcall("as1_add", 1, KEY, GATE, "", 0, "m", "x")
    except redis.ResponseError as error:
        return str(error).startswith("BACKPRESSURE")
    return False


# --- age ---


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
    stream.eval(
        "for i = 1, 250000 do redis.call('XADD', KEYS[1], '1-' .. i, 'm', '') end",
        *(1, KEY),
    )
    fill(stream, 1)
    stream.xgroup_setid(KEY, "g", "$")
    report = await broker.janitor(spec("g"))
    assert (report.trimmed, report.length, report.more) == (250_000, 1, False)


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


# --- groups that are missing, foreign, or to come back ---


async def test_nothing_goes_while_a_declared_group_is_missing(
    server: Server, broker: Broker, stream: redis.Redis
) -> None:
    fill(stream, 300, age=2 * HOUR)
    fill(stream, 300)
    read(stream, ack=True)
    report = await broker.janitor(spec("g", "gone", max_length=10))
    assert report == JanitorReport(type="stream", length=600, missing="gone")
    assert stream.get(GATE) is None


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
    source = library.source().replace("CLAIMABLE = 86400000", "CLAIMABLE = 50")
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
    stream.xack(KEY, "g", ids[5])
    assert await checkpoint() == ids[5]
    stream.xack(KEY, "g", ids[6], ids[7])
    assert await checkpoint() == ids[7]


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


# --- length ---


async def test_history_that_every_group_settled_goes_when_the_stream_is_too_long(
    server: Server, broker: Broker, stream: redis.Redis
) -> None:
    fill(stream, 1000)
    read(stream, count=700, ack=True)
    report = await broker.janitor(spec("g", max_length=500))
    assert (report.trimmed, report.shortened, report.unsettled) == (500, True, 300)
    assert (report.gate, report.refusing) == (700, False)
    assert stream.get(GATE) == "700"


async def test_adding_is_refused_while_as_much_is_unsettled_as_may_be(
    server: Server, broker: Broker, stream: redis.Redis
) -> None:
    fill(stream, 600)
    read(stream, count=100, ack=True)
    report = await broker.janitor(spec("g", max_length=500))
    assert (report.unsettled, report.refusing, report.length, report.gate) == (500, True, 500, 500)
    assert refuses(stream)
    read(stream, count=1, ack=True)
    assert not (await broker.janitor(spec("g", max_length=500))).refusing
    assert not refuses(stream)
    assert refuses(stream)


async def test_the_slowest_declared_group_decides_about_admission(
    server: Server, broker: Broker, stream: redis.Redis
) -> None:
    await broker.apply(CreateGroup(KEY, "slow", "0"))
    fill(stream, 100)
    read(stream, ack=True)
    read(stream, "slow", count=40)
    assert (await broker.janitor(spec("g", "slow", max_length=500))).unsettled == 100
    ids = read(stream, "slow", count=10)
    stream.xack(KEY, "slow", *left(stream)[:40], *ids)
    assert (await broker.janitor(spec("g", "slow", max_length=500))).unsettled == 50


async def test_with_strict_history_adding_is_refused_until_entries_are_old_enough(
    server: Server, broker: Broker, stream: redis.Redis
) -> None:
    strict = spec("g", on_full="Backpressure", max_length=60)
    fill(stream, 40, age=HOUR // 2)
    fill(stream, 20)
    read(stream, ack=True)
    report = await broker.janitor(strict)
    assert (report.trimmed, report.refusing, report.gate) == (0, True, 60)
    assert refuses(stream)
    # old entries go one by one, though all are in one node
    report = await broker.janitor(spec("g", on_full="Backpressure", max_length=60, min_age=HOUR // 4))
    assert (report.trimmed, report.refusing, report.length) == (40, False, 20)
    assert not refuses(stream)


async def test_strict_history_keeps_what_is_unsettled(
    server: Server, broker: Broker, stream: redis.Redis
) -> None:
    ids = fill(stream, 50, age=2 * HOUR)
    fill(stream, 1)
    read(stream, count=20, ack=True)
    report = await broker.janitor(spec("g", on_full="Backpressure", max_length=10))
    assert (report.trimmed, report.held_by, report.refusing) == (20, "g", True)
    assert left(stream)[0] == ids[20]


async def test_the_oldest_go_if_that_is_wanted_and_what_a_group_lost_is_counted(
    server: Server, broker: Broker, stream: redis.Redis
) -> None:
    await broker.apply(CreateGroup(KEY, "slow", "0"))
    stream.set(GATE, 1)
    fill(stream, 1000)
    read(stream, count=850)
    read(stream, "slow", count=100)
    newest = spec("g", "slow", on_full="TrimOldest", max_length=100)
    report = await broker.janitor(newest)
    assert (report.trimmed, report.length, report.overrun) == (900, 100, 50 + 800)
    assert (report.refusing, report.gate, stream.get(GATE)) == (False, None, None)
    groups = (await broker.observe(KEY, ("g", "slow"))).groups
    assert {name: group.stats["overrun"] for name, group in groups.items()} == {"g": "50", "slow": "800"}
    assert (await broker.janitor(newest)).overrun == 0


async def test_memory_is_a_limit_like_length(server: Server, broker: Broker, stream: redis.Redis) -> None:
    fill(stream, 1000)
    read(stream, ack=True)
    unlimited = await broker.janitor(spec("g", max_bytes=1 << 40))
    assert unlimited.trimmed == 0
    assert unlimited.bytes is not None
    report = await broker.janitor(spec("g", max_bytes=unlimited.bytes // 2))
    assert report.shortened
    assert 400 <= report.length <= 600


async def test_a_limit_of_memory_that_nothing_fits_into_still_lets_one_entry_in(
    server: Server, broker: Broker, stream: redis.Redis
) -> None:
    fill(stream, 1)
    read(stream, ack=True)
    assert (await broker.janitor(spec("g", max_bytes=1))).gate == 2
    assert not refuses(stream)
    assert (await broker.janitor(spec("g", max_bytes=1))).refusing


# --- retries and dead letters ---


async def test_retries_move_when_they_are_due(server: Server, broker: Broker, stream: redis.Redis) -> None:
    fill(stream, 1200)
    held = read(stream)
    for entry in held:
        where = ("g", "c", f"{KEY}:stats:g", "", 0, entry, 1, f"{KEY}:delay:g", f"{KEY}:retry:g")
        stream.fcall("as1_retry", 1, KEY, *where, HOUR if entry == held[-1] else 1, 1, "Failed", "boom")

    async def moved() -> bool:
        await broker.janitor(spec("g"))
        return stream.xlen(f"{KEY}:retry:g") == 1199

    await until(moved)
    assert stream.zcard(f"{KEY}:delay:g") == 1


async def test_one_pass_moves_all_that_is_due(server: Server, broker: Broker, stream: redis.Redis) -> None:
    fill(stream, 1200)
    for entry in read(stream):
        where = ("g", "c", f"{KEY}:stats:g", "", 0, entry, 1, f"{KEY}:delay:g", f"{KEY}:retry:g")
        stream.fcall("as1_retry", 1, KEY, *where, HOUR, 1, "Failed", "boom")
    stream.eval(
        "for _, m in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do redis.call('ZADD', KEYS[1], 1, m) end",
        *(1, f"{KEY}:delay:g"),
    )
    report = await broker.janitor(spec("g"))
    assert (report.moved, report.more) == (1200, False)


async def test_old_pending_entries_become_dead_letters_only_while_adding_is_refused(
    server: Server, broker: Broker, stream: redis.Redis
) -> None:
    old = fill(stream, 3, age=2 * HOUR)
    fill(stream, 7)
    read(stream, count=5)
    stream.xclaim(KEY, "g", "c", 0, [old[0], old[1]], idle=HOUR, justid=True)
    assert (await broker.janitor(spec("g", max_length=11, lease=1000))).expired == 0
    report = await broker.janitor(spec("g", max_length=10, lease=1000))
    assert (report.expired, report.refusing) == (2, True)
    letters = [fields for _, fields in stream.xrange(f"{KEY}:dlq:g")]
    assert [(x["origin"], x["reason"], x["attempts"], x["m"]) for x in letters] == [
        (old[0], "Expired", "1", "x"),
        (old[1], "Expired", "1", "x"),
    ]
    group = (await broker.observe(KEY, ("g",))).groups["g"]
    assert (group.pending, group.stats["dead"], group.stats["settled"]) == (3, "2", "2")
    assert stream.keys(f"{KEY}:parked:*") == []


async def test_an_expired_entry_of_a_broadcast_stream_is_recorded_for_receipts(
    server: Server, broker: Broker, stream: redis.Redis
) -> None:
    old = fill(stream, 1, age=2 * HOUR)
    fill(stream, 1)
    read(stream, count=1)
    stream.xclaim(KEY, "g", "c", 0, old, idle=HOUR, justid=True)
    await broker.janitor(spec("g", max_length=1, lease=1000, broadcast=True))
    assert stream.hgetall(f"{KEY}:parked:g") == {old[0]: "dead"}


async def test_a_group_that_gives_nothing_up_keeps_its_old_pending_entries(
    server: Server, broker: Broker, stream: redis.Redis
) -> None:
    old = fill(stream, 1, age=2 * HOUR)
    fill(stream, 1)
    read(stream)
    stream.xclaim(KEY, "g", "c", 0, old, idle=HOUR, justid=True)
    report = await broker.janitor(spec("g", max_length=1, lease=1000, keep_dead=0))
    assert (report.expired, report.refusing) == (0, True)


async def test_an_expired_entry_that_is_no_more_is_counted_as_trimmed(
    server: Server, broker: Broker, stream: redis.Redis
) -> None:
    old = fill(stream, 1, age=2 * HOUR)
    fill(stream, 1)
    read(stream, count=1)
    stream.xclaim(KEY, "g", "c", 0, old, idle=HOUR, justid=True)
    stream.xdel(KEY, *old)
    assert (await broker.janitor(spec("g", max_length=1, lease=1000))).expired == 0
    group = (await broker.observe(KEY, ("g",))).groups["g"]
    assert (group.pending, group.dead, group.stats["trimmed"]) == (0, 0, "1")


async def test_many_expired_entries_go_in_one_pass(
    server: Server, broker: Broker, stream: redis.Redis
) -> None:
    old = fill(stream, 1100, age=2 * HOUR)
    fill(stream, 500)
    read(stream, count=1100)
    stream.xclaim(KEY, "g", "c", 0, old, idle=HOUR, justid=True)
    report = await broker.janitor(spec("g", max_length=500, lease=1000))
    assert report.expired == 1100


async def test_dead_letters_go_after_their_own_age(
    server: Server, broker: Broker, stream: redis.Redis
) -> None:
    letters = f"{KEY}:dlq:g"
    fill(stream, 200, age=3 * HOUR, key=letters)
    fill(stream, 50, age=HOUR, key=letters)
    fill(stream, 1)
    await broker.janitor(spec("g", keep_dead=0))
    assert stream.xlen(letters) == 250
    await broker.janitor(spec("g", keep_dead=2 * HOUR))
    assert stream.xlen(letters) == 50


async def test_a_clock_that_jumped_ahead_keeps_dead_letters(
    server: Server, broker: Broker, stream: redis.Redis
) -> None:
    fill(stream, 1, age=100 * HOUR)
    fill(stream, 200, age=100 * HOUR, key=f"{KEY}:dlq:g")
    await broker.janitor(spec("g"))
    assert stream.xlen(f"{KEY}:dlq:g") == 200


# --- whatever happens ---


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
