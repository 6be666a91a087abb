"""Agents can do what their streams need and nothing else, proved as themselves; users are kept as they are to be."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from agentstream.errors import AccessDenied, AgentStreamError, ConnectionLost, ServerRefused
from agentstream.keys import StreamKeys
from agentstream.routes import Consumes, Produces, decode_route, encode_route
from agentstream.wire import Argument, Endpoint, Wire
from agentstream_operator.broker.acl import AccessNotEnforced, Users
from agentstream_operator.broker.broker import Broker
from agentstream_operator.broker.connection import Connection
from agentstream_operator.plan.access import AgentUse, route, set_user
from agentstream_operator.plan.actions import CreateGroup, CreateStream, DeleteUser, Probe, SetRoute, SetUser
from support.servers import Server
from support.waiting import until

TASKS, NEWS, OTHER = "{t.tasks}", "{t.news}", "{t.other}"
ROUTES = "agentstream:test:t:routes"
PRODUCER = AgentUse("t", "planner", produces=(Produces("tasks", TASKS),))
CONSUMER = AgentUse(
    "t",
    "coder",
    consumes=(Consumes("tasks", TASKS, "coder"), Consumes("news", NEWS, "coder", broadcast=True)),
)
BOTH = AgentUse("t", "relay", PRODUCER.produces, CONSUMER.consumes)
PASSWORD = "correct horse battery staple"
HASHES = (hashlib.sha256(PASSWORD.encode()).hexdigest(),)


@asynccontextmanager
async def as_agent(server: Server, broker: Broker, use: AgentUse) -> AsyncIterator[Wire]:
    """A connection as the agent's user."""
    action = set_user(use, "test", HASHES)
    await broker.apply(action)
    wire = Wire(lambda: Endpoint(server.url, action.name, PASSWORD), name="agent")
    yield wire
    await wire.close()


@pytest.fixture
async def streams(broker: Broker, admin: redis.Redis) -> redis.Redis:
    """Three streams with the groups `coder` and `other`, and one entry each."""
    for key in (TASKS, NEWS, OTHER):
        await broker.apply(CreateStream(key, {"name": key}))
        for group in ("coder", "other"):
            await broker.apply(CreateGroup(key, group, "0"))
        admin.xadd(key, {"m": "x"})
    return admin


# --- denied ---

NOBODY: list[tuple[Argument, ...]] = [
    ("FLUSHALL",),
    ("FLUSHDB",),
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
    ("DEBUG", "JMAP"),
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
    ("HGET", "agentstream:test:elsewhere:routes", "coder"),
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
    ("FCALL", "as1_add", 1, OTHER, f"{OTHER}:gate", "", 0, "m", "x"),
    ("FCALL", "as1_settle", 1, OTHER, "coder", "c", f"{OTHER}:stats:coder", "", 0, "acked"),
    ("FCALL", "as1_janitor", 1, TASKS, TASKS, 0, 1, 0, "TrimOldest", 100, 1, 0),
    ("FCALL", "as1_create_stream", 1, TASKS, f"{TASKS}:meta", "a", "b"),
    ("FCALL", "as1_create_group", 1, TASKS, TASKS, "mine", "0"),
    ("FCALL", "as1_destroy_group", 1, TASKS, TASKS, "coder"),
    ("FCALL", "as1_delete_stream", 1, TASKS, TASKS, 0),
    ("FCALL", "as1_orphan", 1, TASKS, TASKS, "coder", ""),
    ("FCALL", "as1_remove_consumers", 1, TASKS, TASKS, "coder", ""),
    ("FCALL_RO", "as1_observe", 1, TASKS, TASKS, 1),
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
    ("SET", f"{OTHER}:once:1", "x"),
    ("GET", f"{OTHER}:gate"),
    ("FCALL", "as1_settle", 1, TASKS, "coder", "c", f"{TASKS}:stats:coder", "", 0, "acked"),
    ("FCALL", "as1_take", 1, TASKS, "coder", "c", f"{TASKS}:stats:coder", 0, "", "-", 9),
]

