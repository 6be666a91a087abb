"""What is lost on the server comes back by itself, and an event says what was lost."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime

import pytest
import redis

from agentstream.protocol.keys import StreamKeys
from agentstream_operator.plan import agents
from agentstream_operator.plan.observed import ServerSeen
from agentstream_operator.resources.status import ConditionReason, ConditionType
from support.operator import Operator, operator
from support.resources import KEY, ROUTES, TEMPLATE, a_group, a_stream
from support.servers import Server
from support.waiting import until

KEYS = StreamKeys(KEY)
USER = "agentstream.team.coder"
STREAM, GROUP = a_stream(producers=["planner"]), a_group()


def groups(admin: redis.Redis) -> dict[str, str]:
    """The groups of the stream and where they are."""
    if not admin.exists(KEY):
        return {}
    return {g["name"]: g["last-delivered-id"] for g in admin.xinfo_groups(KEY)}


def may(admin: redis.Redis, user: str, *command: str) -> bool:
    if admin.acl_getuser(user) is None:
        return False
    return admin.execute_command("ACL", "DRYRUN", user, *command) == "OK"


async def whole(admin: redis.Redis) -> None:
    """Waits until stream, group, users and routes are there."""
    await until(lambda: "coder" in groups(admin))
    await until(lambda: may(admin, USER, "XREADGROUP", "GROUP", "coder", "c", "STREAMS", KEY, ">"))
    await until(lambda: may(admin, "agentstream.team.planner", "FCALL", "as1_add", "1", KEY))
    await until(lambda: set(admin.hkeys(ROUTES)) == {"coder", "planner"})


async def test_a_flushed_server_is_whole_again_and_the_loss_is_told(
    server: Server, admin: redis.Redis
) -> None:
    async with operator(server.url) as op:
        await op.put(STREAM, GROUP)
        admin.xadd(KEY, {"m": "{}"})
        await until(lambda: op.engine.view().groups[0].backlog == 1)
        admin.flushall()
        await whole(admin)
        assert groups(admin) == {"coder": "0-0"}
        await op.event(STREAM.key, ConditionReason.DATA_LOST)
        await op.event(STREAM.key, ConditionReason.STREAM_RECREATED)
        await op.event(GROUP.key, ConditionReason.DATA_LOST)
        await op.event(GROUP.key, ConditionReason.GROUP_RESTORED)
        view = await op.engine.summary()
        assert view.groups[0].account.lost == 1


async def test_a_loss_while_the_operator_was_away_is_told(server: Server, admin: redis.Redis) -> None:
    async with operator(server.url) as op:
        await op.put(STREAM, GROUP)
        admin.xadd(KEY, {"m": "{}"})
        await until(lambda: op.cluster.statuses[STREAM.key].length == 1)
        cluster = op.cluster
    admin.flushall()
    async with operator(server.url, STREAM, GROUP, cluster=cluster) as op:
        await whole(admin)
        await op.event(STREAM.key, ConditionReason.DATA_LOST)
        await op.event(GROUP.key, ConditionReason.GROUP_RESTORED)
        assert groups(admin) == {"coder": "0-0"}


async def test_a_destroyed_group_comes_back_at_its_checkpoint(server: Server, admin: redis.Redis) -> None:
    async with operator(server.url) as op:
        await op.put(STREAM, GROUP)
        first, second = admin.xadd(KEY, {"m": "1"}), admin.xadd(KEY, {"m": "2"})
        admin.xreadgroup("coder", "c", {KEY: ">"}, count=1)
        stats = KEYS.stats("coder")
        admin.fcall("as1_settle", 1, KEY, "coder", "c", stats, "", "", 0, "acked", first, 1)
        await until(lambda: admin.hget(KEYS.meta, "checkpoint:coder") == first)
        admin.xgroup_destroy(KEY, "coder")
        await until(lambda: groups(admin) == {"coder": first})
        await op.event(GROUP.key, ConditionReason.GROUP_RESTORED)
        assert ConditionReason.DATA_LOST not in op.cluster.reasons(GROUP.key)
        assert [entry for entry, _ in admin.xreadgroup("coder", "c", {KEY: ">"})[0][1]] == [second]


async def test_a_group_without_a_checkpoint_comes_back_at_the_beginning(
    server: Server, admin: redis.Redis
) -> None:
    async with operator(server.url) as op:
        await op.put(STREAM, GROUP)
        admin.xadd(KEY, {"m": "1"})
        admin.pipeline().delete(KEYS.meta).xgroup_destroy(KEY, "coder").execute()
        await until(lambda: groups(admin) == {"coder": "0-0"})
        await op.event(GROUP.key, ConditionReason.GROUP_RESTORED)


async def test_a_stream_that_was_deleted_is_made_again(server: Server, admin: redis.Redis) -> None:
    async with operator(server.url) as op:
        await op.put(STREAM, GROUP)
        admin.xadd(KEY, {"m": "{}"})
        await until(lambda: op.engine.view().streams[0].added == 1)
        await op.engine.idle()
        admin.delete(KEY)
        await op.event(STREAM.key, ConditionReason.DATA_LOST)
        await until(lambda: groups(admin) == {"coder": "0-0"})


async def test_a_lost_retry_stream_is_made_again(server: Server, admin: redis.Redis) -> None:
    async with operator(server.url) as op:
        await op.put(STREAM, GROUP)
        admin.delete(KEYS.retry("coder"))
        await until(lambda: admin.exists(KEYS.retry("coder")))


async def test_a_deleted_user_is_restored_with_its_password(server: Server, admin: redis.Redis) -> None:
    async with operator(server.url) as op:
        await op.put(STREAM, GROUP)
        secret = op.cluster.secrets["team", "coder"]
        admin.acl_deluser(USER)
        await op.event(GROUP.key, ConditionReason.CREDENTIALS_RESTORED)
        with redis.Redis(port=server.port, username=USER, password=secret.password) as login:
            assert login.ping()


async def test_a_user_with_more_rights_than_declared_loses_them(server: Server, admin: redis.Redis) -> None:
    async with operator(server.url) as op:
        await op.put(STREAM, GROUP)
        admin.execute_command("ACL", "SETUSER", USER, "+flushall")
        await until(lambda: not may(admin, USER, "FLUSHALL"))
        await op.event(GROUP.key, ConditionReason.CREDENTIALS_RESTORED)


async def test_a_lost_route_is_written_again(server: Server, admin: redis.Redis) -> None:
    async with operator(server.url) as op:
        await op.put(STREAM, GROUP)
        admin.delete(ROUTES)
        await until(lambda: set(admin.hkeys(ROUTES)) == {"coder", "planner"})


async def test_a_route_that_somebody_changed_is_written_again_and_each_change_is_told_of_once(
    server: Server, admin: redis.Redis
) -> None:
    signed = a_stream(producers=["planner"], signing={"policy": "Require"})
    async with operator(server.url) as op:
        await op.put(signed, GROUP)
        route = str(admin.hget(ROUTES, "coder"))
        for n in (1, 2):
            admin.hset(ROUTES, "coder", route.replace(',"signatures":"Require"', ""))
            await until(lambda: admin.hget(ROUTES, "coder") == route)
            await op.engine.idle()
            await until(lambda n=n: len(restored(op)) >= n)
        op.engine.check_all()
        await op.engine.idle()
    assert (
        restored(op)
        == ["restored the route of coder: it had been changed (tasks: signatures) on the server"] * 2
    )


def restored(op: Operator) -> list[str]:
    return [event.message for event in op.cluster.events if event.reason is ConditionReason.ROUTE_RESTORED]


async def test_no_change_of_a_resource_is_taken_for_one_by_somebody_else(server: Server) -> None:
    async with operator(server.url) as op:
        for generation, policy in enumerate(("Off", "Require", "Warn", "Off"), start=2):
            stream = a_stream(
                producers=["planner"], signing={"policy": policy}, meta={"generation": generation}
            )
            await op.put(stream, GROUP)
            await op.engine.idle()
    assert restored(op) == []


async def test_a_route_of_nobody_goes(server: Server, admin: redis.Redis) -> None:
    async with operator(server.url) as op:
        await op.put(STREAM, GROUP)
        admin.hset(ROUTES, "ghost", "{}")
        await until(lambda: not admin.hexists(ROUTES, "ghost"))


async def test_a_lost_secret_gets_a_new_password(server: Server, admin: redis.Redis) -> None:
    async with operator(server.url) as op:
        await op.put(STREAM, GROUP)
        old = op.cluster.secrets.pop(("team", "coder"))
        op.engine.check_all()
        await until(lambda: ("team", "coder") in op.cluster.secrets)
        new = op.cluster.secrets["team", "coder"]
        assert new.password != old.password
        await op.engine.idle()
        with redis.Redis(port=server.port, username=USER, password=new.password) as login:
            assert login.ping()


class Login:
    """A connection of an agent with a password, as somebody may have stolen it."""

    def __init__(self, server: Server, password: str) -> None:
        self._address = {"port": server.port, "username": USER, "password": password}
        self.connection = redis.Redis(**self._address, retry=None)
        self.connection.ping()

    def accepted(self) -> bool:
        """Whether the password lets anybody in."""
        try:
            with redis.Redis(**self._address) as login:
                return bool(login.ping())
        except redis.AuthenticationError:
            return False


def connected(admin: redis.Redis) -> set[str]:
    """The ids of the agent's connections."""
    return {client["id"] for client in admin.client_list() if client["user"] == USER}


