"""Consumers run as their group's backlog, template and resource want, or as an autoscaler does."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from agentstream.errors import ServerRefused
from agentstream.protocol.keys import StreamKeys
from agentstream_operator.broker.observe import Look
from agentstream_operator.cluster.port import AutoscalerSeen, WorkloadSeen
from agentstream_operator.plan.observed import GroupSeen
from agentstream_operator.plan.signal import Activity, Progress
from agentstream_operator.resources.consumergroup import ConsumerGroup
from agentstream_operator.resources.meta import ResourceKey
from agentstream_operator.resources.status import ConditionReason, ConditionType, find_condition
from support.cluster import MemoryCluster
from support.operator import Operator, operator
from support.resources import KEY, TEMPLATE, a_group, a_stream
from support.servers import Server
from support.waiting import until

KEYS = StreamKeys(KEY)
STREAM, GROUP = a_stream(producers=["planner"]), a_group()


async def test_consumers_follow_the_backlog_and_go_when_it_is_gone(
    server: Server, admin: redis.Redis
) -> None:
    group = a_group(
        template=TEMPLATE,
        startFrom="Beginning",
        autoscaling={"targetBacklog": 2, "maxReplicas": 3, "scaleDownAfter": "0s"},
    )
    async with operator(server.url) as op:
        await op.put(STREAM, group)
        await until(lambda: op.cluster.workloads[group.key].replicas == 0)
        for number, wanted in ((1, 1), (2, 2), (9, 3)):
            for _ in range(number):
                admin.xadd(KEY, {"m": "{}"})
            await until(lambda wanted=wanted: op.cluster.workloads[group.key].replicas == wanted)
        await op.event(group.key, ConditionReason.SCALED_UP)
        (_, entries), *_ = admin.xreadgroup("coder", "c", {KEY: ">"})
        admin.xack(KEY, "coder", *(entry for entry, _ in entries[:-1]))
        await until(lambda: op.cluster.workloads[group.key].replicas == 1)
        admin.xack(KEY, "coder", entries[-1][0])
        await until(lambda: op.cluster.workloads[group.key].replicas == 0)
        await op.event(group.key, ConditionReason.SCALED_DOWN)


async def test_a_due_retry_wakes_a_group_at_zero(server: Server, admin: redis.Redis) -> None:
    group = a_group(template=TEMPLATE, autoscaling={})
    async with operator(server.url) as op:
        await op.put(STREAM, group)
        await until(lambda: op.cluster.workloads[group.key].replicas == 0)
        admin.zadd(KEYS.delay("coder"), {b"\x93\xa3" + b"1-1\x01\x92\xa1m\xa2{}": 1})
        await until(lambda: op.cluster.workloads[group.key].replicas == 1)


async def test_a_group_without_consumers_of_its_own_adds_to_those_of_its_agent(
    server: Server, admin: redis.Redis
) -> None:
    host = a_group("host", agent="coder", template=TEMPLATE, autoscaling={"targetBacklog": 1})
    guest = a_group("guest", agent="coder", stream="more", startFrom="Beginning")
    async with operator(server.url) as op:
        await op.put(STREAM, a_stream("more"), host, guest)
        admin.xadd("{team.more}", {"m": "{}"})
        await until(lambda: op.cluster.workloads[host.key].replicas == 1)
        assert guest.key not in op.cluster.workloads


async def test_a_group_on_a_stream_that_is_missing_does_not_hold_up_the_others_of_its_agent(
    server: Server, admin: redis.Redis
) -> None:
    host = a_group("host", agent="coder", template=TEMPLATE, startFrom="Beginning", autoscaling={})
    guest = a_group("guest", agent="coder", stream="missing")
    async with operator(server.url) as op:
        await op.put(STREAM, host)
        op.declare(guest)
        await until(lambda: guest.key in op.cluster.statuses)
        admin.xadd(KEY, {"m": "{}"})
        await until(lambda: op.cluster.workloads[host.key].replicas == 1)


async def test_a_suspended_group_has_no_consumers(server: Server) -> None:
    async with operator(server.url) as op:
        await op.put(STREAM, a_group(template=TEMPLATE, replicas=2))
        await until(lambda: op.cluster.workloads[GROUP.key].replicas == 2)
        op.declare(a_group(template=TEMPLATE, replicas=2, suspend=True, meta={"generation": 2}))
        await until(lambda: op.cluster.workloads[GROUP.key].replicas == 0)
        op.declare(a_group(template=TEMPLATE, replicas=2, meta={"generation": 3}))
        await until(lambda: op.cluster.workloads[GROUP.key].replicas == 2)


async def test_a_changed_template_is_applied_and_a_removed_one_ends_the_consumers(server: Server) -> None:
    other = {"spec": {"containers": [{"name": "agent", "command": ["other"]}]}}
    async with operator(server.url) as op:
        await op.put(STREAM, a_group(template=TEMPLATE))
        await until(lambda: GROUP.key in op.cluster.workloads)
        op.declare(a_group(template=other, meta={"generation": 2}))
        await until(
            lambda: op.cluster.templates[GROUP.key].spec.template.spec.containers[0].command == ("other",)
        )
        op.declare(a_group(meta={"generation": 3}))
        await until(lambda: not op.cluster.workloads)


async def test_consumers_go_with_their_resource(server: Server) -> None:
    async with operator(server.url) as op:
        await op.put(STREAM, a_group(template=TEMPLATE))
        await until(lambda: GROUP.key in op.cluster.workloads)
        op.engine.remove(GROUP.key)
        await until(lambda: not op.cluster.workloads)


async def test_consumers_that_crash_are_shown(server: Server) -> None:
    async with operator(server.url) as op:
        await op.put(STREAM, a_group(template=TEMPLATE))
        await until(lambda: GROUP.key in op.cluster.workloads)
        op.cluster.workloads[GROUP.key] = WorkloadSeen(1, 0, crashing="exited with 1")
        await op.event(GROUP.key, ConditionReason.CRASH_LOOP)
        assert op.cluster.condition(GROUP.key, ConditionType.CONSUMING).message == "exited with 1"
        assert op.engine.view().groups[0].crashing == "exited with 1"


async def test_that_nobody_consumes_is_told(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    async with operator(server.url) as op:
        await op.put(STREAM, GROUP)
        monkeypatch.setattr("agentstream_operator.reconcile.observer.work_of", lambda *_: Activity.STANDING)
        await op.event(GROUP.key, ConditionReason.NO_CONSUMERS)


async def test_a_handler_that_runs_for_long_is_progress_while_its_lease_is_renewed(
    server: Server, admin: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    def at_once(progress: Progress, group: GroupSeen, lease: int, now: int) -> Activity:
        if group.backlog == 0:
            return Activity.SETTLING
        return Activity.RUNNING if now - progress.renewed <= lease else Activity.STANDING

    monkeypatch.setattr("agentstream_operator.reconcile.observer.work_of", at_once)
    monkeypatch.setattr("agentstream_operator.reconcile.observer._ASK", 0)
    group = a_group(startFrom="Beginning", delivery={"lease": "2s", "deadline": "1h"})

    def says(reason: ConditionReason) -> bool:
        status = op.cluster.statuses.get(group.key)
        found = find_condition(status.conditions, ConditionType.CONSUMING) if status is not None else None
        return found is not None and found.reason == reason

    async with operator(server.url) as op:
        await op.put(STREAM, group)
        admin.xadd(KEY, {"m": "{}"})
        await until(lambda: says(ConditionReason.NO_CONSUMERS))
        admin.xreadgroup("coder", "pod.1-a", {KEY: ">"})
        await until(lambda: says(ConditionReason.HANDLERS_RUNNING))
        message = op.cluster.condition(group.key, ConditionType.CONSUMING).message
        assert "`delivery.deadline` ends a handler after 1h" in message
        # nobody renews it any more
        await until(lambda: says(ConditionReason.NO_PROGRESS), 10)
        admin.xack(
            KEY, "coder", *[each["message_id"] for each in admin.xpending_range(KEY, "coder", "-", "+", 1)]
        )
        await until(lambda: says(ConditionReason.PROGRESSING))


async def test_what_ran_stays_while_the_backlog_is_unknown(private_server: Server) -> None:
    group = a_group(template=TEMPLATE, startFrom="Beginning", autoscaling={"scaleDownAfter": "0s"})
    async with operator(private_server.url) as op:
        await op.put(STREAM, group)
        with private_server.admin() as admin:
            admin.xadd(KEY, {"m": "{}"})
        await until(lambda: op.cluster.workloads[group.key].replicas == 1)
        private_server.kill()
        await until(lambda: not op.engine.view().reachable)
        assert (await op.engine.summary()).groups[0].replicas == 1
        assert op.cluster.workloads[group.key].replicas == 1


async def test_the_backlog_is_unknown_while_that_of_one_of_the_agents_groups_is(
    server: Server, admin: redis.Redis
) -> None:
    class Blind:
        def __init__(self, broker: Any) -> None:
            self._broker = broker

        def __getattr__(self, name: str) -> Any:
            return getattr(self._broker, name)

        async def observe(self, key: str, groups: list[str]) -> Any:
            if key == "{team.more}":
                raise ServerRefused("cannot be read")
            return await self._broker.observe(key, groups)

        async def measure(self, looks: list[Look]) -> list[Any]:
            found = await self._broker.measure(looks)
            pairs = zip(looks, found, strict=True)
            return [ServerRefused("no") if look.key == "{team.more}" else seen for look, seen in pairs]

    host = a_group("host", agent="coder", template=TEMPLATE, autoscaling={})
    guest = a_group("guest", agent="coder", stream="more")
    async with operator(server.url, broker=Blind) as op:
        op.declare(STREAM, a_stream("more"), host, guest)
        await until(lambda: op.cluster.condition(host.key, ConditionType.SCALING_ACTIVE) is not None)
        condition = op.cluster.condition(host.key, ConditionType.SCALING_ACTIVE)
        assert condition is not None
        assert condition.reason is ConditionReason.LAG_UNKNOWN


async def test_the_work_of_every_group_is_told(server: Server, admin: redis.Redis) -> None:
    host = a_group(template=TEMPLATE, startFrom="Beginning", autoscaling={"targetBacklog": 2})
    guest = a_group("guest", agent="coder", stream="missing")
    rival = a_group("rival", group="coder")
    async with operator(server.url) as op:
        op.declare(STREAM, host, guest, rival)
        await op.ready(host.key)
        for _ in range(3):
            admin.xadd(KEY, {"m": "{}"})
        await until(lambda: op.cluster.workloads[host.key].replicas == 2)
        work = {group.resource.metadata.name: group for group in (await op.engine.figures()).groups}
        assert work["coder"].signal.undelivered == 3
        assert work["coder"].desired == 2
        assert (work["guest"].signal.known, work["guest"].desired) == (False, None)
        said = ConditionType.SCALING_ACTIVE
        await until(lambda: op.cluster.says(host.key, said)[2] == "scaled by targetBacklog")


async def test_what_was_added_last_and_crashes_is_not_added_to(server: Server, admin: redis.Redis) -> None:
    group = a_group(template=TEMPLATE, startFrom="Beginning", autoscaling={"targetBacklog": 1})
    async with operator(server.url) as op:
        await op.put(STREAM, group)
        admin.xadd(KEY, {"m": "{}"})
        await until(lambda: op.cluster.workloads[group.key].replicas == 1)
        op.cluster.workloads[group.key] = WorkloadSeen(1, 0, crashing="exited with 1")
        await op.event(group.key, ConditionReason.CRASH_LOOP)
        admin.xadd(KEY, {"m": "{}"})
        await until(lambda: "are not ready" in op.cluster.says(group.key, ConditionType.SCALING_ACTIVE)[2])
        assert op.cluster.workloads[group.key].replicas == 1
        op.cluster.workloads[group.key] = WorkloadSeen(1, 1)
        await until(lambda: op.cluster.workloads[group.key].replicas == 2)


async def test_what_is_settled_between_two_looks_holds_its_consumer_only_until_the_next(
    server: Server, admin: redis.Redis
) -> None:
    group = a_group(template=TEMPLATE, startFrom="Beginning", autoscaling={"scaleDownAfter": "0s"})
    async with operator(server.url) as op:
        await op.put(STREAM, group)
        admin.xadd(KEY, {"m": "{}"})
        await until(lambda: op.cluster.workloads[group.key].replicas == 1)
        (_, ((entry, _),)), *_ = admin.xreadgroup("coder", "c", {KEY: ">"})
        with admin.pipeline(transaction=True) as together:
            together.xack(KEY, "coder", entry)
            together.hincrby(KEYS.stats("coder"), "settled", 1)
            together.execute()
        await until(lambda: op.cluster.workloads[group.key].replicas == 0)


SCALED_STREAM = a_stream(producers=["planner"])
SCALING = ConditionType.SCALING_ACTIVE


def a_group_with(mode: str = "HPA", generation: int = 1, **spec: object) -> ConsumerGroup:
    scaling = {"mode": mode, "targetBacklog": 1, "maxReplicas": 8, "scaleDownAfter": "0s"}
    return a_group(
        template=TEMPLATE, startFrom="Beginning", autoscaling=scaling, meta={"generation": generation}, **spec
    )


SCALED_GROUP = a_group_with()


def scaled(op: Operator, replicas: int) -> None:
    """Scales as an autoscaler does."""
    op.cluster.workloads[SCALED_GROUP.key] = WorkloadSeen(replicas, replicas)


def replicas(op: Operator) -> int:
    return op.cluster.workloads[SCALED_GROUP.key].replicas


async def test_the_operator_wakes_and_ends_the_group_and_leaves_the_rest(
    server: Server, admin: redis.Redis
) -> None:
    async with operator(server.url) as op:
        await op.put(SCALED_STREAM, SCALED_GROUP)
        await until(lambda: op.cluster.autoscalers)
        assert replicas(op) == 0
        entry = admin.xadd(KEY, {"m": "{}"})
        await until(lambda: replicas(op) == 1)
        # more than the operator would have
        scaled(op, 5)
        await until(lambda: op.cluster.statuses[SCALED_GROUP.key].desired_replicas == 5)
        await op.engine.idle()
        assert replicas(op) == 5
        # or fewer
        for _ in range(7):
            admin.xadd(KEY, {"m": "{}"})
        scaled(op, 2)
        await until(lambda: op.cluster.statuses[SCALED_GROUP.key].desired_replicas == 2)
        assert replicas(op) == 2
        (_, entries), *_ = admin.xreadgroup("coder", "c", {KEY: ">"})
        assert entries[0][0] == entry
        admin.xack(KEY, "coder", *(entry for entry, _ in entries))
        await until(lambda: replicas(op) == 0)
        await op.event(SCALED_GROUP.key, ConditionReason.SCALED_DOWN)
        assert SCALED_GROUP.key in op.cluster.autoscalers


async def test_a_change_of_mode_makes_or_removes_the_autoscaler(server: Server, admin: redis.Redis) -> None:
    async with operator(server.url) as op:
        await op.put(SCALED_STREAM, a_group_with("Direct"))
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
        await op.put(SCALED_STREAM, SCALED_GROUP)
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
        await op.put(SCALED_STREAM, SCALED_GROUP)
        await until(lambda: op.cluster.autoscalers)
        if ended == "gone":
            op.engine.remove(SCALED_GROUP.key)
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
        await op.put(SCALED_STREAM, SCALED_GROUP)
        await until(lambda: op.cluster.autoscalers)
        admin.xadd(KEY, {"m": "{}"})
        await until(lambda: replicas(op) == 1)
        op.cluster.autoscalers[SCALED_GROUP.key] = seen
        await until(lambda: op.cluster.says(SCALED_GROUP.key, SCALING) == said)
        # it is no reason not to be ready
        assert op.cluster.ready(SCALED_GROUP.key)


async def test_where_there_are_no_autoscalers_the_operator_decides(
    server: Server, admin: redis.Redis
) -> None:
    async with operator(server.url, cluster=MemoryCluster(autoscales=False)) as op:
        await op.put(SCALED_STREAM, SCALED_GROUP)
        for _ in range(3):
            admin.xadd(KEY, {"m": "{}"})
        await until(lambda: replicas(op) == 3)
        assert op.cluster.says(SCALED_GROUP.key, SCALING)[0] == "True"


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
        await op.put(SCALED_STREAM, older, younger)
        await until(lambda: older.key in op.cluster.autoscalers)
        await until(lambda: op.cluster.says(younger.key, SCALING)[1] == ConditionReason.DEPLOYMENT_CLAIMED)
        assert op.cluster.autoscalers.keys() == {older.key}
