"""Each action does what it says, once or twice, and destroys nothing that it is not to."""

from __future__ import annotations

import asyncio

import pytest
import redis

from agentstream.errors import ServerRefused, StreamMissing
from agentstream.protocol import library
from agentstream_operator.broker.broker import Broker
from agentstream_operator.plan.actions import (
    CreateGroup,
    CreateStream,
    DeleteRoute,
    DeleteStream,
    DestroyGroup,
    RecordOwner,
    SetContracts,
    SetRoute,
)
from agentstream_operator.plan.observed import Gone
from support.servers import Server

KEY = "{t.tasks}"
OWNER = {"namespace": "t", "name": "tasks"}
CHANGED, UNCHANGED, KEPT = 1, 0, 0


@pytest.fixture
async def stream(broker: Broker, admin: redis.Redis) -> redis.Redis:
    """A stream with one group `g` that has read and settled all of three entries."""
    await broker.apply(CreateStream(KEY, OWNER))
    await broker.apply(CreateGroup(KEY, "g", "0"))
    for _ in range(3):
        admin.xadd(KEY, {"m": "x"})
    read(admin, settle=True)
    return admin


def read(admin: redis.Redis, group: str = "g", *, count: int = 100, settle: bool = False) -> list[str]:
    reply = admin.xreadgroup(group, "c", {KEY: ">"}, count=count)
    ids = [entry for entry, _ in reply[0][1]] if reply else []
    if settle:
        held = [argument for entry in ids for argument in (entry, 1)]
        admin.fcall("as1_settle", 1, KEY, group, "c", f"{KEY}:stats:{group}", "", "", 0, "acked", *held)
    return ids


async def test_a_stream_is_created_once_and_keeps_its_owner(
    server: Server, broker: Broker, admin: redis.Redis
) -> None:
    assert await broker.apply(CreateStream(KEY, OWNER)) == CHANGED
    assert await broker.apply(CreateStream(KEY, OWNER)) == UNCHANGED
    assert (admin.type(KEY), admin.xlen(KEY), admin.xinfo_groups(KEY)) == ("stream", 0, [])
    assert admin.hgetall(f"{KEY}:meta") == OWNER


async def test_a_stream_with_entries_is_adopted(server: Server, broker: Broker, admin: redis.Redis) -> None:
    admin.xadd(KEY, {"m": "x"})
    assert await broker.apply(CreateStream(KEY, OWNER)) == UNCHANGED
    assert admin.xlen(KEY) == 1


async def test_a_key_of_another_type_is_left_alone(
    server: Server, broker: Broker, admin: redis.Redis
) -> None:
    admin.set(KEY, "precious")
    with pytest.raises(ServerRefused, match="WRONGTYPE"):
        await broker.apply(CreateStream(KEY, OWNER))
    assert await broker.apply(DeleteStream(KEY, ("g",), only_if_empty=False)) == KEPT
    assert await broker.apply(DestroyGroup(KEY, "g")) == UNCHANGED
    assert admin.get(KEY) == "precious"


async def test_an_owner_is_recorded(server: Server, broker: Broker, admin: redis.Redis) -> None:
    await broker.apply(RecordOwner(KEY, OWNER))
    assert admin.hgetall(f"{KEY}:meta") == OWNER


async def test_contracts_take_the_place_of_those_before(
    server: Server, broker: Broker, admin: redis.Redis
) -> None:
    await broker.apply(SetContracts(KEY, "1f", {"event@1": "{}", "event@2": "{}"}))
    assert await broker.apply(SetContracts(KEY, "2e", {"event@2": '{"a":1}'})) == CHANGED
    assert admin.hgetall(f"{KEY}:contracts") == {"digest": "2e", "event@2": '{"a":1}'}
    assert (await broker.observe(KEY, ())).contracts == "2e"


async def test_no_contracts_leave_no_key(server: Server, broker: Broker, admin: redis.Redis) -> None:
    await broker.apply(SetContracts(KEY, "1f", {"event@1": "{}"}))
    await broker.apply(SetContracts(KEY, "", {}))
    assert admin.keys("*") == []
    assert (await broker.observe(KEY, ())).contracts is None


async def test_as_many_and_as_large_contracts_as_there_may_be_are_written(
    server: Server, broker: Broker, admin: redis.Redis
) -> None:
    schemas = {f"event@{version}": "x" * 32_768 for version in range(1, 51)}
    await broker.apply(SetContracts(KEY, "1f", schemas))
    assert admin.hgetall(f"{KEY}:contracts") == {"digest": "1f", **schemas}