async def test_a_password_that_leaked_ends_with_its_secret_and_so_do_its_connections(
    server: Server, admin: redis.Redis
) -> None:
    async with operator(server.url) as op:
        await op.put(STREAM, GROUP)
        stolen = Login(server, op.cluster.secrets["team", "coder"].password)
        assert len(connected(admin)) == 1
        op.cluster.secrets.pop(("team", "coder"))
        op.engine.check_all()
        await until(lambda: not connected(admin))
        assert not stolen.accepted()
        await op.event(GROUP.key, ConditionReason.CREDENTIALS_ROTATED)
        stolen.connection.close()


async def test_a_password_that_was_changed_is_valid_for_a_while_and_then_its_connections_end(
    server: Server, admin: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agents, "GRACE", 3.0)
    async with operator(server.url) as op:
        await op.put(STREAM, GROUP)
        known = op.cluster.secrets["team", "coder"]
        stolen, before = Login(server, known.password), connected(admin)
        op.cluster.secrets["team", "coder"] = replace(known, password="n" * 32)
        op.engine.check_all()
        await op.event(GROUP.key, ConditionReason.CREDENTIALS_ROTATED)
        fresh = Login(server, "n" * 32)
        assert stolen.accepted()
        assert connected(admin) > before
        await until(lambda: not connected(admin) & before)
        assert not stolen.accepted()
        assert fresh.accepted()
        assert op.cluster.secrets["team", "coder"].password == "n" * 32
        for login in (stolen, fresh):
            login.connection.close()


