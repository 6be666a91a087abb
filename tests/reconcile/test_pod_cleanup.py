"""What consumers that are gone held is free at once, and their names vanish once they hold nothing."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
import redis

from agentstream.agent import Agent
from agentstream.errors import ServerRefused
from agentstream.identity.settings import Settings
from agentstream.protocol.commands import GroupCalls
from agentstream.protocol.keys import StreamKeys
from agentstream.protocol.routes import Consumes
from agentstream.transport.endpoint import Endpoint
from agentstream_operator.cluster.port import Pods
from agentstream_operator.plan.observed import Gone
from agentstream_operator.reconcile.loops import pod_cleanup as departures
from agentstream_operator.resources.consumergroup import ConsumerGroup
from agentstream_operator.resources.meta import ResourceKey
from support.cluster import MemoryCluster
from support.operator import Operator, operator
from support.resources import KEY, TEMPLATE, a_group, a_stream
from support.servers import Server
from support.topology import following
from support.waiting import until

KEYS = StreamKeys(KEY)
STREAM = a_stream(producers=["planner"])
GROUP = a_group(template=TEMPLATE, startFrom="Beginning", delivery={"lease": "1h"})
LEASE = 3_600_000
GONE, ALIVE = "coder-consumer-5f-gone", "coder-consumer-5f-live"


def consumers(admin: redis.Redis, key: str = KEY, group: str = "coder") -> set[str]:
    """The names of a group's consumers."""
    return {consumer["name"] for consumer in admin.xinfo_consumers(key, group)}


def take(admin: redis.Redis, pod: str, count: int = 1, key: str = KEY, group: str = "coder") -> list[str]:
    """New entries, taken by the first process of a pod."""
    for _ in range(count):
        admin.xadd(key, {"m": "{}"})
    reply: Any = admin.xreadgroup(group, f"{pod}.1", {key: ">"}, count=count)
    return [entry for entry, _ in reply[0][1]]


def seen(admin: redis.Redis, pod: str, key: str = KEY, group: str = "coder") -> None:
    """A process of the pod has asked for entries once, and got none."""
    admin.xgroup_createconsumer(key, group, f"{pod}.1")


def claim(admin: redis.Redis, key: str = KEY, group: str = "coder") -> list[str]:
    """What another consumer may take over because its lease is over."""
    reply: Any = admin.xautoclaim(key, group, "other.1", LEASE, count=100)
    return [entry for entry, _ in reply[1]]


async def test_what_a_pod_held_may_be_taken_over_at_once(server: Server, admin: redis.Redis) -> None:
    async with operator(server.url) as op:
        await op.put(STREAM, GROUP)
        held = take(admin, GONE, 3)
        assert claim(admin) == []
        await op.engine.pod_gone(GROUP.key, Gone(GONE))
        assert claim(admin) == held


async def test_what_a_pod_held_of_retries_may_be_taken_over_too(server: Server, admin: redis.Redis) -> None:
    async with operator(server.url) as op:
        await op.put(STREAM, GROUP)
        retry = KEYS.retry("coder")
        held = take(admin, GONE, 2, key=retry)
        await op.engine.pod_gone(GROUP.key, Gone(GONE))
        assert claim(admin, retry) == held


async def test_another_process_gets_the_message_although_its_lease_is_long(
    server: Server, admin: redis.Redis
) -> None:
    async with operator(server.url) as op:
        await op.put(STREAM, GROUP)
        settings = {"namespace": "team", "source": Endpoint(server.url)}
        async with Agent.connect(Settings(agent="planner", pod="planner", **settings)) as planner:
            await planner.send_message(to="coder", type="task_request", payload={"n": 1})
        admin.xreadgroup("coder", f"{GONE}.1", {KEY: ">"})
        async with Agent.connect(Settings(agent="coder", pod=ALIVE, **settings)) as other:
            await op.engine.pod_gone(GROUP.key, Gone(GONE))
            delivery = await following(other.stream_consume("tasks"))
            async with delivery:
                assert delivery.message.payload == {"n": 1}


