"""Agents can do what their streams need and nothing else; proved with connections of their own."""

from __future__ import annotations

import asyncio

import pytest
import redis

from agentstream.consuming.hold import DELIVERED, Hold, delivered_holds
from agentstream.errors import AccessDenied
from agentstream.protocol import commands
from agentstream.protocol.commands import DONE, GroupCalls
from agentstream.protocol.keys import StreamKeys, cancel_channel, notify_channel, nudge_channel, reply_key
from agentstream.protocol.routes import Consumes, Produces, decode_route, encode_route
from agentstream.transport.client import Argument, Client
from agentstream.transport.endpoint import Endpoint
from agentstream_operator.broker.broker import Broker
from agentstream_operator.plan.access import AgentUse, route
from agentstream_operator.plan.actions import CreateGroup, CreateStream, SetRoute
from support.agents import PASSWORD, as_agent
from support.entries import add_command
from support.servers import Server
from support.waiting import until

TASKS, NEWS, OTHER = "{t.tasks}", "{t.news}", "{t.other}"
ROUTES = "agentstream:test:t:routes"
TOKEN = "0123456789abcdef" * 2
ANSWERS = reply_key("t", "writer", TOKEN)
PRODUCER = AgentUse("t", "planner", produces=(Produces("tasks", TASKS),))
CONSUMER = AgentUse(
    "t",
    "coder",
    consumes=(Consumes("tasks", TASKS, "coder"), Consumes("news", NEWS, "coder", broadcast=True)),
)
BOTH = AgentUse("t", "relay", PRODUCER.produces, CONSUMER.consumes)


@pytest.fixture
async def streams(broker: Broker, admin: redis.Redis) -> redis.Redis:
    """Three streams with the groups `coder` and `other`, and one entry each."""
    for key in (TASKS, NEWS, OTHER):
        await broker.apply(CreateStream(key, {"name": key}))
        for group in ("coder", "other"):
            await broker.apply(CreateGroup(key, group, "0"))
        admin.xadd(key, {"m": "x"})
    admin.xadd(ANSWERS, {"m": "x"})
    return admin