CONSUMER_ONLY: list[tuple[Argument, ...]] = [
    ("XADD", TASKS, "*", "m", "x"),
    ("XADD", NEWS, "*", "m", "x"),
    ("XLEN", TASKS),
    ("FCALL", "as1_add", 1, TASKS, f"{TASKS}:gate", "", 0, "m", "x"),
    ("SET", f"{TASKS}:once:1", "x"),
    ("GET", f"{TASKS}:once:1"),
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
    # the main stream has no `parked`, being no broadcast stream
    ("HSET", f"{TASKS}:parked:coder", "1-1", "dead"),
    ("HSET", f"{NEWS}:parked:other", "1-1", "dead"),
    ("HGETALL", f"{NEWS}:parked:coder"),
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
    assert [streams.xlen(key) for key in (TASKS, NEWS, OTHER)] == [1, 1, 1]


async def test_a_user_without_its_password_gets_nowhere(
    server: Server, broker: Broker, streams: redis.Redis
) -> None:
    async with as_agent(server, broker, PRODUCER):
        pass
    for name, password in (("test.t.planner", "wrong"), ("test.t.nobody", PASSWORD)):
        wire = Wire(lambda: Endpoint(server.url, name, password), name="agent")  # noqa: B023 - used at once
        with pytest.raises(AccessDenied):
            await wire.call("PING")
        await wire.close()


# --- allowed ---


async def test_everyone_may_connect_and_read_routes(
    server: Server, broker: Broker, streams: redis.Redis
) -> None:
    await broker.apply(SetRoute(ROUTES, "coder", encode_route(route(CONSUMER))))
    async with as_agent(server, broker, AgentUse("t", "idle")) as wire:
        assert await wire.call("PING") == b"PONG"
        assert len(await wire.call("TIME")) == 2
        assert await wire.call("SELECT", 0) == b"OK"
        assert await wire.call("CLIENT", "SETINFO", "LIB-NAME", "agentstream") == b"OK"
        assert decode_route(await wire.call("HGET", ROUTES, "coder")) == route(CONSUMER)
        assert (await wire.call("HGETALL", ROUTES))[0] == b"coder"
    assert streams.acl_log() == []


async def test_a_producer_can_add_once_and_with_admission(
    server: Server, broker: Broker, streams: redis.Redis
) -> None:
    keys = StreamKeys(TASKS)
    add = ("FCALL", "as1_add", 1, TASKS, keys.gate)
    async with as_agent(server, broker, PRODUCER) as wire:
        first = await wire.call(*add, keys.once("id"), 60_000, "m", "x")
        assert await wire.call(*add, keys.once("id"), 60_000, "m", "x") == first
        streams.set(keys.gate, 2)
        with pytest.raises(AgentStreamError, match="BACKPRESSURE"):
            await wire.call(*add, keys.once("other"), 60_000, "m", "x")
    assert streams.xlen(TASKS) == 2
    assert streams.acl_log() == []


@pytest.mark.parametrize("key", [TASKS, NEWS])
async def test_a_consumer_can_do_all_that_handling_a_message_takes(
    server: Server, broker: Broker, streams: redis.Redis, key: str
) -> None:
    keys = StreamKeys(key)
    main, retry, stats = key, keys.retry("coder"), keys.stats("coder")
    parked = keys.parked("coder") if key == NEWS else ""
    for _ in range(5):
        streams.xadd(key, {"m": "x"})
    async with as_agent(server, broker, CONSUMER) as wire:

        async def call(name: str, source: str, *args: Argument) -> Any:
            return await wire.call("FCALL", name, 1, source, "coder", "c", *args)

        async def read() -> dict[bytes, list[bytes]]:
            streams_read = ("STREAMS", main, retry, ">", ">")
            reply = await wire.call("XREADGROUP", "GROUP", "coder", "c", "COUNT", 10, *streams_read)
            return {name: [entry for entry, _ in entries] for name, entries in reply or ()}

        ids = (await read())[main.encode()]
        assert len(ids) == 6
        assert await call("as1_begin", main, ids[0], 1) == [2]
        assert await call("as1_renew", main, ids[0], 2) == [1]
        assert await call("as1_settle", main, stats, parked, 0, "acked", ids[0], 2) == [1]
        assert await call("as1_release", main, ids[1], 1) == [1]
        taken = await call("as1_take", main, stats, 0, "", "-", 10)
        assert [entry[0] for entry in taken[1]] == ids[1:]
        later = (keys.delay("coder"), retry)
        assert await call("as1_retry", main, stats, parked, 0, ids[2], 1, *later, 0, 1, "Failed", "e") == 1
        assert await call("as1_retry", main, stats, parked, 0, ids[3], 1, *later, 1, 1, "Failed", "e") == 1
        letters = keys.dead_letters("coder")
        assert await call("as1_dead_letter", main, stats, parked, 0, ids[4], 1, letters, 1, "No", "e") == 1

        async def swept() -> bool:
            return (await call("as1_sweep", main, stats, *later, 60_000, 0, 10))[0] == 1

        await until(swept)
        again = (await read())[retry.encode()]
        assert len(again) == 2
        assert await call("as1_settle", retry, stats, parked, 1, "acked", again[0], 1) == [1]
        where = (stats, parked, 1, again[1], 1, letters)
        assert await call("as1_dead_letter", retry, *where, 1, "No", "e") == 1
        assert await wire.call("XACK", main, "coder", ids[5]) == 1
    assert streams.xlen(letters) == 2
    assert streams.acl_log() == []


# --- kept as they are to be ---


async def test_a_user_is_set_again_to_exactly_the_new_rules(
    server: Server, broker: Broker, streams: redis.Redis
) -> None:
    async with as_agent(server, broker, BOTH) as wire:
        assert await wire.call("XLEN", TASKS) == 1
        await broker.apply(set_user(AgentUse("t", "relay"), "test", HASHES))
        with pytest.raises(AccessDenied):
            await wire.call("XLEN", TASKS)


async def test_the_same_rules_have_the_same_fingerprint(server: Server, broker: Broker) -> None:
    action = set_user(CONSUMER, "test", HASHES)
    first, again = await broker.apply(action), await broker.apply(action)
    assert first == again
    assert await broker.users() == {"test.t.coder": first.fingerprint}


@pytest.mark.parametrize(
    "change",
    [
        ("+config",),
        ("~*",),
        ("off",),
        ("nopass",),
        (">another",),
        ("clearselectors",),
        ("allchannels",),
    ],
)
async def test_any_change_of_a_user_changes_its_fingerprint(
    server: Server, broker: Broker, admin: redis.Redis, change: tuple[str, ...]
) -> None:
    applied = await broker.apply(set_user(CONSUMER, "test", HASHES))
    admin.execute_command("ACL", "SETUSER", "test.t.coder", *change)
    assert (await broker.users())["test.t.coder"] != applied.fingerprint
    assert await broker.apply(set_user(CONSUMER, "test", HASHES)) == applied


async def test_users_that_vanished_come_back(server: Server, broker: Broker, admin: redis.Redis) -> None:
    action = set_user(PRODUCER, "test", HASHES)
    await broker.apply(action)
    admin.acl_deluser(action.name)
    assert await broker.users() == {}
    applied = await broker.apply(action)
    assert await broker.users() == {action.name: applied.fingerprint}


async def test_many_users_set_at_once_share_listings(
    server: Server, broker: Broker, admin: redis.Redis
) -> None:
    admin.config_resetstat()
    uses = [AgentUse("t", f"agent-{i}") for i in range(100)]
    applied = await asyncio.gather(*(broker.apply(set_user(use, "test", HASHES)) for use in uses))
    assert {a.fingerprint for a in applied} == set((await broker.users()).values())
    assert admin.info("commandstats")["cmdstat_acl|list"]["calls"] <= 10


async def test_a_deleted_user_is_disconnected(server: Server, broker: Broker, streams: redis.Redis) -> None:
    async with as_agent(server, broker, PRODUCER) as wire:
        await wire.call("PING")
        assert (await broker.apply(DeleteUser("test.t.planner"))).changed
        assert not (await broker.apply(DeleteUser("test.t.planner"))).changed
        with pytest.raises(ConnectionLost):
            await wire.call("PING")
        with pytest.raises(AccessDenied):
            await wire.call("PING")


@pytest.mark.parametrize("name", ["default", "other.t.coder", "tester.t.coder", "test"])
async def test_foreign_users_are_neither_seen_nor_touched(
    server: Server, broker: Broker, admin: redis.Redis, name: str
) -> None:
    admin.acl_setuser("other.t.coder", enabled=True, nopass=True)
    admin.acl_setuser("tester.t.coder", enabled=True, nopass=True)
    before = admin.acl_list()
    for action in (SetUser(name, ("reset",), ()), DeleteUser(name)):
        with pytest.raises(ValueError, match="does not belong to this installation"):
            await broker.apply(action)
    assert await broker.users() == {}
    assert admin.acl_list() == before


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        (Probe(("FLUSHALL",), allowed=True), "may not run 'FLUSHALL' and must be able to"),
        (Probe(("PING",), allowed=False), "may run 'PING' and must not"),
    ],
)
async def test_a_user_whose_rights_are_not_as_meant_is_an_error(
    server: Server, broker: Broker, probe: Probe, message: str
) -> None:
    with pytest.raises(AccessNotEnforced, match=f"user test.t.x {message}"):
        await broker.apply(SetUser("test.t.x", ("reset", "on", "+ping"), (), (probe,)))


