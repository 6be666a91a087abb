"""The function library loads once, and its number of undelivered entries is the true one."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest
import redis

from agentstream.protocol import library
from agentstream.transport.client import Client
from agentstream.transport.endpoint import Endpoint
from agentstream_operator.broker.broker import Broker
from agentstream_operator.broker.observe import Look, measure
from agentstream_operator.broker.server import BrokerClient
from agentstream_operator.plan.actions import CreateGroup, CreateStream, DestroyGroup
from agentstream_operator.plan.observed import StreamSeen
from support.entries import KEY as DAMAGED_KEY
from support.entries import fill, read, spec
from support.servers import Server

KEY = "{t.lag}"
GROUPS = ("a", "b", "c")
Id = tuple[int, int]


def number(entry: str) -> Id:
    ms, seq = entry.split("-")
    return int(ms), int(seq)


class Model:
    """A stream on the server, and what is known to be in it because this class put it there."""

    def __init__(self, admin: redis.Redis, broker: Broker, seed: int) -> None:
        self.admin, self.broker, self.random = admin, broker, random.Random(seed)
        self.entries: list[str] = []
        self.ever: list[str] = []
        self.last: dict[str, Id] = {}
        self.pending: dict[str, set[str]] = {}

    async def step(self) -> None:
        """Does one of the things that happen to streams."""
        steps = (self.add, self.add, self.add_many, self.read, self.read, self.ack, self.delete, self.trim)
        chosen = self.random.choice((*steps, self.create, self.create, self.destroy, self.set_id))
        result = chosen()
        if result is not None:
            await result

    def add(self, most: int = 20) -> None:
        with self.admin.pipeline(transaction=False) as batch:
            for _ in range(self.random.randint(1, most)):
                batch.xadd(KEY, {"m": "x"})
            added = batch.execute()
        self.entries += added
        self.ever += added

    def add_many(self) -> None:
        if len(self.entries) < 500:
            self.add(250)

    def read(self) -> None:
        if self.last:
            group = self.random.choice(sorted(self.last))
            reply = self.admin.xreadgroup(group, "c", {KEY: ">"}, count=self.random.choice((1, 7, 100)))
            for entry, _ in reply[0][1] if reply else ():
                self.pending[group].add(entry)
                self.last[group] = number(entry)

    def ack(self) -> None:
        for group, pending in self.pending.items():
            ids = self.random.sample(sorted(pending), len(pending) // 2)
            if ids:
                self.admin.xack(KEY, group, *ids)
                pending.difference_update(ids)

    def delete(self) -> None:
        doomed = self.random.sample(self.entries, min(len(self.entries), self.random.randint(1, 10)))
        if doomed:
            self.admin.xdel(KEY, *doomed)
            self.entries = [entry for entry in self.entries if entry not in set(doomed)]

    def trim(self) -> None:
        keep = self.random.randint(0, len(self.entries))
        self.admin.xtrim(KEY, maxlen=keep, approximate=self.random.random() < 0.5)
        self.entries = [entry for entry, _ in self.admin.xrange(KEY)]

    async def create(self) -> None:
        missing = sorted(set(GROUPS) - set(self.last))
        if missing:
            group = self.random.choice(missing)
            start = self.random.choice(("0", "$", *self.ever[-300:]))
            await self.broker.apply(CreateGroup(KEY, group, start))
            self.pending[group] = set()
            newest = number(self.ever[-1]) if self.ever else (0, 0)
            self.last[group] = {"0": (0, 0), "$": newest}.get(start) or number(start)

    async def destroy(self) -> None:
        if self.last:
            group = self.random.choice(sorted(self.last))
            await self.broker.apply(DestroyGroup(KEY, group))
            del self.last[group], self.pending[group]

    def set_id(self) -> None:
        if self.last and self.ever:
            group, entry = self.random.choice(sorted(self.last)), self.random.choice(self.ever)
            self.admin.xgroup_setid(KEY, group, entry)
            self.last[group] = number(entry)

    def undelivered(self, group: str) -> list[str]:
        return [entry for entry in self.entries if number(entry) > self.last[group]]


@pytest.fixture
async def connection(server: Server) -> AsyncIterator[BrokerClient]:
    wire = Client(lambda: Endpoint(server.url), name="test")
    yield BrokerClient(wire)
    await wire.close()


@pytest.mark.parametrize("seed", range(4))
async def test_backlog_agrees_with_the_truth(
    server: Server, broker: Broker, connection: BrokerClient, admin: redis.Redis, seed: int
) -> None:
    model = Model(admin, broker, seed)
    await broker.apply(CreateStream(KEY, {"name": "lag"}))
    for step in range(400):
        await model.step()
        looks = [Look(KEY, GROUPS)]
        trusting, counting = await asyncio.gather(
            measure(connection, looks, trusts_lag=(await broker.server()).trusts_lag),
            measure(connection, looks, trusts_lag=False),
        )
        for seen in (*trusting, *counting):
            assert isinstance(seen, StreamSeen)
            assert seen.length == len(model.entries)
            assert {name for name, group in seen.groups.items() if group.exists} == set(model.last)
            for name in model.last:
                group, truth = seen.groups[name], model.undelivered(name)
                where = f"step {step}, group {name}, {group}"
                assert group.pending == len(model.pending[name]), where
                assert group.oldest_undelivered == (truth[0] if truth else None), where
                if group.exact:
                    assert group.undelivered == len(truth), where
                else:
                    # it counts this far
                    assert len(truth) >= 1000 <= group.undelivered <= seen.length, where
    assert len(model.ever) > 1000


async def test_a_long_backlog_behind_a_deletion_is_an_estimate_that_says_so(
    server: Server, broker: Broker, admin: redis.Redis
) -> None:
    await broker.apply(CreateStream(KEY, {"name": "lag"}))
    await broker.apply(CreateGroup(KEY, "a", "0"))
    with admin.pipeline(transaction=False) as batch:
        for _ in range(3000):
            batch.xadd(KEY, {"m": "x"})
        ids = batch.execute()
    admin.xreadgroup("a", "c", {KEY: ">"}, count=10)
    admin.xdel(KEY, ids[1500])
    group = (await broker.observe(KEY, ("a",))).groups["a"]
    assert not group.exact
    assert 1000 <= group.undelivered <= 2999


@pytest.mark.parametrize("size", [200 << 10, 1 << 20])
async def test_large_entries_behind_a_deletion_are_an_estimate_that_says_so(
    server: Server, broker: Broker, stream: redis.Redis, size: int
) -> None:
    ids = [stream.xadd(DAMAGED_KEY, {"m": b"x" * size}) for _ in range(30)]
    stream.xreadgroup("g", "c", {DAMAGED_KEY: ">"}, count=10)
    stream.xdel(DAMAGED_KEY, ids[20])
    group = (await broker.observe(DAMAGED_KEY, ("g",))).groups["g"]
    assert (group.exact, group.oldest_undelivered) == (False, ids[10])
    assert 1 <= group.undelivered < 29


async def test_a_short_backlog_behind_a_deletion_is_counted(
    server: Server, broker: Broker, admin: redis.Redis
) -> None:
    await broker.apply(CreateStream(KEY, {"name": "lag"}))
    await broker.apply(CreateGroup(KEY, "a", "0"))
    ids = [admin.xadd(KEY, {"m": "x"}) for _ in range(10)]
    admin.xreadgroup("a", "c", {KEY: ">"}, count=2)
    admin.xdel(KEY, ids[5])
    group = (await broker.observe(KEY, ("a",))).groups["a"]
    assert (group.undelivered, group.exact, group.oldest_undelivered) == (7, True, ids[2])


async def test_a_new_group_at_the_end_has_a_backlog_of_what_is_added(
    server: Server, broker: Broker, admin: redis.Redis
) -> None:
    await broker.apply(CreateStream(KEY, {"name": "lag"}))
    for _ in range(5):
        admin.xadd(KEY, {"m": "x"})
    await broker.apply(CreateGroup(KEY, "a", "$"))
    admin.xadd(KEY, {"m": "x"})
    group = (await broker.observe(KEY, ("a",))).groups["a"]
    assert (group.undelivered, group.exact, group.read) == (1, True, 5)


async def test_a_group_at_the_last_possible_id_has_no_backlog(
    server: Server, broker: Broker, admin: redis.Redis
) -> None:
    last = "18446744073709551615-18446744073709551615"
    admin.xadd(KEY, {"m": "x"})
    admin.xgroup_create(KEY, "a", last)
    group = (await broker.observe(KEY, ())).groups["a"]
    assert (group.undelivered, group.last) == (0, last)


async def test_a_present_library_is_not_loaded_again(server: Server, wire: Client) -> None:
    assert not await library.load(wire.call)


async def test_a_missing_library_is_loaded(server: Server, wire: Client) -> None:
    await wire.call("FUNCTION", "FLUSH")
    assert await library.load(wire.call)
    assert await wire.call("FCALL_RO", "as1_revision", 0) == library.revision()


async def test_a_newer_revision_is_never_replaced_by_an_older_one(server: Server, wire: Client) -> None:
    newer = library.source().replace("local REVISION = ", "local REVISION = 9", 1)
    await wire.call("FUNCTION", "LOAD", "REPLACE", newer)
    assert not await library.load(wire.call)
    assert int(await wire.call("FCALL_RO", "as1_revision", 0)) > library.revision()


def lag(admin: redis.Redis, group: str = "g") -> int | None:
    """What the server itself says."""
    (found,) = (g for g in admin.xinfo_groups(DAMAGED_KEY) if g["name"] == group)
    return found["lag"]


def set_read(admin: redis.Redis, last: str, number: int) -> None:
    admin.execute_command("XGROUP", "SETID", DAMAGED_KEY, "g", last, "ENTRIESREAD", number)


async def test_the_lag_of_a_group_in_the_middle_becomes_known(
    server: Server, broker: Broker, stream: redis.Redis
) -> None:
    ids = fill(stream, 120)
    stream.xgroup_setid(DAMAGED_KEY, "g", ids[19])
    assert lag(stream) is None
    await broker.janitor(spec("g"))
    assert lag(stream) == 100
    assert len(read(stream, count=30)) == 30
    assert lag(stream) == 70


async def test_a_lag_of_which_everything_is_read_goes_away(
    server: Server, broker: Broker, stream: redis.Redis
) -> None:
    ids = fill(stream, 100)
    read(stream)
    set_read(stream, ids[-1], 60)
    assert lag(stream) == 40
    await broker.janitor(spec("g"))
    assert lag(stream) == 0


async def test_what_was_trimmed_unread_is_no_lag(server: Server, broker: Broker, stream: redis.Redis) -> None:
    fill(stream, 100)
    read(stream, count=10)
    stream.xtrim(DAMAGED_KEY, maxlen=50, approximate=False)
    await broker.janitor(spec("g"))
    assert lag(stream) == 50
    read(stream, count=5)
    assert lag(stream) == 45


async def test_what_is_delivered_stays_as_it_is(server: Server, broker: Broker, stream: redis.Redis) -> None:
    ids = fill(stream, 100)
    read(stream)
    set_read(stream, ids[-1], 60)
    before = stream.xpending_range(DAMAGED_KEY, "g", "-", "+", 100)
    await broker.janitor(spec("g"))
    after = stream.xpending_range(DAMAGED_KEY, "g", "-", "+", 100)
    assert [(p["message_id"], p["consumer"], p["times_delivered"]) for p in after] == [
        (p["message_id"], p["consumer"], p["times_delivered"]) for p in before
    ]
    (group,) = stream.xinfo_groups(DAMAGED_KEY)
    assert (group["last-delivered-id"], group["pending"]) == (ids[-1], 100)


@pytest.mark.parametrize("deleted", [50, -1], ids=["in between", "at the end"])
async def test_past_what_was_deleted_ahead_the_server_cannot_count_and_is_left_alone(
    server: Server, broker: Broker, stream: redis.Redis, deleted: int
) -> None:
    ids = fill(stream, 100)
    read(stream, count=20)
    stream.xdel(DAMAGED_KEY, ids[deleted])
    for _ in range(2):
        await broker.janitor(spec("g"))
        assert lag(stream) is None
    assert (await broker.observe(DAMAGED_KEY, ("g",))).groups["g"].undelivered == 79


async def test_a_group_that_nobody_declared_is_left_alone(
    server: Server, broker: Broker, stream: redis.Redis
) -> None:
    ids = fill(stream, 100)
    stream.xgroup_create(DAMAGED_KEY, "theirs", ids[19])
    stream.xreadgroup("theirs", "c", {DAMAGED_KEY: ">"}, count=1)
    before = lag(stream, "theirs")
    await broker.janitor(spec("g"))
    assert lag(stream, "theirs") == before


async def test_what_is_right_is_not_written_again(
    server: Server, broker: Broker, stream: redis.Redis
) -> None:
    ids = fill(stream, 120)
    stream.xgroup_setid(DAMAGED_KEY, "g", ids[19])
    await broker.janitor(spec("g"))
    stream.config_resetstat()
    await broker.janitor(spec("g"))
    assert not any("setid" in command for command in stream.info("commandstats"))
