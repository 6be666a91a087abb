"""Groups that sleep wake up by what comes, not by what is measured: here nothing is measured for an hour."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import msgspec
import pytest
import redis

from agentstream.errors import AccessDenied, ServerRefused
from agentstream.protocol.keys import StreamKeys
from agentstream_operator.resources.consumergroup import ConsumerGroup
from support.operator import FAST, Operator, operator
from support.resources import KEY, TEMPLATE, a_group, a_stream
from support.servers import Server
from support.waiting import until

KEYS = StreamKeys(KEY)
SLOW = replace(FAST, loops=replace(FAST.loops, measure=3600.0, measure_unscaled=3600.0, resync=3600.0))
STREAM = a_stream()
GROUP = a_group(template=TEMPLATE, autoscaling={})
ROUND = 0.1
DELAYED = b"\x93\xa3" + b"1-1\x01\x92\xa1m\xa2{}"


@pytest.fixture(autouse=True)
def short_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has just fallen asleep need not wait for a second to be waited for."""
    monkeypatch.setattr("agentstream_operator.reconcile.loops.wakeup._ROUND", ROUND)


async def asleep(op: Operator, admin: redis.Redis, *groups: ConsumerGroup, keys: int) -> None:
    """Waits until groups have no consumers, and one read waits for so many keys."""
    for group in groups:
        await has(op, group, 0)
    await until(lambda: waits_for(admin) == keys)


async def has(op: Operator, group: ConsumerGroup, count: int) -> None:
    """Waits until a group has so many consumers."""
    await until(lambda: replicas(op, group) == count)


def replicas(op: Operator, group: ConsumerGroup) -> int | None:
    """How many consumers a group has."""
    workload = op.cluster.workloads.get(group.key)
    return workload.replicas if workload is not None else None


def waits_for(admin: redis.Redis) -> int:
    """The number of keys that somebody waits for by XREAD just now."""
    reading = any(client["cmd"] == "xread" for client in admin.client_list())
    return admin.info("clients")["total_blocking_keys"] if reading else 0


async def test_a_message_wakes_a_group(server: Server, admin: redis.Redis) -> None:
    async with operator(server.url, options=SLOW) as op:
        await op.put(STREAM, GROUP)
        await asleep(op, admin, GROUP, keys=2)
        admin.xadd(KEY, {"m": "{}"})
        await has(op, GROUP, 1)
        await until(lambda: not waits_for(admin))


async def test_what_came_before_the_read_wakes_it_too(server: Server, admin: redis.Redis) -> None:
    class Late:
        """Reads only when a message has come since the last measurement."""

        def __init__(self, broker: Any) -> None:
            self._broker = broker

        def __getattr__(self, name: str) -> Any:
            return getattr(self._broker, name)

        async def arrivals(self, after: dict[str, str], seconds: float) -> Any:
            if after and not admin.xlen(KEY):
                admin.xadd(KEY, {"m": "{}"})
            return await self._broker.arrivals(after, seconds)

    async with operator(server.url, options=SLOW, broker=Late) as op:
        await op.put(STREAM, GROUP)
        await has(op, GROUP, 1)


async def test_a_retry_that_anybody_moves_wakes_it(server: Server, admin: redis.Redis) -> None:
    async with operator(server.url, options=SLOW) as op:
        await op.put(STREAM, GROUP)
        await asleep(op, admin, GROUP, keys=2)
        admin.xadd(KEYS.retry("coder"), {"m": "{}"})
        await has(op, GROUP, 1)


async def test_a_delayed_retry_wakes_it_when_it_is_due(server: Server, admin: redis.Redis) -> None:
    async with operator(server.url, options=replace(SLOW, loops=replace(SLOW.loops, janitor=3600.0))) as op:
        # known from the first look on
        due = int(admin.time()[0] * 1000) + 3000
        admin.zadd(KEYS.delay("coder"), {DELAYED: due})
        await op.put(STREAM, GROUP)
        await asleep(op, admin, GROUP, keys=2)
        await has(op, GROUP, 1)
        assert admin.time()[0] * 1000 + 1000 > due