async def test_consumers_that_live_are_told_at_once(
    server: Server, admin: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    # by themselves they would not look
    monkeypatch.setattr("agentstream.consuming.fetch._SWEEP_INTERVAL", LEASE)
    async with operator(server.url) as op:
        await op.put(STREAM, GROUP)
        settings = {"namespace": "team", "source": Endpoint(server.url)}
        async with Agent.connect(Settings(agent="planner", pod="planner", **settings)) as planner:
            await planner.send_message(to="coder", type="task_request", payload={"n": 1})
        admin.xreadgroup("coder", f"{GONE}.1", {KEY: ">"})
        async with Agent.connect(Settings(agent="coder", pod=ALIVE, **settings)) as other:
            asking = asyncio.create_task(following(other.stream_consume("tasks")))
            await until(lambda: any("push" in name for name in server.connections()))
            await until(lambda: any(client["cmd"] == "xreadgroup" for client in admin.client_list()))
            await op.engine.pod_gone(GROUP.key, Gone(GONE))
            assert await (await asking).ack()


async def test_what_a_deleted_pod_takes_while_it_still_runs_is_freed_too(
    server: Server, admin: redis.Redis
) -> None:
    async with operator(server.url) as op:
        await op.put(STREAM, GROUP)
        await op.engine.pod_gone(GROUP.key, Gone(GONE), for_good=True)
        (held,) = take(admin, GONE)
        await until(lambda: claim(admin) == [held])


async def test_who_is_leaving_for_good_gets_nothing_that_others_held(
    server: Server, admin: redis.Redis
) -> None:
    other = "coder-consumer-5f-gone2"
    async with operator(server.url) as op:
        await op.put(STREAM, GROUP)
        held = [*take(admin, GONE), *take(admin, other)]
        for pod in (GONE, other):
            await op.engine.pod_gone(GROUP.key, Gone(pod), for_good=True)
        policy = Consumes("tasks", KEY, group="coder")

        def claimed(pod: str) -> list[str]:
            command = GroupCalls(policy, f"{pod}.1").sweep(LEASE, 0, 10, now=True)
            return [entry for entry, *_ in admin.execute_command(*command)[1]]

        assert (claimed(GONE), claimed(other)) == ([], [])
        assert claimed(ALIVE) == held


async def test_what_pods_held_that_are_deleted_one_after_the_other_is_freed_together(
    server: Server, admin: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(departures, "_TOGETHER", LEASE)
    monkeypatch.setattr(departures, "_NO_LONGER", LEASE)
    other = "coder-consumer-5f-gone2"
    async with operator(server.url) as op:
        await op.put(STREAM, GROUP)
        held = [*take(admin, GONE), *take(admin, other)]
        first = asyncio.create_task(op.engine.pod_gone(GROUP.key, Gone(GONE), for_good=True))
        await until(lambda: op.engine._pod_cleanup._deleted)
        assert claim(admin) == []
        # the next one is the last
        monkeypatch.setattr(departures, "_TOGETHER", 0)
        await op.engine.pod_gone(GROUP.key, Gone(other), for_good=True)
        await first
        assert claim(admin) == held


async def test_what_a_deleted_pod_held_does_not_wait_for_ever_for_others_to_be_deleted(
    server: Server, admin: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(departures, "_TOGETHER", LEASE)
    async with operator(server.url) as op:
        await op.put(STREAM, GROUP)
        held = take(admin, GONE)
        await op.engine.pod_gone(GROUP.key, Gone(GONE), for_good=True)
        assert claim(admin) == held


async def test_of_pods_that_are_gone_for_good_the_last_hundred_are_remembered(
    server: Server, admin: redis.Redis
) -> None:
    async with operator(server.url) as op:
        await op.put(STREAM, GROUP)
        pods = [f"coder-consumer-7568567c9-{n:05}" for n in range(300)]
        for pod in (*pods, *pods[-10:]):
            await op.broker.release_pod(KEY, "coder", Gone(pod), for_good=True)
        remembered = (admin.hget(KEYS.stats("coder"), "gone") or "").split()
        assert len(remembered) > 100
        assert remembered == [f"{pod}." for pod in pods[-len(remembered) :]]
        assert "gone" not in (await op.broker.observe(KEY, ["coder"])).groups["coder"].stats


async def test_what_a_deleted_pod_renews_again_and_again_is_freed_as_often(
    server: Server, admin: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    # long enough for a slow machine; ever longer waits alone would take minutes for as many times
    monkeypatch.setattr(departures, "_LONGEST_INTERVAL", 10_000)

    async def is_free() -> bool:
        return admin.xpending_range(KEY, "coder", "-", "+", 1)[0]["time_since_delivered"] > LEASE

    async with operator(server.url) as op:
        await op.put(STREAM, GROUP)
        (held,) = take(admin, GONE)
        await op.engine.pod_gone(GROUP.key, Gone(GONE), for_good=True)
        for _ in range(20):
            admin.xclaim(KEY, "coder", f"{GONE}.1", 0, [held], idle=0, justid=True)
            await until(is_free)


async def test_the_next_process_of_a_pod_that_is_there_keeps_what_it_takes(
    server: Server, admin: redis.Redis
) -> None:
    async with operator(server.url) as op:
        await op.put(STREAM, GROUP)
        await op.engine.pod_gone(GROUP.key, Gone(GONE))
        (held,) = take(admin, GONE)
        # a pod that was deleted meanwhile would have been freed again before this one
        take(admin, ALIVE)
        await op.engine.pod_gone(GROUP.key, Gone(ALIVE), for_good=True)
        (late,) = take(admin, ALIVE)
        await until(lambda: late in claim(admin))
        assert held not in claim(admin)


async def test_of_a_pod_that_lives_on_only_the_process_that_ended_is_freed_and_forgotten(
    server: Server, admin: redis.Redis
) -> None:
    async with operator(server.url) as op:
        await op.put(STREAM, GROUP)
        old = take(admin, GONE, 2)
        admin.xadd(KEY, {"m": "{}"})
        # whoever was started again began at 10 ** 6
        admin.xreadgroup("coder", f"{GONE}.lflt", {KEY: ">"})
        admin.xgroup_createconsumer(KEY, "coder", f"{GONE}.2")
        await op.engine.pod_gone(GROUP.key, Gone(GONE, 1_000_000))
        assert consumers(admin) == {f"{GONE}.1", f"{GONE}.lflt"}
        assert claim(admin) == old
        # and nobody looks for it any more although the pod has a consumer
        await until(lambda: consumers(admin) == {f"{GONE}.lflt", "other.1"})
        await until(lambda: not op.engine._pod_cleanup._holding)


async def test_other_pods_keep_what_they_have(server: Server, admin: redis.Redis) -> None:
    async with operator(server.url) as op:
        await op.put(STREAM, GROUP)
        for pod in (ALIVE, f"{GONE}-2"):
            take(admin, pod)
        held = take(admin, GONE)
        await op.engine.pod_gone(GROUP.key, Gone(GONE))
        assert claim(admin) == held
        assert consumers(admin) >= {f"{ALIVE}.1", f"{GONE}-2.1"}


async def test_every_group_of_the_agent_is_freed(server: Server, admin: redis.Redis) -> None:
    host = a_group("host", agent="coder", template=TEMPLATE, startFrom="Beginning", delivery={"lease": "1h"})
    guest = a_group("guest", agent="coder", stream="more", startFrom="Beginning", delivery={"lease": "1h"})
    other = a_group("other", stream="more", startFrom="Beginning", delivery={"lease": "1h"})
    async with operator(server.url) as op:
        await op.put(STREAM, a_stream("more"), host, guest, other)
        more = "{team.more}"
        held = [take(admin, GONE, 1, KEY, "host"), take(admin, GONE, 1, more, "guest")]
        take(admin, GONE, 1, more, "other")
        await op.engine.pod_gone(host.key, Gone(GONE))
        assert [claim(admin, KEY, "host"), claim(admin, more, "guest")] == held
        assert claim(admin, more, "other") == []


async def test_a_group_whose_stream_is_not_declared_is_passed_over(
    server: Server, admin: redis.Redis
) -> None:
    lost = a_group("lost", agent="coder", stream="missing")
    async with operator(server.url) as op:
        await op.put(STREAM, GROUP)
        op.declare(lost)
        held = take(admin, GONE)
        await op.engine.pod_gone(GROUP.key, Gone(GONE))
        assert claim(admin) == held


async def test_a_pod_of_a_group_that_is_not_known_is_nobodys_business(
    server: Server, admin: redis.Redis
) -> None:
    async with operator(server.url) as op:
        await op.put(STREAM, GROUP)
        take(admin, GONE)
        await op.engine.pod_gone(ResourceKey("ConsumerGroup", "team", "ghost"), Gone(GONE))
        assert claim(admin) == []


async def test_without_the_server_leases_end_by_themselves(
    private_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    async with operator(private_server.url) as op:
        await op.put(STREAM, GROUP)
        private_server.kill()
        with caplog.at_level(logging.INFO):
            await op.engine.pod_gone(GROUP.key, Gone(GONE))
        assert f"could not release the messages of {GONE}" in caplog.text


async def test_the_names_of_a_pod_that_held_nothing_are_gone_at_once(
    server: Server, admin: redis.Redis
) -> None:
    async with operator(server.url) as op:
        await op.put(STREAM, GROUP)
        for name in (f"{GONE}.1", f"{GONE}.2", f"{ALIVE}.1"):
            admin.xgroup_createconsumer(KEY, "coder", name)
        await op.engine.pod_gone(GROUP.key, Gone(GONE))
        assert consumers(admin) == {f"{ALIVE}.1"}


async def test_a_name_that_holds_entries_goes_once_others_have_taken_them(
    server: Server, admin: redis.Redis
) -> None:
    async with operator(server.url) as op:
        await op.put(STREAM, GROUP)
        held = take(admin, GONE, 2)
        await op.engine.pod_gone(GROUP.key, Gone(GONE))
        assert f"{GONE}.1" in consumers(admin)
        assert claim(admin) == held
        await until(lambda: consumers(admin) == {"other.1"})
        # and nobody looks for it any more
        await until(lambda: not op.engine._pod_cleanup._holding)
        assert admin.xpending(KEY, "coder")["pending"] == 2


async def test_a_name_that_holds_entries_is_not_removed_with_them(server: Server, admin: redis.Redis) -> None:
    async with operator(server.url) as op:
        await op.put(STREAM, GROUP)
        take(admin, GONE)
        await op.engine.pod_gone(GROUP.key, Gone(GONE))
        await op.engine._pod_cleanup._remove_unnoticed()
        assert f"{GONE}.1" in consumers(admin)
        assert admin.xpending(KEY, "coder")["pending"] == 1


async def test_nobody_looks_for_names_of_a_group_that_is_gone(server: Server, admin: redis.Redis) -> None:
    async with operator(server.url) as op:
        await op.put(STREAM, GROUP)
        take(admin, GONE)
        await op.engine.pod_gone(GROUP.key, Gone(GONE))
        op.engine.remove(GROUP.key)
        await until(lambda: not op.engine._pod_cleanup._holding)


class Refusing:
    """A broker that refuses to remove consumers.

    Attributes:
        refused: how often it did.
    """

    def __init__(self) -> None:
        self.refused = 0
        self.refuses = True

    def around(self, broker: Any) -> Refusing:
        self._broker = broker
        return self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._broker, name)

    async def remove_consumers(self, *given: Any) -> Any:
        if self.refuses:
            self.refused += 1
            raise ServerRefused("no")
        return await self._broker.remove_consumers(*given)


async def test_a_refusal_does_not_end_the_search(
    server: Server, admin: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    broker = Refusing()
    broker.refuses = False
    async with operator(server.url, broker=broker.around) as op:
        await op.put(STREAM, GROUP)
        take(admin, GONE)
        await op.engine.pod_gone(GROUP.key, Gone(GONE))
        broker.refuses = True
        with caplog.at_level(logging.INFO):
            await until(lambda: broker.refused > 1)
        assert "cannot clean up after pods ConsumerGroup team/coder" in caplog.text
        broker.refuses = False
        claim(admin)
        await until(lambda: f"{GONE}.1" not in consumers(admin))


async def test_while_the_server_is_away_nobody_looks(private_server: Server) -> None:
    async with operator(private_server.url) as op:
        await op.put(STREAM, GROUP)
        with private_server.admin() as admin:
            take(admin, GONE)
            await op.engine.pod_gone(GROUP.key, Gone(GONE))
            private_server.kill()
            await until(lambda: op.engine.health.outage is not None)
            private_server.start()
            claim(admin)
            await until(lambda: f"{GONE}.1" not in consumers(admin))


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has not asked for anything just now counts as silent."""
    monkeypatch.setattr(departures, "_LEASES", 0)


def pods_of(group: ConsumerGroup = GROUP, *alive: str) -> MemoryCluster:
    """A cluster with these pods of a group."""
    return MemoryCluster(running={group.key: Pods(f"{group.metadata.name}-consumer-", frozenset(alive))})


async def tidied(op: Operator, admin: redis.Redis, key: str = KEY, group: str = "coder") -> set[str]:
    """The consumers that are left of those that did not ask for anything for a moment."""

    def idle() -> bool:
        return all(consumer["idle"] > 0 for consumer in admin.xinfo_consumers(key, group))

    await until(idle)
    await op.engine._pod_cleanup._remove_unnoticed()
    return consumers(admin, key, group)


async def test_names_of_pods_that_are_gone_vanish(silent: None, server: Server, admin: redis.Redis) -> None:
    async with operator(server.url, cluster=pods_of()) as op:
        await op.put(STREAM, GROUP)
        seen(admin, GONE)
        # it is looked for once in a resync
        await until(lambda: consumers(admin) == set())


async def test_names_of_pods_that_are_there_stay(silent: None, server: Server, admin: redis.Redis) -> None:
    async with operator(server.url, cluster=pods_of(GROUP, ALIVE)) as op:
        await op.put(STREAM, GROUP)
        seen(admin, GONE)
        seen(admin, ALIVE)
        assert await tidied(op, admin) == {f"{ALIVE}.1"}


async def test_names_that_are_no_pods_of_the_group_stay(
    silent: None, server: Server, admin: redis.Redis
) -> None:
    others = {"laptop", "other-consumer-5f-x", "coder-consumer-x-consumer-5f-x", "coder-consumer-laptop"}
    async with operator(server.url, cluster=pods_of()) as op:
        await op.put(STREAM, GROUP)
        for pod in (GONE, *others):
            seen(admin, pod)
        assert await tidied(op, admin) == {f"{pod}.1" for pod in others}


async def test_who_was_heard_of_within_three_leases_stays(server: Server, admin: redis.Redis) -> None:
    async with operator(server.url, cluster=pods_of()) as op:
        await op.put(STREAM, GROUP)
        seen(admin, GONE)
        assert await tidied(op, admin) == {f"{GONE}.1"}


async def test_three_leases_are_those_of_the_group(
    server: Server, admin: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(departures, "_LEASES", 0.001)
    hasty = a_group("hasty", template=TEMPLATE, delivery={"lease": "2s"})
    cluster = pods_of()
    cluster.running[hasty.key] = Pods("hasty-consumer-", frozenset())
    async with operator(server.url, cluster=cluster) as op:
        await op.put(STREAM, GROUP, hasty)
        seen(admin, GONE)
        seen(admin, "hasty-consumer-5f-gone", group="hasty")
        await until(lambda: consumers(admin, group="hasty") == set())
        assert consumers(admin) == {f"{GONE}.1"}


async def test_who_holds_entries_stays_until_others_have_taken_them(
    silent: None, server: Server, admin: redis.Redis
) -> None:
    async with operator(server.url, cluster=pods_of()) as op:
        await op.put(STREAM, GROUP)
        (held,) = take(admin, GONE)
        assert await tidied(op, admin) == {f"{GONE}.1"}
        admin.xack(KEY, "coder", held)
        await until(lambda: consumers(admin) == set())


async def test_names_vanish_from_every_group_of_the_agent(
    silent: None, server: Server, admin: redis.Redis
) -> None:
    guest = a_group("guest", agent="coder", stream="more")
    async with operator(server.url, cluster=pods_of()) as op:
        await op.put(STREAM, a_stream("more"), GROUP, guest)
        seen(admin, GONE, "{team.more}", "guest")
        assert await tidied(op, admin, "{team.more}", "guest") == set()


@pytest.mark.parametrize(
    "group", [a_group(), a_group(template=TEMPLATE)], ids=["that runs elsewhere", "whose pods nobody knows"]
)
async def test_names_of_a_group_stay(
    silent: None, server: Server, admin: redis.Redis, group: ConsumerGroup
) -> None:
    cluster = pods_of() if group.spec.template is None else MemoryCluster()
    async with operator(server.url, cluster=cluster) as op:
        await op.put(STREAM, group)
        seen(admin, GONE)
        assert await tidied(op, admin) == {f"{GONE}.1"}
