"""Mode HPA: an autoscaler decides how many consumers there are, and the operator between none and some."""

from __future__ import annotations

import pytest
import redis

from agentstream_operator.cluster.port import AutoscalerSeen, WorkloadSeen
from agentstream_operator.resources.consumergroup import ConsumerGroup
from agentstream_operator.resources.meta import ResourceKey
from agentstream_operator.resources.status import ConditionReason, ConditionType
from support.cluster import MemoryCluster
from support.operator import Operator, operator
from support.resources import KEY, TEMPLATE, a_group, a_stream
from support.servers import Server
from support.waiting import until

STREAM = a_stream(producers=["planner"])
SCALING = ConditionType.SCALING_ACTIVE


def a_group_with(mode: str = "HPA", generation: int = 1, **spec: object) -> ConsumerGroup:
    scaling = {"mode": mode, "targetBacklog": 1, "maxReplicas": 8, "scaleDownAfter": "0s"}
    return a_group(
        template=TEMPLATE,
        startFrom="Beginning",
        autoscaling=scaling,
        meta={"generation": generation},
        **spec,
    )


GROUP = a_group_with()


def scaled(op: Operator, replicas: int) -> None:
    """Scales as an autoscaler does."""
    op.cluster.workloads[GROUP.key] = WorkloadSeen(replicas, replicas)


def replicas(op: Operator) -> int:
    return op.cluster.workloads[GROUP.key].replicas


async def test_the_operator_wakes_and_ends_the_group_and_leaves_the_rest(
    server: Server, admin: redis.Redis
) -> None:
    async with operator(server.url) as op:
        await op.put(STREAM, GROUP)
        await until(lambda: op.cluster.autoscalers)
        assert replicas(op) == 0
        entry = admin.xadd(KEY, {"m": "{}"})
        await until(lambda: replicas(op) == 1)
        # more than the operator would have
        scaled(op, 5)
        await until(lambda: op.cluster.statuses[GROUP.key].desired_replicas == 5)
        await op.engine.idle()
        assert replicas(op) == 5
        # or fewer
        for _ in range(7):
            admin.xadd(KEY, {"m": "{}"})
        scaled(op, 2)
        await until(lambda: op.cluster.statuses[GROUP.key].desired_replicas == 2)
        assert replicas(op) == 2
        (_, entries), *_ = admin.xreadgroup("coder", "c", {KEY: ">"})
        assert entries[0][0] == entry
        admin.xack(KEY, "coder", *(entry for entry, _ in entries))
        await until(lambda: replicas(op) == 0)
        await op.event(GROUP.key, ConditionReason.SCALED_DOWN)
        assert GROUP.key in op.cluster.autoscalers


async def test_a_change_of_mode_makes_or_removes_the_autoscaler(server: Server, admin: redis.Redis) -> None:
    async with operator(server.url) as op:
        await op.put(STREAM, a_group_with("Direct"))
        admin.xadd(KEY, {"m": "{}"})
        await until(lambda: replicas(op) == 1)
        assert not op.cluster.autoscalers
        op.declare(a_group_with(generation=2))
        await until(lambda: op.cluster.autoscalers)
        scaled(op, 6)
        op.declare(a_group_with("Direct", generation=3))
        await until(lambda: not op.cluster.autoscalers)
        # with what it spares before it has fewer
        await until(lambda: replicas(op) == 2)


async def test_a_suspended_group_has_no_consumers_whatever_the_autoscaler_says(
    server: Server, admin: redis.Redis
) -> None:
    async with operator(server.url) as op:
        await op.put(STREAM, GROUP)
        admin.xadd(KEY, {"m": "{}"})
        await until(lambda: replicas(op) == 1)
        scaled(op, 5)
        op.declare(a_group_with(generation=2, suspend=True))
        await until(lambda: replicas(op) == 0)
        op.declare(a_group_with(generation=3))
        await until(lambda: replicas(op) == 1)


@pytest.mark.parametrize("ended", ["gone", "without a template"])
async def test_it_goes_with_what_it_scales(server: Server, ended: str) -> None:
    async with operator(server.url) as op:
        await op.put(STREAM, GROUP)
        await until(lambda: op.cluster.autoscalers)
        if ended == "gone":
            op.engine.remove(GROUP.key)
        else:
            op.declare(a_group(startFrom="Beginning", meta={"generation": 2}))
        await until(lambda: not op.cluster.autoscalers)


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        (
            AutoscalerSeen(works=None),
            (
                "Unknown",
                ConditionReason.RECONCILING,
                "waiting for the first evaluation of the HorizontalPodAutoscaler",
            ),
        ),
        (AutoscalerSeen(works=True), ("True", ConditionReason.AUTOSCALED, "")),
        (
            AutoscalerSeen(works=False, message="no metric"),
            ("False", ConditionReason.AUTOSCALER_FAILING, "no metric"),
        ),
    ],
    ids=["waits", "works", "fails"],
)
async def test_the_condition_says_what_the_autoscaler_says(
    server: Server, admin: redis.Redis, seen: AutoscalerSeen, said: tuple[str, ConditionReason, str]
) -> None:
    async with operator(server.url) as op:
        await op.put(STREAM, GROUP)
        await until(lambda: op.cluster.autoscalers)
        admin.xadd(KEY, {"m": "{}"})
        await until(lambda: replicas(op) == 1)
        op.cluster.autoscalers[GROUP.key] = seen
        await until(lambda: op.cluster.says(GROUP.key, SCALING) == said)
        # it is no reason not to be ready
        assert op.cluster.ready(GROUP.key)


async def test_where_there_are_no_autoscalers_the_operator_decides(
    server: Server, admin: redis.Redis
) -> None:
    async with operator(server.url, cluster=MemoryCluster(autoscales=False)) as op:
        await op.put(STREAM, GROUP)
        for _ in range(3):
            admin.xadd(KEY, {"m": "{}"})
        await until(lambda: replicas(op) == 3)
        assert op.cluster.says(GROUP.key, SCALING)[0] == "True"


async def test_of_two_groups_that_name_a_deployment_the_older_has_the_autoscaler(server: Server) -> None:
    older, younger = (
        a_group(name, age=age, deploymentRef={"name": "theirs"}, autoscaling={"mode": "HPA"})
        for name, age in (("older", 60), ("younger", 0))
    )

    class Named(MemoryCluster):
        async def delete_workload(self, group: ResourceKey) -> None:
            """What is named is somebody else's."""

    async with operator(server.url, cluster=Named()) as op:
        for group in (older, younger):
            op.cluster.workloads[group.key] = WorkloadSeen(1, 1)
        await op.put(STREAM, older, younger)
        await until(lambda: older.key in op.cluster.autoscalers)
        await until(lambda: op.cluster.says(younger.key, SCALING)[1] == ConditionReason.DEPLOYMENT_CLAIMED)
        assert op.cluster.autoscalers.keys() == {older.key}
