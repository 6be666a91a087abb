"""What the server is and can do is found out by trying, and one call says everything about a stream."""

from __future__ import annotations

import pytest
import redis

from agentstream.errors import AccessDenied, ConnectionLost, ServerRefused
from agentstream.protocol import library
from agentstream_operator.broker.broker import Broker
from agentstream_operator.broker.observe import TOGETHER, Look
from agentstream_operator.plan.actions import CreateGroup, CreateStream
from agentstream_operator.plan.observed import GroupSeen, StreamSeen
from support.servers import Server, free_port

KEY = "{t.seen}"


async def test_a_missing_stream_has_no_type(server: Server, broker: Broker) -> None:
    seen = await broker.observe(KEY, ("g",))
    assert (seen.type, seen.length, seen.meta) == ("none", 0, {})
    assert seen.groups == {"g": GroupSeen(exists=False)}


async def test_a_key_of_another_type_is_named_as_such(
    server: Server, broker: Broker, admin: redis.Redis
) -> None:
    admin.hset(KEY, "f", "v")
    assert (await broker.observe(KEY, ())).type == "hash"
    admin.delete(KEY)


async def test_an_empty_stream_has_no_first_entry(server: Server, broker: Broker) -> None:
    await broker.apply(CreateStream(KEY, {"name": "seen"}))
    seen = await broker.observe(KEY, ())
    assert (seen.type, seen.length, seen.first, seen.last) == ("stream", 0, None, "0-0")
    assert seen.meta == {"name": "seen"}


async def test_everything_of_a_declared_group_is_seen(
    server: Server, broker: Broker, admin: redis.Redis
) -> None:
    await broker.apply(CreateStream(KEY, {"name": "seen"}))
    await broker.apply(CreateGroup(KEY, "g", "0"))
    ids = [admin.xadd(KEY, {"m": "x"}) for _ in range(5)]
    admin.xreadgroup("g", "c", {KEY: ">"}, count=2)
    for _ in range(2):
        admin.xadd(f"{KEY}:retry:g", {"m": "x"})
    admin.xreadgroup("g", "c", {f"{KEY}:retry:g": ">"}, count=1)
    admin.zadd(f"{KEY}:delay:g", {"one": 2_000_000_000_000, "two": 2_000_000_000_001})
    admin.xadd(f"{KEY}:dlq:g", {"m": "x"})
    admin.hset(f"{KEY}:stats:g", "acked", 7)
    admin.set(f"{KEY}:gate", 100)
    seen = await broker.observe(KEY, ("g",))
    assert (seen.length, seen.added, seen.first, seen.last, seen.gate) == (5, 5, ids[0], ids[-1], "100")
    assert abs(seen.now - int(ids[-1].split("-")[0])) < 10_000
    assert seen.groups["g"] == GroupSeen(
        exists=True,
        consumers=1,
        pending=2,
        last=ids[1],
        read=2,
        undelivered=3,
        oldest_undelivered=ids[2],
        oldest_pending=ids[0],
        retry_ready=True,
        retry_length=2,
        retry_pending=1,
        delayed=2,
        next_due=2_000_000_000_000,
        dead=1,
        stats={
            "acked": 7,
            **{f"base:{name}": 0 for name in ("read", "settled", "trimmed", "overrun", "gone")},
        },
    )


async def test_retries_that_are_due_are_counted(server: Server, broker: Broker, admin: redis.Redis) -> None:
    admin.zadd(f"{KEY}:delay:g", {"one": 1, "two": 2, "later": 2_000_000_000_000})
    group = (await broker.observe(KEY, ("g",))).groups["g"]
    assert (group.delayed, group.due, group.next_due) == (3, 2, 1)


async def test_groups_that_nobody_declared_are_seen(
    server: Server, broker: Broker, admin: redis.Redis
) -> None:
    admin.xadd(KEY, {"m": "x"})
    admin.xgroup_create(KEY, "stranger", "0")
    group = (await broker.observe(KEY, ())).groups["stranger"]
    assert (group.exists, group.undelivered, group.retry_ready) == (True, 1, False)


async def test_a_strangers_group_may_have_any_name(
    server: Server, broker: Broker, admin: redis.Redis
) -> None:
    admin.xadd(KEY, {"m": "x"})
    admin.execute_command("XGROUP", "CREATE", KEY, b'\xff"\n', "0")
    assert list((await broker.observe(KEY, ())).groups) == ['�"\n']


async def test_a_derived_key_of_another_type_hides_its_group_s_counters_only(
    server: Server, broker: Broker, admin: redis.Redis
) -> None:
    admin.set(f"{KEY}:dlq:g", "x")
    groups = (await broker.observe(KEY, ("g", "h"))).groups
    assert (groups["g"].unreadable, groups["h"].unreadable) == (True, False)


@pytest.mark.parametrize(
    ("score", "due"), [(1.5, 1), ("-inf", 0), (-7, 0), ("inf", 10**14 - 1), (1e300, 10**14 - 1)]
)
async def test_a_retry_may_be_due_at_any_time(
    server: Server, broker: Broker, admin: redis.Redis, score: float | str, due: int
) -> None:
    admin.zadd(f"{KEY}:delay:g", {"one": score})
    assert (await broker.observe(KEY, ("g",))).groups["g"].next_due == due


async def test_fields_that_are_no_counters_are_not_read(
    server: Server, broker: Broker, admin: redis.Redis
) -> None:
    admin.hset(
        f"{KEY}:stats:g", mapping={"novel": "x" * 1_000, "dead": 3, "le:5": 2, "acked": "x", "le:6": 1}
    )
    group = (await broker.observe(KEY, ("g",))).groups["g"]
    assert (group.stats, group.misread) == ({"dead": 3, "le:5": 2}, ("acked",))


