"""Before there come to be fewer consumers, it is said what each of them holds."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from agentstream.errors import ServerRefused
from agentstream.protocol.keys import StreamKeys
from agentstream_operator.cluster.port import ClusterRefused
from agentstream_operator.resources.consumergroup import ConsumerGroup
from support.cluster import MemoryCluster
from support.operator import operator
from support.resources import KEY, TEMPLATE, a_group, a_stream
from support.servers import Server
from support.waiting import until

STREAM = a_stream()


def of(replicas: int, generation: int = 1) -> ConsumerGroup:
    """A group with so many consumers."""
    return a_group(template=TEMPLATE, replicas=replicas, meta={"generation": generation})


def take(admin: redis.Redis, consumer: str, count: int, key: str = KEY, group: str = "coder") -> None:
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
        await op.put(STREAM, a_stream("more"), of(3), guest)
        await until(lambda: 3 in cluster.known_at)
        take(admin, "pod-a.1", 2)
        take(admin, "pod-a.2", 1, StreamKeys(KEY).retry("coder"))
        take(admin, "pod-b.1", 4, "{team.more}", "guest")
        op.declare(of(2, generation=2))
        await until(lambda: 2 in cluster.known_at)
        assert cluster.known_at == {3: {}, 2: {"pod-a": 3, "pod-b": 4}}


async def test_nothing_is_said_where_all_go_or_more_come(server: Server) -> None:
    cluster = MemoryCluster()
    async with operator(server.url, cluster=cluster) as op:
        for generation, replicas in enumerate((2, 3, 0), 1):
            op.declare(STREAM, of(replicas, generation))
            await until(
                lambda replicas=replicas: (
                    of(1).key in cluster.workloads and cluster.workloads[of(1).key].replicas == replicas
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
        await op.put(STREAM, of(3))
        op.declare(of(1, generation=2))
        await until(lambda: cluster.workloads[of(1).key].replicas == 1)
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
        await op.put(STREAM, of(3))
        op.declare(of(1, generation=2))
        await until(lambda: op.cluster.workloads[of(1).key].replicas == 1)
    assert "scale-in order is arbitrary: no XPENDING" in caplog.text