async def test_a_password_that_was_changed_while_nobody_looked_ends_at_once(
    server: Server, admin: redis.Redis
) -> None:
    async with operator(server.url) as op:
        await op.put(STREAM, GROUP)
        known = op.cluster.secrets["team", "coder"]
        stolen = Login(server, known.password)
    # a restart alone disconnects nobody
    async with operator(server.url, STREAM, GROUP, cluster=op.cluster) as op:
        await op.ready(GROUP.key)
        await op.engine.idle()
        assert connected(admin)
    op.cluster.secrets["team", "coder"] = replace(known, password="n" * 32)
    async with operator(server.url, STREAM, GROUP, cluster=op.cluster) as op:
        await until(lambda: not connected(admin))
        assert not stolen.accepted()
        stolen.connection.close()


async def test_a_secret_that_nobody_needs_goes_although_the_server_has_forgotten_its_user(
    server: Server, admin: redis.Redis
) -> None:
    async with operator(server.url) as op:
        await op.put(STREAM, GROUP)
        await until(lambda: ("team", "planner") in op.cluster.secrets)
    admin.acl_deluser("agentstream.team.planner")
    admin.delete(ROUTES)
    # nobody was there when the stream changed
    async with operator(server.url, a_stream(producers=["other"]), GROUP, cluster=op.cluster) as op:
        await until(lambda: set(op.cluster.secrets) == {("team", "coder"), ("team", "other")})


async def test_a_restart_without_users_and_data_is_healed(private_server: Server) -> None:
    async with operator(private_server.url) as op:
        await op.put(STREAM, GROUP)
        private_server.kill()
        await unready(op)
        for path in private_server.directory.rglob("*"):
            if path.is_file() and (path.suffix in {".aof", ".manifest"} or "aof" in path.name):
                path.unlink()
        (private_server.directory / "users.acl").write_text("")
        private_server.start()
        with private_server.admin() as admin:
            await whole(admin)
        await op.ready(STREAM.key)
        await op.ready(GROUP.key)
        assert ConditionReason.DATA_LOST not in op.cluster.reasons(STREAM.key), "nothing had been added"


async def unready(op: Operator) -> None:
    """Waits until everything says that the server is not reachable."""
    for key in (STREAM.key, GROUP.key):
        await until(
            lambda key=key: op.cluster.condition(key, ConditionType.BACKEND_REACHABLE).status == "False",
            timeout=5,
        )
        assert op.cluster.condition(key, ConditionType.READY).reason is ConditionReason.BACKEND_UNAVAILABLE
        assert op.cluster.condition(key, ConditionType.SYNCED).status == "True", "that is as it was last"


async def test_a_server_that_dies_is_noticed_and_so_is_its_return(private_server: Server) -> None:
    async with operator(private_server.url) as op:
        await op.put(STREAM, GROUP)
        private_server.kill()
        await unready(op)
        assert not op.engine.view().reachable
        private_server.start()
        await op.ready(STREAM.key)
        await op.ready(GROUP.key)
        assert ConditionReason.STREAM_RECREATED not in op.cluster.reasons(STREAM.key), (
            "it has an append-only file"
        )