async def test_what_has_not_changed_is_the_same_but_for_the_time(
    server: Server, broker: Broker, admin: redis.Redis
) -> None:
    await broker.apply(CreateStream(KEY, {"name": "seen"}))
    await broker.apply(CreateGroup(KEY, "g", "0"))
    known = await broker.observe(KEY, ("g",))
    (same,) = await broker.measure([Look(KEY, ("g",), known)])
    assert isinstance(same, StreamSeen)
    assert same.groups is known.groups
    assert (same.digest, same.now >= known.now) == (known.digest, True)
    admin.hset(f"{KEY}:stats:g", "sweep:due", 7)
    (swept,) = await broker.measure([Look(KEY, ("g",), known)])
    assert isinstance(swept, StreamSeen)
    assert swept.groups is known.groups, "where sweeping is says nothing of the group"
    for change in (
        lambda: admin.xadd(KEY, {"m": "x"}),
        lambda: admin.xreadgroup("g", "c", {KEY: ">"}),
        lambda: admin.hset(f"{KEY}:stats:g", "settled", 1),
        lambda: admin.hset(f"{KEY}:meta", "name", "other"),
        lambda: admin.set(f"{KEY}:gate", 5),
        lambda: admin.delete(KEY),
    ):
        change()
        (moved,) = await broker.measure([Look(KEY, ("g",), known)])
        assert isinstance(moved, StreamSeen)
        assert moved.digest != known.digest
        assert moved.groups is not known.groups
        known = moved


async def test_a_group_that_is_declared_since_is_seen(
    server: Server, broker: Broker, admin: redis.Redis
) -> None:
    admin.xadd(KEY, {"m": "x"})
    known = await broker.observe(KEY, ())
    (seen,) = await broker.measure([Look(KEY, ("new",), known)])
    assert isinstance(seen, StreamSeen)
    assert seen.groups == {"new": GroupSeen(exists=False)}


async def test_many_streams_are_seen_together_and_one_that_cannot_be_does_not_hide_the_others(
    server: Server, broker: Broker, admin: redis.Redis
) -> None:
    keys = [f"{{t.{number}}}" for number in range(2 * TOGETHER + 1)]
    with admin.pipeline(transaction=False) as batch:
        for number, key in enumerate(keys):
            batch.xadd(key, {"m": "x"}, id=f"{number + 1}-0")
        batch.execute()
    admin.set(f"{keys[3]}:meta", "x")
    found = await broker.measure([Look(key, ("g",)) for key in keys])
    wrong = found[3]
    assert isinstance(wrong, ServerRefused)
    assert "WRONGTYPE" in str(wrong)
    rest = [seen.last for seen in found if isinstance(seen, StreamSeen)]
    assert rest == [f"{number + 1}-0" for number in range(len(keys)) if number != 3]


async def test_settings_and_capabilities_are_seen(server: Server, broker: Broker, admin: redis.Redis) -> None:
    admin.config_set("maxmemory-policy", "allkeys-lru")
    try:
        seen = await broker.server()
    finally:
        admin.config_set("maxmemory-policy", "noeviction")
    assert seen.eviction_policy == "allkeys-lru"
    # all of these servers count right after a trim
    assert seen.trusts_lag


async def test_a_probe_leaves_neither_key_nor_user(
    server: Server, broker: Broker, admin: redis.Redis
) -> None:
    assert admin.keys() == []
    assert admin.acl_users() == ["default"]


async def test_what_may_not_be_looked_at_is_unknown(server: Server, admin: redis.Redis) -> None:
    denied = ["-eval", "-config", "-acl"]
    admin.acl_setuser("limited", enabled=True, nopass=True, keys=["*"], commands=["+@all", *denied])
    limited = await Broker.connect(
        server.url.replace("redis://", "redis://limited:any@"), installation="test"
    )
    seen = await limited.server()
    await limited.close()
    assert not seen.trusts_lag
    assert seen.eviction_policy == "noeviction"


async def test_connecting_loads_the_library(server: Server, admin: redis.Redis) -> None:
    admin.execute_command("FUNCTION", "FLUSH")
    await (await Broker.connect(server.url, installation="test")).close()
    assert admin.fcall_ro("as1_revision", 0) == library.revision()


async def test_connecting_works_while_memory_is_full(server: Server, admin: redis.Redis) -> None:
    admin.config_set("maxmemory", 1)
    connected = await Broker.connect(server.url, installation="test")
    seen = await connected.server()
    await connected.close()
    admin.config_set("maxmemory", 0)
    assert seen.trusts_lag


async def test_connecting_to_nobody_fails_and_leaves_nothing() -> None:
    with pytest.raises(ConnectionLost):
        await Broker.connect(f"redis://127.0.0.1:{free_port()}", installation="test")


async def test_a_wrong_password_is_refused_without_being_named(server: Server, admin: redis.Redis) -> None:
    with pytest.raises(AccessDenied) as refused:
        await Broker.connect(server.url.replace("redis://", "redis://who:hunter2@"), installation="test")
    assert "hunter2" not in str(refused.value)


async def test_a_process_that_took_over_is_noticed_and_made_ready(private_server: Server) -> None:
    broker = await Broker.connect(private_server.url, installation="test")
    before = await broker.server()
    private_server.restart()
    with private_server.admin() as admin:
        admin.execute_command("FUNCTION", "FLUSH")
        with pytest.raises(ConnectionLost):
            await broker.server()
        broker._trusts_lag = False
        after = await broker.server()
        assert admin.fcall_ro("as1_revision", 0) == library.revision()
    await broker.close()
    assert before.run_id != after.run_id
    assert after.trusts_lag