NOBODY: list[tuple[Argument, ...]] = [
    ("FLUSHALL",),
    ("FLUSHDB",),
    ("SELECT", 1),
    ("KEYS", "*"),
    ("SCAN", 0),
    ("RANDOMKEY",),
    ("DBSIZE",),
    ("SWAPDB", 0, 1),
    ("CONFIG", "GET", "*"),
    ("CONFIG", "SET", "maxmemory", 1),
    ("ACL", "WHOAMI"),
    ("ACL", "LIST"),
    ("ACL", "SETUSER", "test.t.planner", "+@all"),
    ("INFO",),
    ("COMMAND", "COUNT"),
    ("MONITOR",),
    ("SAVE",),
    ("BGREWRITEAOF",),
    ("SHUTDOWN",),
    ("REPLICAOF", "NO", "ONE"),
    ("SLOWLOG", "GET"),
    ("LATENCY", "RESET"),
    ("MEMORY", "USAGE", TASKS),
    ("MODULE", "LIST"),
    ("CLIENT", "LIST"),
    ("CLIENT", "KILL", "TYPE", "normal"),
    ("CLIENT", "PAUSE", 1000),
    ("CLIENT", "NO-EVICT", "on"),
    ("EVAL", "return 1", 0),
    ("EVALSHA", "0" * 40, 0),
    ("SCRIPT", "LOAD", "return 1"),
    ("SCRIPT", "FLUSH"),
    ("FUNCTION", "LOAD", "REPLACE", "#!lua name=agentstream1\nredis.register_function('f', function() end)"),
    ("FUNCTION", "FLUSH"),
    ("FUNCTION", "LIST"),
    ("PUBLISH", "c", "m"),
    ("SUBSCRIBE", "c"),
    ("PSUBSCRIBE", "*"),
    ("SSUBSCRIBE", "c"),
    ("GET", "secret"),
    ("SET", "anything", 1),
    ("SET", f"{TASKS}:gate", 1),
    ("DEL", f"{TASKS}:gate"),
    ("HGETALL", f"{TASKS}:meta"),
    ("HSET", f"{TASKS}:meta", "checkpoint:coder", "9-9"),
    ("HSET", ROUTES, "coder", "{}"),
    ("HDEL", ROUTES, "planner"),
    ("HGETALL", ROUTES),
    ("HGET", "agentstream:test:elsewhere:routes", "coder"),
    ("HKEYS", "agentstream:test:elsewhere:routes"),
    ("HGET", "agentstream:another:t:routes", "coder"),
    ("DEL", TASKS),
    ("UNLINK", TASKS),
    ("RENAME", TASKS, "x"),
    ("COPY", TASKS, "x"),
    ("MOVE", TASKS, 1),
    ("DUMP", TASKS),
    ("RESTORE", TASKS, 0, "x", "REPLACE"),
    ("EXPIRE", TASKS, 1),
    ("PERSIST", TASKS),
    ("SORT", TASKS),
    ("TYPE", TASKS),
    ("OBJECT", "ENCODING", TASKS),
    ("SET", TASKS, "x"),
    ("XTRIM", TASKS, "MAXLEN", 0),
    ("XDEL", TASKS, "0-1"),
    ("XSETID", TASKS, "9-9"),
    ("XREAD", "STREAMS", TASKS, 0),
    ("XREVRANGE", TASKS, "+", "-"),
    ("XINFO", "STREAM", TASKS),
    ("XGROUP", "CREATE", TASKS, "mine", 0),
    ("XGROUP", "SETID", TASKS, "coder", 0),
    ("XGROUP", "DESTROY", TASKS, "coder"),
    ("XGROUP", "DELCONSUMER", TASKS, "coder", "c"),
    ("XADD", OTHER, "*", "m", "x"),
    ("XLEN", OTHER),
    ("XRANGE", OTHER, "-", "+"),
    ("XREADGROUP", "GROUP", "coder", "c", "STREAMS", OTHER, ">"),
    ("XREADGROUP", "GROUP", "coder", "c", "STREAMS", TASKS, OTHER, ">", ">"),
    ("XACK", OTHER, "coder", "0-1"),
    ("FCALL", *add_command(OTHER, "x", token="t")),
    ("FCALL", "as1_settle", 1, OTHER, "coder", "c", f"{OTHER}:stats:coder", "", 0, "acked"),
    ("FCALL", "as1_janitor", 1, TASKS, TASKS, 0, 1, 0, "TrimOldest", 100, 1, 0),
    ("FCALL", "as1_create_stream", 1, TASKS, f"{TASKS}:meta", "a", "b"),
    ("FCALL", "as1_create_group", 1, TASKS, TASKS, "mine", "0"),
    ("FCALL", "as1_destroy_group", 1, TASKS, TASKS, "coder"),
    ("FCALL", "as1_delete_stream", 1, TASKS, TASKS, 0),
    ("FCALL", "as1_orphan", 1, TASKS, TASKS, "coder", ""),
    ("FCALL", "as1_remove_consumers", 1, TASKS, TASKS, "coder", ""),
    ("FCALL_RO", "as1_observe", 1, TASKS, TASKS, 1),
    ("FCALL_RO", "as1_page", 1, TASKS, "-", "+", 1, "forward"),
    ("FCALL_RO", "as1_whereabouts", 1, TASKS, TASKS, "coder", "1-1", 0, "+"),
    ("FCALL", "as1_replay", 1, TASKS, TASKS, "coder", "again.1", "stream", "", "1-1", 1),
    ("FCALL", "as1_drop", 1, TASKS, TASKS, "coder", "again.1", "", "1-1"),
    ("FCALL_RO", "as1_replay_state", 1, TASKS, TASKS, "coder", "again.1"),
    ("FCALL", "as1_end_replay", 1, TASKS, TASKS, "coder", "again.1"),
    ("HGETALL", f"{TASKS}:replay:again.1"),
    ("HSET", f"{TASKS}:replay:again.1", "cursor", "9-9"),
    ("UNLINK", f"{TASKS}:replay:again.1"),
    ("HGET", f"{TASKS}:replay:again.1:keys", "k"),
    ("FCALL_RO", "as1_measure", 1, TASKS, 1, TASKS, "", 0),
    # answers to others
    ("XREAD", "COUNT", 9, "STREAMS", ANSWERS, 0),
    ("XRANGE", ANSWERS, "-", "+"),
    ("XLEN", ANSWERS),
    ("XTRIM", ANSWERS, "MAXLEN", 0),
    ("XDEL", ANSWERS, "0-1"),
    ("UNLINK", ANSWERS),
    ("DEL", ANSWERS),
    ("PERSIST", ANSWERS),
    ("XGROUP", "CREATE", ANSWERS, "mine", 0),
    # answers in another namespace
    ("XADD", reply_key("u", "planner", TOKEN), "*", "m", "x"),
    ("PEXPIRE", reply_key("u", "planner", TOKEN), 1),
    ("FCALL", "as1_reply", 1, reply_key("u", "planner", TOKEN), 1000, "m", "x"),
    # answers on what is not there for answers
    ("FCALL", "as1_reply", 1, OTHER, 1000, "m", "x"),
    ("FCALL", "as1_reply", 1, f"{OTHER}:retry:coder", 1000, "m", "x"),
    ("PEXPIRE", OTHER, 1),
    ("FCALL_RO", "as1_receipt", 1, OTHER, f"{OTHER}:receipts", 1, "coder", f"{OTHER}:parked:coder", "1-1"),
    ("FCALL_RO", "as1_receipt", 1, TASKS, f"{TASKS}:receipts", 1, "coder", f"{TASKS}:parked:coder", "1-1"),
    # what is published to others
    ("SUBSCRIBE", notify_channel("test", "t", "writer")),
    ("SUBSCRIBE", notify_channel("test", "t", "broadcast"), notify_channel("test", "t", "writer")),
    ("SUBSCRIBE", nudge_channel("test", "t", "writer")),
    ("SUBSCRIBE", cancel_channel("test", "t", "writer")),
    ("PUBLISH", cancel_channel("test", "u", "writer"), "x"),
    ("SUBSCRIBE", notify_channel("test", "u", "broadcast")),
    ("SSUBSCRIBE", notify_channel("test", "t", "writer")),
    ("PSUBSCRIBE", notify_channel("test", "t", "*")),
    ("PUBLISH", notify_channel("test", "u", "broadcast"), "x"),
    ("PUBLISH", notify_channel("another", "t", "broadcast"), "x"),
    ("PUBLISH", nudge_channel("test", "t", "writer"), "x"),
]