async def test_each_of_many_groups_wakes_alone(server: Server, admin: redis.Redis) -> None:
    streams = [a_stream(f"s{n}") for n in range(50)]
    groups = [a_group(f"g{n}", stream=f"s{n}", template=TEMPLATE, autoscaling={}) for n in range(50)]
    async with operator(server.url, options=SLOW) as op:
        await op.put(*streams, *groups)
        await asleep(op, admin, *groups, keys=100)
        for number in (7, 49, 0):
            admin.xadd(f"{{team.s{number}}}", {"m": "{}"})
            await has(op, groups[number], 1)
        awake = [number for number, group in enumerate(groups) if replicas(op, group)]
        assert awake == [0, 7, 49]
        await asleep(op, admin, keys=94)


async def test_all_groups_of_a_stream_wake_whoever_is_addressed(server: Server, admin: redis.Redis) -> None:
    others = [a_group(name, template=TEMPLATE, autoscaling={}) for name in ("one", "two")]
    busy = a_group("busy", template=TEMPLATE, replicas=1)
    async with operator(server.url, options=SLOW) as op:
        await op.put(STREAM, *others, busy)
        await asleep(op, admin, *others, keys=3)
        admin.xadd(KEY, {"m": '{"to":"nobody"}'})
        for group in others:
            await has(op, group, 1)


async def test_a_message_for_a_group_without_consumers_of_its_own_wakes_those_of_its_agent(
    server: Server, admin: redis.Redis
) -> None:
    host = a_group("host", agent="coder", template=TEMPLATE, autoscaling={})
    guest = a_group("guest", agent="coder", stream="more")
    async with operator(server.url, options=SLOW) as op:
        await op.put(STREAM, a_stream("more"), host, guest)
        await asleep(op, admin, host, keys=4)
        admin.xadd("{team.more}", {"m": "{}"})
        await has(op, host, 1)


async def test_nobody_reads_for_a_group_that_is_another_resources(server: Server, admin: redis.Redis) -> None:
    owner = a_group("owner", stream="more", age=60)
    rival = a_group("rival", stream="more", group="owner", agent="coder")
    async with operator(server.url, options=SLOW) as op:
        await op.put(STREAM, a_stream("more"), owner, GROUP)
        op.declare(rival)
        await until(lambda: rival.key in op.cluster.statuses)
        await asleep(op, admin, GROUP, keys=2)


@pytest.mark.parametrize(
    "group",
    [
        a_group(template=TEMPLATE, autoscaling={}, suspend=True),
        a_group(template=TEMPLATE, replicas=0),
        a_group(),
        a_group(template=TEMPLATE, autoscaling={}, stream="missing"),
        a_group(deploymentRef={"name": "missing"}, autoscaling={}),
    ],
    ids=["suspended", "not scaled", "without consumers", "without its stream", "without its Deployment"],
)
async def test_nobody_reads_for_a_group_that_no_message_wakes(
    server: Server, admin: redis.Redis, group: ConsumerGroup
) -> None:
    other = a_group("other", template=TEMPLATE, autoscaling={})
    async with operator(server.url, options=SLOW) as op:
        op.declare(group)
        await until(lambda: group.key in op.cluster.statuses)
        await op.put(STREAM, other)
        await asleep(op, admin, other, keys=2)


async def test_a_group_that_is_gone_is_woken_no_more(server: Server, admin: redis.Redis) -> None:
    other = a_group("other", template=TEMPLATE, autoscaling={})
    async with operator(server.url, options=SLOW) as op:
        await op.put(STREAM, GROUP, other)
        await asleep(op, admin, GROUP, other, keys=3)
        await op.delete(GROUP)
        await asleep(op, admin, other, keys=2)
        admin.xadd(KEY, {"m": "{}"})
        await has(op, other, 1)
        assert replicas(op, GROUP) is None