async def test_rules_that_the_server_does_not_know_are_an_error(server: Server, broker: Broker) -> None:
    with pytest.raises(ServerRefused, match="SETUSER"):
        await broker.apply(SetUser("test.t.x", ("reset", "+nonsense"), (), (Probe(("PING",), allowed=True),)))


async def test_a_user_that_vanishes_at_once_is_an_error(server: Server, admin: redis.Redis) -> None:
    class Racing(Connection):
        """A server on which somebody else deletes users as they appear."""

        async def call(self, *args: Argument) -> Any:
            if args[:2] == ("ACL", "LIST"):
                admin.acl_deluser("test.t.x")
            return await super().call(*args)

    connection = Racing(Wire(lambda: Endpoint(server.url), name="test"))
    users = Users(connection, "test")
    with pytest.raises(AccessNotEnforced, match="vanished"):
        await users.set(SetUser("test.t.x", ("reset",), ()))
    await users.close()
    await connection.close()


async def test_closing_fails_a_listing_that_is_under_way(server: Server) -> None:
    connection = Connection(Wire(lambda: Endpoint(server.url), name="test"))
    users = Users(connection, "test")
    listing = asyncio.create_task(users.fingerprints())
    await asyncio.sleep(0)
    await users.close()
    await connection.close()
    with pytest.raises(asyncio.CancelledError):
        await listing