PRODUCER_ONLY: list[tuple[Argument, ...]] = [
    ("XRANGE", TASKS, "-", "+"),
    ("XREADGROUP", "GROUP", "coder", "c", "STREAMS", TASKS, ">"),
    ("XACK", TASKS, "coder", "0-1"),
    ("XPENDING", TASKS, "coder"),
    ("XADD", f"{TASKS}:retry:coder", "*", "m", "x"),
    ("XADD", f"{TASKS}:dlq:coder", "*", "m", "x"),
    ("HSET", f"{TASKS}:stats:coder", "acked", 9),
    ("XADD", f"{TASKS}:once:1", "*", "m", "x"),
    ("SET", f"{OTHER}:once:writer:1", "x"),
    ("SET", f"{TASKS}:once:coder:1", "x"),
    ("GET", f"{TASKS}:once:1"),
    ("SET", f"{OTHER}:sent:1", "x"),
    ("HSET", f"{OTHER}:order", "k", "1-1"),
    ("DEL", f"{TASKS}:sent:1"),
    ("GET", f"{OTHER}:gate"),
    ("FCALL", "as1_settle", 1, TASKS, "coder", "c", f"{TASKS}:stats:coder", "", 0, "acked"),
    ("FCALL", "as1_take", 1, TASKS, "coder", "c", f"{TASKS}:stats:coder", 0, "c", "-", 9),
    ("XINFO", "CONSUMERS", TASKS, "coder"),
    # a producer that could make a group forget could have it handle copies
    ("HSET", f"{TASKS}:seen:coder", "from", 1),
    ("UNLINK", f"{TASKS}:earlier:coder"),
    ("FCALL", "as1_originals", 1, TASKS, f"{TASKS}:seen:coder", f"{TASKS}:earlier:coder", "1-1", "d" * 16),
]

