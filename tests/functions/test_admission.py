"""What the janitor does about a stream that is too long: history, refusal, and entries that hold it up."""

from __future__ import annotations

from itertools import chain
from typing import Any

import pytest
import redis

from agentstream_operator.broker.broker import Broker
from agentstream_operator.plan.actions import CreateGroup
from support.entries import GATE, HOUR, KEY, fill, left, read, refuses, spec
from support.servers import Server
from support.waiting import until


async def test_history_that_every_group_settled_goes_when_the_stream_is_too_long(
    server: Server, broker: Broker, stream: redis.Redis
) -> None:
    fill(stream, 1000)
    read(stream, count=700, ack=True)
    report = await broker.janitor(spec("g", max_length=500))
    assert (report.trimmed, report.shortened, report.unsettled) == (500, True, 300)
    assert (report.gate, report.refusing) == (700, False)
    assert stream.get(GATE) == "700 g=0"


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
    assert {name: group.stats["overrun"] for name, group in groups.items()} == {"g": 50, "slow": 800}
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
    assert (group.pending, group.stats["dead"], group.stats["settled"]) == (3, 2, 2)
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
    assert (group.pending, group.dead, group.stats["trimmed"]) == (0, 0, 1)


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


def settle(admin: redis.Redis, group: str, ids: list[str]) -> None:
    """A group acknowledges entries that its consumer `c` read."""
    held = chain.from_iterable((entry, 1) for entry in ids)
    where = (group, "c", f"{KEY}:stats:{group}", "", "", 0, "acked")
    admin.fcall("as1_settle", 1, KEY, *where, *held)


@pytest.mark.parametrize("batch", [1, 30, 100])
async def test_what_groups_settle_makes_room_while_the_operator_is_away(
    server: Server, broker: Broker, stream: redis.Redis, batch: int
) -> None:
    await broker.apply(CreateGroup(KEY, "slow", "0"))
    await broker.janitor(spec("g", "slow", max_length=100))
    for _ in range(300 // batch):
        for _ in range(batch):
            assert not refuses(stream)
        for group in ("g", "slow"):
            settle(stream, group, read(stream, group))
    # of what is not settled there is as much as may be, whichever group it is that did not
    for _ in range(100):
        assert not refuses(stream)
    assert refuses(stream)
    settle(stream, "g", read(stream, "g"))
    assert refuses(stream)
    settle(stream, "slow", read(stream, "slow", count=7))
    for _ in range(7):
        assert not refuses(stream)
    assert refuses(stream)
    await broker.janitor(spec("g", "slow", max_length=100))
    assert refuses(stream)


@pytest.mark.parametrize("limits", [{"on_full": "Backpressure"}, {"max_bytes": 1 << 30}])
async def test_where_history_or_bytes_are_limited_only_trimming_makes_room(
    server: Server, broker: Broker, stream: redis.Redis, limits: dict[str, Any]
) -> None:
    await broker.janitor(spec("g", max_length=100, **limits))
    for _ in range(100):
        assert not refuses(stream)
    settle(stream, "g", read(stream))
    assert refuses(stream)