async def test_after_the_server_was_away_messages_wake_again(private_server: Server) -> None:
    async with operator(private_server.url, options=replace(SLOW, server_timeout=1.0)) as op:
        await op.put(STREAM, GROUP)
        with private_server.admin() as admin:
            await asleep(op, admin, GROUP, keys=2)
            private_server.kill()
            # the read under way breaks: nobody has to look at his clock for that
            await until(lambda: not op.engine.view().reachable)
            private_server.start()
            await op.ready(GROUP.key)
            await asleep(op, admin, GROUP, keys=2)
            admin.xadd(KEY, {"m": "{}"})
            await has(op, GROUP, 1)


class Failing:
    """A broker whose reads fail, or whose looks do, as long as there is an error.

    Attributes:
        read: what a read fails with.
        look: what a look fails with.
        reads: how many were asked for.
    """

    def __init__(self) -> None:
        self.read: Exception | None = None
        self.look: Exception | None = None
        self.reads = 0

    def around(self, broker: Any) -> Failing:
        self._broker = broker
        return self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._broker, name)

    async def arrivals(self, *given: Any) -> Any:
        self.reads += 1
        if self.read is not None:
            raise self.read
        return await self._broker.arrivals(*given)

    async def observe(self, *given: Any) -> Any:
        if self.look is not None:
            raise self.look
        return await self._broker.observe(*given)


@pytest.mark.parametrize(
    ("error", "level"),
    [(AccessDenied("no xread"), logging.WARNING), (ServerRefused("WRONGTYPE"), logging.INFO)],
    ids=["no right", "no stream"],
)
async def test_a_read_that_is_refused_is_tried_again_and_told_of_once(
    server: Server, admin: redis.Redis, caplog: pytest.LogCaptureFixture, error: Exception, level: int
) -> None:
    broker = Failing()
    broker.read = error
    with caplog.at_level(logging.INFO, logger="agentstream_operator"):
        async with operator(server.url, options=SLOW, broker=broker.around) as op:
            await op.put(STREAM, GROUP)
            await until(lambda: broker.reads > 3)
            reported = [r.levelno for r in caplog.records if "scale-up from zero waits" in r.message]
            assert reported == [level]
            broker.read = None
            admin.xadd(KEY, {"m": "{}"})
            await has(op, GROUP, 1)


async def test_a_stream_that_cannot_be_measured_leaves_the_others_to_wake(
    server: Server, admin: redis.Redis
) -> None:
    broker = Failing()
    async with operator(server.url, options=SLOW, broker=broker.around) as op:
        await op.put(STREAM, GROUP)
        await asleep(op, admin, GROUP, keys=2)
        broker.look = ServerRefused("busy")
        admin.xadd(KEY, {"m": "{}"})
        await until(lambda: broker.reads > 1)
        assert replicas(op, GROUP) == 0
        broker.look = None
        await has(op, GROUP, 1)


async def test_a_retry_that_changes_nothing_is_not_read_again_and_again(
    server: Server, admin: redis.Redis
) -> None:
    class Hiding(Failing):
        """Measures as if whatever is on the retry stream had been settled meanwhile."""

        measured = 0

        async def observe(self, *given: Any) -> Any:
            seen = await self._broker.observe(*given)
            self.measured += 1
            groups = {
                name: msgspec.structs.replace(group, retry_length=0, retry_pending=0)
                for name, group in seen.groups.items()
            }
            return msgspec.structs.replace(seen, groups=groups)

    broker = Hiding()
    async with operator(server.url, options=SLOW, broker=broker.around) as op:
        await op.put(STREAM, GROUP)
        await asleep(op, admin, GROUP, keys=2)
        measured = broker.measured
        admin.xadd(KEYS.retry("coder"), {"m": "{}"})
        await until(lambda: broker.measured > measured)
        reads = broker.reads
        await until(lambda: broker.reads > reads + 3)
        assert broker.measured == measured + 1