CONSUMER_ONLY: list[tuple[Argument, ...]] = [
    ("XADD", TASKS, "*", "m", "x"),
    ("XADD", NEWS, "*", "m", "x"),
    ("XLEN", TASKS),
    ("FCALL", *add_command(TASKS, "x", token="t")),
    ("SET", f"{TASKS}:once:1", "x"),
    ("GET", f"{TASKS}:once:1"),
    ("SET", f"{TASKS}:sent:1", "x"),
    ("HSET", f"{TASKS}:order", "k", "1-1"),
    ("XRANGE", f"{TASKS}:retry:other", "-", "+"),
    ("XADD", f"{TASKS}:retry:other", "*", "m", "x"),
    ("XADD", f"{TASKS}:dlq:other", "*", "m", "x"),
    ("XDEL", f"{TASKS}:dlq:coder", "0-1"),
    ("XRANGE", f"{TASKS}:dlq:coder", "-", "+"),
    ("DEL", f"{TASKS}:dlq:coder"),
    ("XTRIM", f"{TASKS}:retry:coder", "MAXLEN", 0),
    ("ZADD", f"{TASKS}:delay:other", 1, "x"),
    ("ZREMRANGEBYRANK", f"{TASKS}:delay:coder", 0, -1),
    ("HSET", f"{TASKS}:stats:other", "acked", 9),
    ("HGETALL", f"{TASKS}:stats:coder"),
    ("DEL", f"{TASKS}:stats:coder"),
    ("ZADD", TASKS, 1, "x"),
    ("HSET", TASKS, "f", "v"),
    ("XACK", f"{TASKS}:retry:other", "other", "0-1"),
    ("HSET", f"{TASKS}:parked:other", "1-1", "dead"),
    ("HSET", f"{NEWS}:parked:other", "1-1", "dead"),
    ("HGETALL", f"{NEWS}:parked:coder"),
    ("HGET", f"{TASKS}:seen:other", "from"),
    ("UNLINK", f"{TASKS}:seen:other"),
    ("RENAME", f"{TASKS}:seen:coder", TASKS),
]

MATRIX = [
    *((use, command) for use in (PRODUCER, CONSUMER, BOTH) for command in NOBODY),
    *((PRODUCER, command) for command in PRODUCER_ONLY),
    *((CONSUMER, command) for command in CONSUMER_ONLY),
]


async def test_every_other_command_is_denied(server: Server, broker: Broker, streams: redis.Redis) -> None:
    keys = sorted(streams.keys())
    allowed = []
    for use in (PRODUCER, CONSUMER, BOTH):
        commands = [command for user, command in MATRIX if user is use]
        async with as_agent(server, broker, use) as wire:
            replies = await asyncio.gather(*(wire.call(*c) for c in commands), return_exceptions=True)
        for command, reply in zip(commands, replies, strict=True):
            if not isinstance(reply, AccessDenied):
                allowed.append((use.agent, command, reply))
    assert allowed == []
    assert sorted(streams.keys()) == keys
    assert [streams.xlen(key) for key in (TASKS, NEWS, OTHER, ANSWERS)] == [1, 1, 1, 1]