@pytest.mark.parametrize(
    ("start", "first"), [("0", 0), ("0-0", 0), ("$", 3), ("5", 1), ("5-0", 1), ("9-9", 3), ("99", 3)]
)
async def test_a_group_starts_where_it_is_told(
    server: Server, broker: Broker, admin: redis.Redis, start: str, first: int
) -> None:
    ids = [admin.xadd(KEY, {"m": "x"}, id=entry) for entry in ("4-1", "7-0", "9-9")]
    assert await broker.apply(CreateGroup(KEY, "g", start)) == CHANGED
    assert read(admin) == ids[first:]


async def test_a_start_that_is_still_to_come_means_the_end(
    server: Server, broker: Broker, admin: redis.Redis
) -> None:
    admin.xadd(KEY, {"m": "x"}, id="5-0")
    await broker.apply(CreateGroup(KEY, "g", "900-0"))
    later = admin.xadd(KEY, {"m": "x"}, id="6-0")
    assert read(admin) == [later]
    assert (await broker.observe(KEY, ())).checkpoint("g") == "5-0"


async def test_a_group_that_exists_stays_where_it_is(
    server: Server, broker: Broker, stream: redis.Redis
) -> None:
    before = (await broker.observe(KEY, ("g",))).groups
    assert await broker.apply(CreateGroup(KEY, "g", "0")) == UNCHANGED
    assert (await broker.observe(KEY, ("g",))).groups == before


async def test_a_lost_retry_stream_comes_back_with_its_group(
    server: Server, broker: Broker, stream: redis.Redis
) -> None:
    stream.delete(f"{KEY}:retry:g")
    assert not (await broker.observe(KEY, ("g",))).groups["g"].retry_ready
    assert await broker.apply(CreateGroup(KEY, "g", "$")) == UNCHANGED
    assert (await broker.observe(KEY, ("g",))).groups["g"].retry_ready


async def test_a_group_needs_its_stream(server: Server, broker: Broker, admin: redis.Redis) -> None:
    with pytest.raises(StreamMissing):
        await broker.apply(CreateGroup(KEY, "g", "0"))
    assert admin.keys() == []


async def test_a_group_is_not_made_beside_a_retry_key_of_another_type(
    server: Server, broker: Broker, admin: redis.Redis
) -> None:
    admin.xadd(KEY, {"m": "x"})
    admin.set(f"{KEY}:retry:g", "x")
    with pytest.raises(ServerRefused, match="WRONGTYPE"):
        await broker.apply(CreateGroup(KEY, "g", "0"))
    assert admin.xinfo_groups(KEY) == []


@pytest.mark.parametrize("start", ["0", "$"])
async def test_what_a_group_read_since_it_began_is_settled_or_pending(
    server: Server, broker: Broker, admin: redis.Redis, start: str
) -> None:
    await broker.apply(CreateStream(KEY, OWNER))
    for _ in range(10):
        admin.xadd(KEY, {"m": "x"})
    admin.xtrim(KEY, maxlen=6, approximate=False)
    await broker.apply(CreateGroup(KEY, "g", start))
    for _ in range(10):
        admin.xadd(KEY, {"m": "x"})
    read(admin, count=3, settle=True)
    read(admin, count=2)
    group = (await broker.observe(KEY, ("g",))).groups["g"]
    assert group.read is not None
    settled = int(group.stats["settled"]) - int(group.stats["base:settled"])
    assert group.read - int(group.stats["base:read"]) == settled + group.pending == 5


async def test_destroying_a_group_removes_all_of_it_but_dead_letters(
    server: Server, broker: Broker, stream: redis.Redis
) -> None:
    stream.zadd(f"{KEY}:delay:g", {"x": 1})
    stream.hset(f"{KEY}:parked:g", "1-1", "dead")
    stream.xadd(f"{KEY}:dlq:g", {"m": "x"})
    assert await broker.apply(DestroyGroup(KEY, "g")) == CHANGED
    assert await broker.apply(DestroyGroup(KEY, "g")) == UNCHANGED
    assert sorted(stream.keys()) == [KEY, f"{KEY}:dlq:g", f"{KEY}:meta"]
    assert stream.xinfo_groups(KEY) == []
    assert stream.hgetall(f"{KEY}:meta") == OWNER


async def test_destroying_a_group_removes_an_empty_dead_letter_stream(
    server: Server, broker: Broker, stream: redis.Redis
) -> None:
    stream.xdel(f"{KEY}:dlq:g", stream.xadd(f"{KEY}:dlq:g", {"m": "x"}))
    await broker.apply(DestroyGroup(KEY, "g"))
    assert sorted(stream.keys()) == [KEY, f"{KEY}:meta"]