async def test_what_is_declared_while_the_server_is_away_comes_true_later(private_server: Server) -> None:
    async with operator(private_server.url) as op:
        private_server.kill()
        await until(lambda: not op.engine.view().reachable)
        op.declare(STREAM, GROUP)
        await until(lambda: {STREAM.key, GROUP.key} <= op.cluster.statuses.keys())
        private_server.start()
        await op.ready(STREAM.key)
        await op.ready(GROUP.key)


async def test_a_silent_server_counts_as_gone(server: Server) -> None:
    silent = asyncio.Event()

    class Silent:
        def __init__(self, broker: object) -> None:
            self._broker = broker

        def __getattr__(self, name: str) -> object:
            return getattr(self._broker, name)

        async def server(self) -> ServerSeen:
            if silent.is_set():
                await asyncio.Event().wait()
            return await self._broker.server()  # type: ignore[attr-defined]

    async with operator(server.url, broker=Silent) as op:
        await op.put(STREAM, GROUP)
        silent.set()
        await unready(op)
        silent.clear()
        await op.ready(GROUP.key)


async def test_a_server_that_may_evict_streams_is_unhealthy(server: Server, admin: redis.Redis) -> None:
    async with operator(server.url) as op:
        await op.put(STREAM)
        admin.config_set("maxmemory-policy", "allkeys-lru")
        try:
            await op.event(STREAM.key, ConditionReason.EVICTION_POLICY_WRONG)
        finally:
            admin.config_set("maxmemory-policy", "noeviction")
        await until(
            lambda: op.cluster.condition(STREAM.key, ConditionType.RETENTION_HEALTHY).status == "True"
        )


async def test_consumers_stay_while_the_server_is_away(private_server: Server) -> None:
    async with operator(private_server.url) as op:
        await op.put(STREAM, a_group(template=TEMPLATE, replicas=2))
        await until(lambda: GROUP.key in op.cluster.workloads)
        private_server.kill()
        await unready(op)
        assert op.cluster.workloads[GROUP.key].replicas == 2


async def test_dead_letters_are_told_once(server: Server, admin: redis.Redis) -> None:
    async with operator(server.url) as op:
        await op.put(STREAM, GROUP)
        for number in (1, 2):
            admin.xadd(KEYS.dead_letters("coder"), {"m": "{}"})
            await until(lambda number=number: op.cluster.statuses[GROUP.key].dead_letters == number)
        assert op.cluster.reasons(GROUP.key).count(ConditionReason.DEAD_LETTERS) == 1


async def test_the_oldest_message_that_waits_is_told_and_no_more_once_it_is_settled(
    server: Server, admin: redis.Redis
) -> None:
    async with operator(server.url) as op:
        await op.put(STREAM, a_group(startFrom="Beginning"))
        added = int(admin.time()[0]) - 3600
        admin.xadd(KEY, {"m": "{}"}, id=f"{added * 1000}-1")
        await until(lambda: op.cluster.statuses[GROUP.key].oldest == datetime.fromtimestamp(added, UTC))
        admin.xreadgroup("coder", "c", {KEY: ">"})
        admin.xack(KEY, "coder", f"{added * 1000}-1")
        await until(lambda: op.cluster.statuses[GROUP.key].oldest is None)


async def test_a_full_stream_is_told(server: Server, admin: redis.Redis) -> None:
    async with operator(server.url) as op:
        await op.put(a_stream(retention={"maxLength": 2}), GROUP)
        for _ in range(2):
            admin.xadd(KEY, {"m": "{}"})
        await op.event(STREAM.key, ConditionReason.ADMISSION_CLOSED)


async def test_the_view_has_the_numbers_of_all(server: Server, admin: redis.Redis) -> None:
    async with operator(server.url) as op:
        await op.put(STREAM, GROUP)
        admin.xadd(KEY, {"m": "{}"})
        admin.xadd(KEY, {"m": "{}"})
        admin.xreadgroup("coder", "c", {KEY: ">"}, count=1)
        view = await op.engine.summary()
        (stream,), (group,) = view.streams, view.groups
        assert (stream.length, stream.added, stream.ready, stream.reason) == (
            2,
            2,
            True,
            ConditionReason.READY,
        )
        assert stream.rate >= 0
        assert (group.backlog, group.undelivered, group.pending, group.dead) == (2, 1, 1, 0)
        assert (group.delayed, group.replicas, group.running) == (0, None, None)
        assert group.account.sent == 2


async def test_the_view_of_what_is_not_there_yet_is_empty(private_server: Server) -> None:
    async with operator(private_server.url) as op:
        private_server.kill()
        await until(lambda: not op.engine.view().reachable)
        op.declare(STREAM, GROUP)
        view = op.engine.view()
        assert (view.streams[0].length, view.streams[0].reason) == (None, ConditionReason.RECONCILING)
        assert (view.groups[0].backlog, view.groups[0].ready) == (None, False)