async def test_who_consumes_may_answer_in_its_namespace(
    server: Server, broker: Broker, streams: redis.Redis
) -> None:
    own = reply_key("t", "coder", TOKEN)
    async with as_agent(server, broker, CONSUMER) as wire:
        for key in (ANSWERS, own):
            await wire.call("FCALL", "as1_reply", 1, key, 60_000, "m", "x", "e", "no")
            assert 50_000 < streams.pttl(key) <= 60_000
            # its end is put off, and never brought forward
            await wire.call("FCALL", "as1_reply", 1, key, 90_000, "m", "x")
            await wire.call("FCALL", "as1_reply", 1, key, 1_000, "m", "x")
            assert 80_000 < streams.pttl(key) <= 90_000
        ((_, entries),) = await wire.call("XREAD", "COUNT", 9, "STREAMS", own, 0)
        assert [fields for _, fields in entries] == [[b"m", b"x", b"e", b"no"], [b"m", b"x"], [b"m", b"x"]]
        assert await wire.call("XTRIM", own, "MINID", "9999999999999-0") == 3
        assert await wire.call("UNLINK", own) == 1
    assert streams.acl_log() == []


async def test_an_agent_without_streams_may_notify_and_fills_nothing(
    server: Server, broker: Broker, streams: redis.Redis
) -> None:
    async with as_agent(server, broker, AgentUse("t", "idle")) as wire:
        for key in (ANSWERS, reply_key("t", "idle", TOKEN)):
            for command in (
                ("XADD", key, "*", "m", "x"),
                ("PEXPIRE", key, 1),
                ("FCALL", "as1_reply", 1, key, 60_000, "m", "x"),
            ):
                with pytest.raises(AccessDenied):
                    await wire.call(*command)
        with pytest.raises(AccessDenied):
            await wire.call("SELECT", 1)
        assert len(streams.acl_log()) > 1
        streams.acl_log_reset()
        assert await wire.call("PUBLISH", notify_channel("test", "t", "writer"), "x") == 0
        assert await wire.call("PUBLISH", notify_channel("test", "t", "broadcast"), "x") == 0
    assert streams.acl_log() == []


async def test_a_producer_of_a_broadcast_stream_may_ask_who_has_acknowledged(
    server: Server, broker: Broker, streams: redis.Redis
) -> None:
    keys = StreamKeys(NEWS)
    streams.hset(keys.parked("other"), "1-1", "retrying")
    ask = commands.receipt(keys, ("coder", "other"), ("1-1",))
    use = AgentUse(
        "t", "herald", produces=(Produces("news", NEWS, broadcast=True, groups=("coder", "other")),)
    )
    async with as_agent(server, broker, use) as wire:
        assert await wire.call(*ask) == [b"missing", b"retrying"]
        noted = commands.message(b"x", ("receipts", keys.receipts))
        entry = (await wire.call(*commands.add(keys, "token", 0, 1000, noted))).split()[1]
        assert await wire.call(*commands.receipt(keys, ("coder",), (entry,))) == [b"pending"]
        for forbidden in (
            ("HSET", keys.parked("coder"), "1-1", "dead"),
            ("HGETALL", keys.parked("coder")),
            ("XINFO", "STREAM", NEWS),
            ("XINFO", "CONSUMERS", NEWS, "coder"),
            ("XRANGE", NEWS, "-", "+"),
            ("XACK", NEWS, "coder", "1-1"),
            (
                "FCALL_RO",
                "as1_receipt",
                1,
                TASKS,
                f"{TASKS}:receipts",
                1,
                "coder",
                f"{TASKS}:parked:coder",
                "1-1",
            ),
        ):
            with pytest.raises(AccessDenied):
                await wire.call(*forbidden)


async def test_a_user_without_its_password_gets_nowhere(
    server: Server, broker: Broker, streams: redis.Redis
) -> None:
    async with as_agent(server, broker, PRODUCER):
        pass
    for name, password in (("test.t.planner", "wrong"), ("test.t.nobody", PASSWORD)):
        wire = Client(lambda: Endpoint(server.url, name, password), name="agent")  # noqa: B023 - used at once
        with pytest.raises(AccessDenied):
            await wire.call("PING")
        await wire.close()