async def test_destroying_the_group_of_a_missing_stream_removes_what_is_left_of_it(
    server: Server, broker: Broker, stream: redis.Redis
) -> None:
    stream.delete(KEY)
    assert await broker.apply(DestroyGroup(KEY, "g")) == UNCHANGED
    assert stream.keys() == [f"{KEY}:meta"]


async def test_a_stream_that_is_empty_is_deleted_with_all_that_is_derived_from_it(
    server: Server, broker: Broker, stream: redis.Redis
) -> None:
    stream.set(f"{KEY}:gate", 7)
    await broker.apply(SetContracts(KEY, "1f", {"event@1": "{}"}))
    assert await broker.apply(DeleteStream(KEY, ("g",), only_if_empty=True)) == CHANGED
    assert stream.keys() == []


async def test_deleting_a_stream_twice_is_no_error(
    server: Server, broker: Broker, stream: redis.Redis
) -> None:
    for _ in range(2):
        assert await broker.apply(DeleteStream(KEY, ("g",), only_if_empty=True)) == CHANGED


async def test_a_deleted_stream_takes_groups_along_that_are_no_longer_declared(
    server: Server, broker: Broker, stream: redis.Redis
) -> None:
    await broker.apply(CreateGroup(KEY, "old", "$"))
    stream.xadd(f"{KEY}:dlq:old", {"m": "x"})
    assert await broker.apply(DeleteStream(KEY, ("g",), only_if_empty=True)) == KEPT
    assert await broker.apply(DeleteStream(KEY, ("g",), only_if_empty=False)) == CHANGED
    assert stream.keys() == []


def undelivered(admin: redis.Redis) -> None:
    admin.xadd(KEY, {"m": "x"})


def pending(admin: redis.Redis) -> None:
    admin.xadd(KEY, {"m": "x"})
    read(admin)


def delayed(admin: redis.Redis) -> None:
    admin.zadd(f"{KEY}:delay:g", {"x": 1})


def retrying(admin: redis.Redis) -> None:
    admin.xadd(f"{KEY}:retry:g", {"m": "x"})


def dead(admin: redis.Redis) -> None:
    admin.xadd(f"{KEY}:dlq:g", {"m": "x"})


def unread(admin: redis.Redis) -> None:
    admin.xgroup_destroy(KEY, "g")


def orphaned(admin: redis.Redis) -> None:
    admin.delete(KEY)
    dead(admin)


@pytest.mark.parametrize("make", [undelivered, pending, delayed, retrying, dead, unread, orphaned])
async def test_a_stream_that_is_not_empty_stays_if_it_is_to_be_deleted_only_if_empty(
    server: Server, broker: Broker, stream: redis.Redis, make: object
) -> None:
    assert callable(make)
    make(stream)
    keys = sorted(stream.keys())
    assert await broker.apply(DeleteStream(KEY, ("g",), only_if_empty=True)) == KEPT
    assert sorted(stream.keys()) == keys
    assert await broker.apply(DeleteStream(KEY, ("g",), only_if_empty=False)) == CHANGED
    assert stream.keys() == []


async def test_routes_are_written_and_removed(server: Server, broker: Broker) -> None:
    routes = "agentstream:test:t:routes"
    assert await broker.apply(SetRoute(routes, "coder", b"{}")) == CHANGED
    assert await broker.routes(routes) == {"coder": b"{}"}
    assert await broker.apply(DeleteRoute(routes, "coder")) == CHANGED
    assert await broker.apply(DeleteRoute(routes, "coder")) == UNCHANGED
    assert await broker.routes(routes) == {}


async def test_the_entries_of_a_gone_pod_become_claimable_and_count_no_attempt(
    server: Server, broker: Broker, admin: redis.Redis
) -> None:
    await broker.apply(CreateStream(KEY, OWNER))
    await broker.apply(CreateGroup(KEY, "g", "0"))
    retry = f"{KEY}:retry:g"
    for _ in range(700):
        admin.xadd(KEY, {"m": "x"})
    kept, gone = read(admin, count=700), admin.xadd(retry, {"m": "x"})
    admin.xclaim(KEY, "g", "pod-1.a", 0, kept[:600], justid=True)
    admin.xclaim(KEY, "g", "pod-10.a", 0, kept[600:650], justid=True)
    admin.xreadgroup("g", "pod-1.b", {retry: ">"})
    assert await broker.release_pod(KEY, "g", Gone("pod-1")) == 601
    claimable = admin.xpending_range(KEY, "g", "-", "+", 700, idle=3_600_000)
    assert {(p["message_id"], p["consumer"], p["times_delivered"]) for p in claimable} == {
        (entry, "pod-1.a", 1) for entry in kept[:600]
    }
    assert [p["message_id"] for p in admin.xpending_range(retry, "g", "-", "+", 9, idle=3_600_000)] == [gone]


