"""Users are set whole and verified, watched for drift, saved, and never known by their passwords."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path
from typing import Any

import pytest
import redis

from agentstream.errors import AccessDenied, ConnectionLost, ServerRefused
from agentstream.protocol.routes import Consumes, Produces
from agentstream.transport.client import Argument, Client
from agentstream.transport.endpoint import Endpoint
from agentstream_operator.broker.acl import AccessNotEnforced, Users
from agentstream_operator.broker.broker import Broker
from agentstream_operator.broker.server import BrokerClient
from agentstream_operator.plan.access import AgentUse, set_user
from agentstream_operator.plan.actions import DeleteUser, Probe, SetUser
from support.agents import HASHES, PASSWORD, as_agent
from support.servers import Server
from support.waiting import until

PRODUCER = AgentUse("t", "planner", produces=(Produces("tasks", "{t.tasks}"),))
CONSUMER = AgentUse("t", "coder", consumes=(Consumes("tasks", "{t.tasks}", "coder"),))


async def test_a_user_is_set_again_to_exactly_the_new_rules(server: Server, broker: Broker) -> None:
    async with as_agent(server, broker, PRODUCER) as wire:
        assert await wire.call("XLEN", "{t.tasks}") == 0
        await broker.apply(set_user(AgentUse("t", "planner"), "test", HASHES))
        with pytest.raises(AccessDenied):
            await wire.call("XLEN", "{t.tasks}")


async def test_the_same_rules_have_the_same_fingerprint(server: Server, broker: Broker) -> None:
    action = set_user(CONSUMER, "test", HASHES)
    first, again = await broker.apply(action), await broker.apply(action)
    assert first == again
    assert await broker.users() == {"test.t.coder": first}


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
    assert (await broker.users())["test.t.coder"] != applied
    assert await broker.apply(set_user(CONSUMER, "test", HASHES)) == applied


async def test_what_was_stolen_ends_with_the_password(
    server: Server, broker: Broker, admin: redis.Redis
) -> None:
    def connections(use: AgentUse) -> set[str]:
        return {c["id"] for c in admin.client_list() if c["user"] == f"test.{use.namespace}.{use.agent}"}

    async with as_agent(server, broker, PRODUCER) as stolen, as_agent(server, broker, CONSUMER) as other:
        assert [await wire.call("PING") for wire in (stolen, other)] == [b"PONG", b"PONG"]
        stolen_ids, other_ids = connections(PRODUCER), connections(CONSUMER)
        # a rotation begins: both passwords are valid, and nobody is disconnected
        await broker.apply(set_user(PRODUCER, "test", ("0" * 64, *HASHES)))
        assert (await broker.users())["test.t.planner"].passwords == {"0" * 64, *HASHES}
        assert connections(PRODUCER) == stolen_ids
        # it ends
        await broker.apply(set_user(PRODUCER, "test", ("0" * 64,), disconnect=True))
        await until(lambda: not connections(PRODUCER) & stolen_ids)
        with pytest.raises((ConnectionLost, AccessDenied)):
            await stolen.call("PING")
        with pytest.raises(AccessDenied):
            await stolen.call("PING")
        assert connections(CONSUMER) == other_ids


async def test_users_that_vanished_come_back(server: Server, broker: Broker, admin: redis.Redis) -> None:
    action = set_user(PRODUCER, "test", HASHES)
    await broker.apply(action)
    admin.acl_deluser(action.name)
    assert await broker.users() == {}
    applied = await broker.apply(action)
    assert await broker.users() == {action.name: applied}


async def test_many_users_set_at_once_share_listings(
    server: Server, broker: Broker, admin: redis.Redis
) -> None:
    admin.config_resetstat()
    uses = [AgentUse("t", f"agent-{i}") for i in range(100)]
    applied = await asyncio.gather(*(broker.apply(set_user(use, "test", HASHES)) for use in uses))
    assert set(applied) == set((await broker.users()).values())
    assert admin.info("commandstats")["cmdstat_acl|list"]["calls"] <= 10


async def test_a_deleted_user_is_disconnected(server: Server, broker: Broker) -> None:
    async with as_agent(server, broker, PRODUCER) as wire:
        await wire.call("PING")
        assert await broker.apply(DeleteUser("test.t.planner"))
        assert not await broker.apply(DeleteUser("test.t.planner"))
        await until(lambda: wire._connection is None)
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
    class Racing(BrokerClient):
        """A server on which somebody else deletes users as they appear."""

        async def call(self, *args: Argument) -> Any:
            if args[:2] == ("ACL", "LIST"):
                admin.acl_deluser("test.t.x")
            return await super().call(*args)

    connection = Racing(Client(lambda: Endpoint(server.url), name="test"))
    users = Users(connection, "test")
    with pytest.raises(AccessNotEnforced, match="was deleted as soon as it was set"):
        await users.set(SetUser("test.t.x", ("reset",), ()))
    await users.close()
    await connection.close()


async def test_closing_fails_a_listing_that_is_under_way(server: Server) -> None:
    connection = BrokerClient(Client(lambda: Endpoint(server.url), name="test"))
    users = Users(connection, "test")
    listing = asyncio.create_task(users.list())
    await asyncio.sleep(0)
    await users.close()
    await connection.close()
    with pytest.raises(asyncio.CancelledError):
        await listing


class UsersFile:
    """Where the server saves its users."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def names(self, user: str) -> bool:
        return self._path.is_file() and user in self._path.read_text()

    def block(self) -> None:
        """Puts a directory in its place, over which the server cannot rename what it wrote."""
        self._path.unlink()
        self._path.mkdir()
        (self._path / "in the way").touch()

    def unblock(self) -> None:
        (self._path / "in the way").unlink()
        self._path.rmdir()