async def test_everyone_may_connect_and_read_routes(
    server: Server, broker: Broker, streams: redis.Redis
) -> None:
    await broker.apply(SetRoute(ROUTES, "coder", encode_route(route(CONSUMER))))
    async with as_agent(server, broker, AgentUse("t", "idle")) as wire:
        assert await wire.call("PING") == b"PONG"
        assert len(await wire.call("TIME")) == 2
        assert await wire.call("CLIENT", "SETINFO", "LIB-NAME", "agentstream") == b"OK"
        assert decode_route(await wire.call("HGET", ROUTES, "coder")) == route(CONSUMER)
        assert b"coder" in await wire.call("HKEYS", ROUTES)
    assert streams.acl_log() == []


async def test_a_producer_can_add_once_and_in_order_and_with_admission(
    server: Server, broker: Broker, streams: redis.Redis
) -> None:
    keys = StreamKeys(TASKS)
    first = ("FCALL", *add_command(TASKS, "x", token="t"))
    options = ("once", keys.once(PRODUCER.agent, "coder", "mine"), "key", "k", "s", "signed")
    second = ("FCALL", *add_command(TASKS, number=1, token="t"), "y", len(options), *options)
    async with as_agent(server, broker, PRODUCER) as wire:
        assert await wire.call(*first) == await wire.call(*first)
        assert await wire.call(*second) == await wire.call(*second)
        streams.set(keys.gate, 3)
        assert await wire.call("FCALL", *add_command(TASKS, "z", number=2, token="t")) == b"2 BACKPRESSURE"
        streams.set(keys.gate, "3 coder=3")
        streams.hset(keys.stats("coder"), "settled", 1)
        assert b"-" in await wire.call("FCALL", *add_command(TASKS, "z", number=3, token="t"))
    assert streams.xlen(TASKS) == 4
    assert streams.acl_log() == []


@pytest.mark.parametrize("key", [TASKS, NEWS])
async def test_a_consumer_can_do_all_that_handling_a_message_takes(
    server: Server, broker: Broker, streams: redis.Redis, key: str
) -> None:
    policy = next(c for c in CONSUMER.consumes if c.key == key)
    calls = GroupCalls(policy, "c")
    main, retries = calls.sources
    for _ in range(5):
        streams.xadd(key, {"m": "x"})
    async with as_agent(server, broker, CONSUMER) as wire:

        async def read() -> list[Hold]:
            return list(
                delivered_holds(await wire.call(*calls.read(calls.sources, 10, 1000)), calls.sources, 0)
            )

        entries = await read()
        assert await wire.call(*calls.begin(main, entries[:1])) == [2]
        entries[0] = Hold(entries[0].entry, 2, DELIVERED, 0)
        assert await wire.call(*calls.renew(main, 60_000, entries[:2])) == [DONE, DONE]
        assert await wire.call(*calls.settle(main, "acked", entries[:1])) == [DONE]
        entries[1].after, entries[2].after = entries[0].id, entries[3].id
        assert await wire.call(*calls.turn(calls.main, entries[1:3])) == [1, 0]
        assert await wire.call(*calls.release(main, DELIVERED, entries[1:2])) == [DONE]
        assert len((await wire.call(*calls.take(main, "c", "-", 10)))[1]) == 5
        assert await wire.call(*calls.retry(entries[2], 0, 1, "Failed", "e")) == DONE
        assert await wire.call(*calls.retry(entries[3], 1, 1, "Failed", "e")) == DONE
        assert await wire.call(*calls.dead_letter(entries[4], 1, "Failed", "e")) == DONE
        assert await wire.call("XACK", key, "coder", entries[5].id) == 1

        async def due() -> bool:
            return (await wire.call(*calls.sweep(60_000, 0, 10, now=False)))[0] == 1

        await until(due)
        again = await read()
        assert await wire.call(*calls.settle(retries, "acked", again[:1])) == [DONE]
        assert await wire.call(*calls.dead_letter(again[1], 1, "Failed", "e")) == DONE
    seen = (await broker.observe(key, ("coder",))).groups["coder"]
    assert (seen.pending, seen.retry_length, seen.delayed, seen.dead) == (1, 0, 0, 2)
    assert streams.acl_log() == []