async def test_of_a_pod_whose_process_was_started_again_only_the_old_ones_entries_are_freed(
    server: Server, broker: Broker, stream: redis.Redis
) -> None:
    admin = stream
    # they began at 36 ** 2 + 1 and 36 ** 3, and one at no time at all
    old, young, odd = "pod-1.101", "pod-1.1000", "pod-1.-"
    for consumer in (old, young, odd):
        admin.xadd(KEY, {"m": "x"})
        admin.xreadgroup("g", consumer, {KEY: ">"})
    gone = Gone("pod-1", 36**3)
    assert await broker.release_pod(KEY, "g", gone) == 2
    claimable = admin.xpending_range(KEY, "g", "-", "+", 9, idle=3_600_000)
    assert {p["consumer"] for p in claimable} == {old, odd}
    admin.xack(KEY, "g", *(p["message_id"] for p in admin.xpending_range(KEY, "g", "-", "+", 9)))
    assert set(await broker.remove_consumers(KEY, "g", gone)) == {old, odd}
    assert {c["name"] for c in admin.xinfo_consumers(KEY, "g")} == {"c", young}


async def test_what_a_gone_pod_held_of_trimmed_entries_is_counted(
    server: Server, broker: Broker, stream: redis.Redis
) -> None:
    admin = stream
    admin.xadd(KEY, {"m": "x"})
    admin.xreadgroup("g", "pod-1.a", {KEY: ">"})
    admin.xtrim(KEY, maxlen=0, approximate=False)
    assert await broker.release_pod(KEY, "g", Gone("pod-1")) == 0
    group = (await broker.observe(KEY, ("g",))).groups["g"]
    assert (group.pending, group.stats["trimmed"], group.stats["settled"]) == (0, 1, 4)


async def test_consumers_of_a_gone_pod_go_unless_they_hold_something(
    server: Server, broker: Broker, stream: redis.Redis
) -> None:
    admin, retry = stream, f"{KEY}:retry:g"
    for name in ("pod-1.a", "pod-10.a"):
        admin.xgroup_createconsumer(KEY, "g", name)
    admin.xgroup_createconsumer(retry, "g", "pod-1.b")
    admin.xadd(KEY, {"m": "x"})
    admin.xreadgroup("g", "pod-1.c", {KEY: ">"})
    admin.xgroup_createconsumer(retry, "g", "pod-1.c")
    assert sorted(await broker.remove_consumers(KEY, "g", Gone("pod-1"))) == ["pod-1.a", "pod-1.b"]
    assert {c["name"] for c in admin.xinfo_consumers(KEY, "g")} == {"c", "pod-10.a", "pod-1.c"}
    assert {c["name"] for c in admin.xinfo_consumers(retry, "g")} == {"pod-1.c"}


async def test_what_pods_hold_is_counted_over_their_processes_and_both_streams(
    server: Server, broker: Broker, stream: redis.Redis
) -> None:
    admin, retry = stream, f"{KEY}:retry:g"
    for consumer, key in (("pod-1.a", KEY), ("pod-1.b", KEY), ("pod-1.b", retry), ("pod.2.a", KEY)):
        admin.xadd(key, {"m": "x"})
        admin.xreadgroup("g", consumer, {key: ">"})
    assert await broker.holdings(KEY, "g") == {"pod-1": 3, "pod.2": 1}


async def test_where_the_group_is_missing_nobody_holds_anything(server: Server, broker: Broker) -> None:
    assert await broker.holdings(KEY, "g") == {}


async def test_of_what_is_no_stream_it_is_not_known_who_holds_it(
    server: Server, broker: Broker, admin: redis.Redis
) -> None:
    admin.set(KEY, "x")
    with pytest.raises(ServerRefused, match="WRONGTYPE"):
        await broker.holdings(KEY, "g")


async def test_a_gone_pod_of_a_missing_group_leaves_nothing_to_do(server: Server, broker: Broker) -> None:
    assert await broker.release_pod(KEY, "g", Gone("pod-1")) == 0
    assert await broker.remove_consumers(KEY, "g", Gone("pod-1")) == ()


async def test_a_flushed_library_is_loaded_once_for_all_calls_that_miss_it(
    server: Server, broker: Broker, admin: redis.Redis
) -> None:
    admin.execute_command("FUNCTION", "FLUSH")
    admin.config_resetstat()
    seen = await asyncio.gather(*(broker.observe(KEY, ()) for _ in range(20)))
    assert {s.type for s in seen} == {"none"}
    assert admin.fcall_ro("as1_revision", 0) == library.revision()
    assert admin.info("commandstats")["cmdstat_function|load"]["calls"] == 1