@pytest.fixture
def users_file(private_server: Server, tmp_path: Path) -> UsersFile:
    return UsersFile(tmp_path / "users.acl")


async def test_users_are_saved_and_survive_a_restart(private_server: Server, users_file: UsersFile) -> None:
    broker = await Broker.connect(private_server.url, installation="test")
    applied = await broker.apply(set_user(CONSUMER, "test", HASHES))
    await until(lambda: users_file.names("test.t.coder"))
    private_server.restart()

    async def users() -> list[str]:
        # one call finds the connection broken: this one, or the one that saves
        with contextlib.suppress(ConnectionLost):
            return list(await broker.users())
        return []

    assert await until(users) == ["test.t.coder"]
    assert await broker.apply(set_user(CONSUMER, "test", HASHES)) == applied
    await broker.close()


async def test_closing_saves_what_was_not_saved_yet(private_server: Server, users_file: UsersFile) -> None:
    broker = await Broker.connect(private_server.url, installation="test")
    await broker.apply(set_user(CONSUMER, "test", HASHES))
    await broker.close()
    assert users_file.names("test.t.coder")


async def test_users_that_cannot_be_saved_are_saved_later(
    private_server: Server, users_file: UsersFile, caplog: pytest.LogCaptureFixture
) -> None:
    connection = BrokerClient(Client(lambda: Endpoint(private_server.url), name="test"))
    users = Users(connection, "test", save_delay=0.01)
    users_file.block()
    with caplog.at_level(logging.WARNING):
        await users.set(SetUser("test.t.x", ("reset",), ()))
        await until(lambda: "did not save its ACL users" in caplog.text)
    users_file.unblock()
    await until(lambda: users_file.names("test.t.x"))
    await users.close()
    await connection.close()


async def test_several_changes_are_saved_once(private_server: Server, users_file: UsersFile) -> None:
    connection = BrokerClient(Client(lambda: Endpoint(private_server.url), name="test"))
    users = Users(connection, "test", save_delay=0.2)
    await asyncio.gather(*(users.set(SetUser(f"test.t.x{i}", ("reset",), ())) for i in range(20)))
    await until(lambda: users_file.names("test.t.x19"))
    await users.close()
    await connection.close()
    with private_server.admin() as admin:
        assert admin.info("commandstats")["cmdstat_acl|save"]["calls"] == 1


async def test_a_server_without_a_file_for_users_is_asked_once_and_not_again(
    server: Server, admin: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    connection = BrokerClient(Client(lambda: Endpoint(server.url), name="test"))
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
        admin.execute_command("PING", "the end")
        seen = []
        while "the end" not in (command := monitor.next_command()["command"]):
            seen.append(command)
        logged = f"{admin.slowlog_get(1000)} {admin.acl_log()}"
    assert any("as1_revision" in command for command in seen)
    assert PASSWORD not in " ".join(seen)
    assert "FLUSHALL" in logged.upper()
    assert PASSWORD not in logged


@pytest.mark.parametrize(("path", "verdict"), [("", "may not"), ("/0", "may not"), ("/3", "may")])
async def test_agents_may_change_the_database_only_where_theirs_is_another(
    server: Server, admin: redis.Redis, path: str, verdict: str
) -> None:
    broker = await Broker.connect(f"{server.url}{path}", installation="test")
    action = set_user(CONSUMER, "test", HASHES)
    await broker.apply(action)
    said = admin.execute_command("ACL", "DRYRUN", action.name, "SELECT", "3")
    assert ("may" if said == "OK" else "may not") == verdict
    await broker.close()