# --- saved, and secret ---


@pytest.fixture
def users_file(private_server: Server, tmp_path: Path) -> Iterator[Path]:
    """Where the server saves its users."""
    return tmp_path / "users.acl"


async def test_users_are_saved_and_survive_a_restart(private_server: Server, users_file: Path) -> None:
    broker = await Broker.connect(private_server.url, installation="test")
    applied = await broker.apply(set_user(CONSUMER, "test", HASHES))
    await until(lambda: "test.t.coder" in users_file.read_text())
    private_server.restart()
    with pytest.raises(ConnectionLost):
        await broker.users()
    assert list(await broker.users()) == ["test.t.coder"]
    assert await broker.apply(set_user(CONSUMER, "test", HASHES)) == applied
    await broker.close()


async def test_closing_saves_what_was_not_saved_yet(private_server: Server, users_file: Path) -> None:
    broker = await Broker.connect(private_server.url, installation="test")
    await broker.apply(set_user(CONSUMER, "test", HASHES))
    await broker.close()
    assert "test.t.coder" in users_file.read_text()


async def test_users_that_cannot_be_saved_are_saved_later(
    private_server: Server, users_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    connection = Connection(Wire(lambda: Endpoint(private_server.url), name="test"))
    users = Users(connection, "test", save_delay=0.01)
    # the server writes beside the file first, then renames
    users_file.unlink()
    users_file.mkdir()
    (users_file / "in the way").touch()
    with caplog.at_level(logging.WARNING):
        await users.set(SetUser("test.t.x", ("reset",), ()))
        await until(lambda: "did not save its users" in caplog.text)
    (users_file / "in the way").unlink()
    users_file.rmdir()
    await until(lambda: users_file.exists() and "test.t.x" in users_file.read_text())
    await users.close()
    await connection.close()


async def test_several_changes_are_saved_once(private_server: Server, users_file: Path) -> None:
    connection = Connection(Wire(lambda: Endpoint(private_server.url), name="test"))
    users = Users(connection, "test", save_delay=0.2)
    await asyncio.gather(*(users.set(SetUser(f"test.t.x{i}", ("reset",), ())) for i in range(20)))
    await until(lambda: "test.t.x19" in users_file.read_text())
    await users.close()
    with private_server.admin() as admin:
        assert admin.info("commandstats")["cmdstat_acl|save"]["calls"] == 1
    await connection.close()


async def test_a_server_without_a_file_for_users_is_asked_once_and_not_again(
    server: Server, admin: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    connection = Connection(Wire(lambda: Endpoint(server.url), name="test"))
    users = Users(connection, "test", save_delay=0.01)
    admin.config_resetstat()
    await users.set(SetUser("test.t.x", ("reset",), ()))
    await until(lambda: "cmdstat_acl|save" in admin.info("commandstats"))
    await users.close()
    await connection.close()
    assert admin.info("commandstats")["cmdstat_acl|save"]["calls"] == 1
    assert caplog.text == ""


async def test_no_password_reaches_the_server_or_its_logs_in_plain_text(private_server: Server) -> None:
    with private_server.admin() as admin, admin.monitor() as monitor:
        admin.config_set("slowlog-log-slower-than", 0)
        broker = await Broker.connect(private_server.url, installation="test")
        async with as_agent(private_server, broker, PRODUCER) as wire:
            with pytest.raises(AccessDenied):
                await wire.call("FLUSHALL")
        await broker.close()
        admin.ping("the end")
        seen = []
        while "the end" not in (command := monitor.next_command()["command"]):
            seen.append(command)
        logged = f"{admin.slowlog_get(1000)} {admin.acl_log()}"
    assert any("as1_revision" in command for command in seen)
    assert PASSWORD not in " ".join(seen)
    assert "FLUSHALL" in logged.upper()
    assert PASSWORD not in logged
