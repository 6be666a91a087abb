"""What pods hold is said before there are fewer, and in mode HPA all the time."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
import redis

from agentstream.errors import ServerRefused
from agentstream.protocol.keys import StreamKeys
from agentstream_operator.cluster.port import ClusterRefused, ClusterUnavailable, WorkloadSeen
from agentstream_operator.resources.consumergroup import ConsumerGroup
from support.cluster import MemoryCluster
from support.operator import FAST, Operator, operator
from support.resources import KEY, TEMPLATE, a_group, a_stream
from support.servers import Server
from support.waiting import until

STREAM = a_stream()


def of(mode: str = "HPA", generation: int = 1, **scaling: object) -> ConsumerGroup:
    """A group that is scaled, with one pod at least for each three messages."""
    scaling = {"mode": mode, "targetBacklog": 3, "maxReplicas": 8, "scaleDownAfter": "1h", **scaling}
    return a_group(
        template=TEMPLATE, startFrom="Beginning", autoscaling=scaling, meta={"generation": generation}
    )


GROUP = of()


def take(admin: redis.Redis, consumer: str, count: int) -> list[str]:
    """Has a consumer hold so many new entries. Returns their ids."""
    for _ in range(count):
        admin.xadd(KEY, {"m": "{}"})
    (_, entries), *_ = admin.xreadgroup("coder", consumer, {KEY: ">"}, count=count)
    return [entry for entry, _ in entries]


async def awake(op: Operator, group: ConsumerGroup) -> None:
    """Waits until the operator has nothing more to say about the number of pods."""
    await until(lambda: group.key in op.cluster.workloads and op.cluster.workloads[group.key].replicas > 0)


async def scaled(op: Operator, replicas: int, group: ConsumerGroup = GROUP) -> None:
    """Scales as an autoscaler does after the operator has woken the group up; waits until that is known."""
    await awake(op, group)
    op.cluster.workloads[group.key] = WorkloadSeen(replicas, replicas)
    await until(lambda: op.cluster.statuses[group.key].desired_replicas == replicas)


async def rounds(op: Operator, count: int = 3) -> None:
    """Waits for so many looks at what pods hold: until as many pulses have passed as they take."""
    passed = asyncio.get_running_loop().time() + count * FAST.loops.deletion_costs
    measured = op.engine._state.memory.streams[STREAM.key]
    await until(lambda: measured.seen_at > passed)


def said(op: Operator) -> dict[str, int] | None:
    return op.cluster.ranked.get(GROUP.key)


async def test_it_is_kept_up_to_date_while_the_autoscaler_may_have_fewer(
    server: Server, admin: redis.Redis
) -> None:
    async with operator(server.url) as op:
        await op.put(STREAM, GROUP)
        await until(lambda: op.cluster.autoscalers)
        take(admin, "pod-a.1", 1)
        held = take(admin, "pod-b.1", 4)
        await scaled(op, 5)
        await until(lambda: said(op) == {"pod-a": 1, "pod-b": 4})
        admin.xack(KEY, "coder", *held)
        await until(lambda: said(op) == {"pod-a": 1})


async def test_nothing_is_asked_while_nothing_changes(server: Server, admin: redis.Redis) -> None:
    async with operator(server.url) as op:
        await op.put(STREAM, GROUP)
        take(admin, "pod-a.1", 1)
        await scaled(op, 3)
        await until(lambda: said(op) == {"pod-a": 1})
        await rounds(op)
        before = op.cluster.writes["set_deletion_costs"]
        await rounds(op)
        assert op.cluster.writes["set_deletion_costs"] == before


@pytest.mark.parametrize(
    ("group", "replicas"),
    [(of("Direct"), 2), (of(), 1), (of(), 2), (of(minReplicas=5), 5)],
    ids=["mode Direct", "one", "all are needed", "minReplicas"],
)
async def test_nothing_is_said_where_the_autoscaler_lowers_nothing(
    server: Server, admin: redis.Redis, group: ConsumerGroup, replicas: int
) -> None:
    async with operator(server.url) as op:
        await op.put(STREAM, group)
        take(admin, "pod-a.1", 4)
        await scaled(op, replicas, group)
        await rounds(op)
        assert "set_deletion_costs" not in op.cluster.writes


async def test_an_api_server_that_is_away_is_told_later(server: Server, admin: redis.Redis) -> None:
    class Away(MemoryCluster):
        away = True

        async def set_deletion_costs(self, *args: Any) -> None:
            if self.away:
                self.away = False
                raise ClusterUnavailable("no answer")
            await super().set_deletion_costs(*args)

    async with operator(server.url, cluster=Away()) as op:
        await op.put(STREAM, GROUP)
        take(admin, "pod-a.1", 1)
        await scaled(op, 3)
        await until(lambda: said(op) == {"pod-a": 1})


async def test_a_group_that_left_the_mode_or_is_gone_is_not_ranked(
    server: Server, admin: redis.Redis
) -> None:
    async with operator(server.url) as op:
        await op.put(STREAM, GROUP)
        take(admin, "pod-a.1", 1)
        await scaled(op, 3)
        await until(lambda: said(op) == {"pod-a": 1})
        op.declare(of("Direct", generation=2))
        await until(lambda: not op.cluster.autoscalers)
        await rounds(op)
        before = op.cluster.writes["set_deletion_costs"]
        take(admin, "pod-b.1", 1)
        await rounds(op)
        assert op.cluster.writes["set_deletion_costs"] == before


async def test_where_there_are_no_autoscalers_nothing_is_said_all_the_time(
    server: Server, admin: redis.Redis
) -> None:
    async with operator(server.url, cluster=MemoryCluster(autoscales=False)) as op:
        await op.put(STREAM, GROUP)
        held = take(admin, "pod-a.1", 15)
        await until(lambda: op.cluster.workloads[GROUP.key].replicas == 5)
        admin.xack(KEY, "coder", *held[1:])
        await rounds(op)
        # the operator waits for as long as scaleDownAfter, and says it then
        assert op.cluster.workloads[GROUP.key].replicas == 5
        assert "set_deletion_costs" not in op.cluster.writes


async def test_a_group_that_goes_during_a_round_is_left_out(server: Server, admin: redis.Redis) -> None:
    class Going(MemoryCluster):
        async def set_deletion_costs(self, group: ConsumerGroup, held: Mapping[str, int]) -> None:
            for other in groups:
                if other.key != group.key:
                    op.engine.remove(other.key)
            await super().set_deletion_costs(group, held)

    groups = (GROUP, a_group("other", template=TEMPLATE, autoscaling=GROUP.spec.autoscaling))
    async with operator(server.url, cluster=Going()) as op:
        await op.put(STREAM, *groups)
        await until(lambda: len(op.cluster.autoscalers) == 2)
        take(admin, "pod-a.1", 1)
        for group in groups:
            await awake(op, group)
        for group in groups:
            op.cluster.workloads[group.key] = WorkloadSeen(3, 3)
        await until(lambda: op.cluster.ranked)
        await rounds(op)
        assert len(op.cluster.ranked) == 1


def sized(replicas: int, generation: int = 1) -> ConsumerGroup:
    """A group with so many consumers."""
    return a_group(template=TEMPLATE, replicas=replicas, meta={"generation": generation})


def hold(admin: redis.Redis, consumer: str, count: int, key: str = KEY, group: str = "coder") -> None:
    """Has a consumer hold so many new entries."""
    for _ in range(count):
        admin.xadd(key, {"m": "{}"})
    admin.xreadgroup(group, consumer, {key: ">"}, count=count)


class Recording(MemoryCluster):
    """A cluster that knows what was said when it was asked for so many consumers."""

    def __init__(self) -> None:
        super().__init__()
        self.known_at: dict[int, dict[str, int]] = {}

    async def apply_workload(self, group: ConsumerGroup, replicas: int) -> None:
        self.known_at[replicas] = dict(self.ranked.get(group.key, {}))
        await super().apply_workload(group, replicas)


async def test_what_each_pod_holds_is_said_before_there_are_fewer(server: Server, admin: redis.Redis) -> None:
    guest = a_group("guest", agent="coder", stream="more")
    cluster = Recording()
    async with operator(server.url, cluster=cluster) as op:
        await op.put(STREAM, a_stream("more"), sized(3), guest)
        await until(lambda: 3 in cluster.known_at)
        hold(admin, "pod-a.1", 2)
        hold(admin, "pod-a.2", 1, StreamKeys(KEY).retry("coder"))
        hold(admin, "pod-b.1", 4, "{team.more}", "guest")
        op.declare(sized(2, generation=2))
        await until(lambda: 2 in cluster.known_at)
        assert cluster.known_at == {3: {}, 2: {"pod-a": 3, "pod-b": 4}}


async def test_nothing_is_said_where_all_go_or_more_come(server: Server) -> None:
    cluster = MemoryCluster()
    async with operator(server.url, cluster=cluster) as op:
        for generation, replicas in enumerate((2, 3, 0), 1):
            op.declare(STREAM, sized(replicas, generation))
            await until(
                lambda replicas=replicas: (
                    sized(1).key in cluster.workloads and cluster.workloads[sized(1).key].replicas == replicas
                )
            )
        assert "set_deletion_costs" not in cluster.writes


class Refusing(MemoryCluster):
    """A cluster that lets nothing be said of pods."""

    async def set_deletion_costs(self, *_: Any) -> None:
        raise ClusterRefused("pods is forbidden")


async def test_that_it_cannot_be_said_keeps_no_number_as_it_is(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = Refusing()
    async with operator(server.url, cluster=cluster) as op:
        await op.put(STREAM, sized(3))
        op.declare(sized(1, generation=2))
        await until(lambda: cluster.workloads[sized(1).key].replicas == 1)
    assert "scale-in order is arbitrary: pods is forbidden" in caplog.text


async def test_that_it_is_not_known_keeps_no_number_as_it_is(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    class Blind:
        def __init__(self, broker: Any) -> None:
            self._broker = broker

        def __getattr__(self, name: str) -> Any:
            return getattr(self._broker, name)

        async def holdings(self, *_: Any) -> Any:
            raise ServerRefused("no XPENDING")

    async with operator(server.url, broker=Blind) as op:
        await op.put(STREAM, sized(3))
        op.declare(sized(1, generation=2))
        await until(lambda: op.cluster.workloads[sized(1).key].replicas == 1)
    assert "scale-in order is arbitrary: no XPENDING" in caplog.text
