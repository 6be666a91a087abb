"""Groups whose consumers are somebody else's Deployment, and children that the cluster refuses."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
import redis

from agentstream_operator.cluster.port import (
    ChildNotOurs,
    ClusterRefused,
    ClusterUnavailable,
    Credentials,
    Owner,
    WorkloadSeen,
)
from agentstream_operator.resources.consumergroup import ConsumerGroup
from agentstream_operator.resources.status import ConditionReason, ConditionType
from support.cluster import MemoryCluster
from support.operator import FAST, Operator, operator
from support.resources import KEY, TEMPLATE, a_group, a_stream
from support.servers import Server
from support.waiting import until

REF = {"name": "mine"}
SCALING, SYNCED, CREDENTIALS = (
    ConditionType.SCALING_ACTIVE,
    ConditionType.SYNCED,
    ConditionType.CREDENTIALS_SYNCED,
)
STREAM = a_stream(producers=["planner"])
GROUP = a_group(deploymentRef=REF, replicas=3)


@dataclass
class Deployments(MemoryCluster):
    """A cluster with Deployments that are somebody else's, and that may refuse children.

    Attributes:
        there: how those run, by name.
        refuses: what applying a workload ends with.
        reads: what asking for a workload ends with.
        hidden: the same for those of somebody else, by name.
        secrets_refused: what writing a Secret ends with.
        tries: how often something was refused.
    """

    there: dict[str, WorkloadSeen] = field(default_factory=lambda: {"mine": WorkloadSeen(7, 5)})
    refuses: Exception | None = None
    reads: Exception | None = None
    hidden: dict[str, Exception] = field(default_factory=dict)
    secrets_refused: Exception | None = None
    tries: int = 0

    async def workload(self, group: ConsumerGroup) -> WorkloadSeen | None:
        self._refuse(self.reads)
        if group.spec.deployment_ref is None:
            return await super().workload(group)
        self._refuse(self.hidden.get(group.spec.deployment_ref.name))
        return self.there.get(group.spec.deployment_ref.name)

    async def apply_workload(self, group: ConsumerGroup, replicas: int) -> None:
        self._refuse(self.refuses)
        if group.spec.deployment_ref is None:
            await super().apply_workload(group, replicas)
            return
        self._count("scale")
        self.there[group.spec.deployment_ref.name] = WorkloadSeen(replicas, replicas)

    async def apply_credentials(self, credentials: Credentials, owners: tuple[Owner, ...]) -> None:
        self._refuse(self.secrets_refused)
        await super().apply_credentials(credentials, owners)

    def _refuse(self, why: Exception | None) -> None:
        if why is not None:
            self.tries += 1
            raise why


async def says(
    op: Operator, group: ConsumerGroup, kind: ConditionType, status: str, reason: ConditionReason
) -> str:
    """Waits for a condition. Returns its message."""

    def said() -> bool:
        condition = op.cluster.condition(group.key, kind)
        return condition is not None and (condition.status, condition.reason) == (status, reason)

    await until(said)
    return op.cluster.says(group.key, kind)[2]


def replicas(cluster: Deployments) -> int:
    """How many pods of the Deployment are wanted."""
    return cluster.there["mine"].replicas


async def test_a_named_deployment_gets_the_replicas_of_the_group(server: Server) -> None:
    cluster = Deployments()
    async with operator(server.url, cluster=cluster) as op:
        await op.put(STREAM, GROUP)
        await until(lambda: replicas(cluster) == 3)
        assert (
            await says(op, GROUP, SCALING, "False", ConditionReason.NOT_SCALED)
            == "autoscaling is not set: replicas is 3"
        )
        op.declare(a_group(deploymentRef=REF, replicas=1, meta={"generation": 2}))
        await until(lambda: replicas(cluster) == 1)
        assert not cluster.workloads


async def test_a_named_deployment_follows_the_backlog(server: Server, admin: redis.Redis) -> None:
    cluster = Deployments()
    scaling = {"minReplicas": 1, "maxReplicas": 4, "targetBacklog": 1, "scaleDownAfter": "0s"}
    group = a_group(deploymentRef=REF, startFrom="Beginning", autoscaling=scaling)
    async with operator(server.url, cluster=cluster) as op:
        await op.put(STREAM, group)
        await until(lambda: replicas(cluster) == 1)
        for _ in range(3):
            admin.xadd(KEY, {"m": "{}"})
        await until(lambda: replicas(cluster) == 3)
        await says(op, group, SCALING, "True", ConditionReason.SCALED_UP)


@pytest.mark.parametrize(
    "why", [ChildNotOurs("it runs the consumers of another group"), ClusterUnavailable("it does not answer")]
)
async def test_groups_follow_their_backlog_while_anothers_deployment_cannot_be_read(
    server: Server, admin: redis.Redis, why: Exception
) -> None:
    cluster = Deployments(hidden={"mine": why})
    scaling = {"minReplicas": 1, "maxReplicas": 4, "targetBacklog": 1, "scaleDownAfter": "0s"}
    first = a_group("first", deploymentRef=REF, age=9)
    group = a_group(template=TEMPLATE, startFrom="Beginning", autoscaling=scaling)
    async with operator(
        server.url,
        cluster=cluster,
        options=replace(
            FAST, loops=replace(FAST.loops, resync=60.0), status=replace(FAST.status, numbers=60.0)
        ),
    ) as op:
        op.declare(STREAM, first)
        await until(lambda: cluster.tries > 0)
        await op.put(group)
        await until(lambda: cluster.workloads[group.key].replicas == 1)
        for _ in range(3):
            admin.xadd(KEY, {"m": "{}"})
        await until(lambda: cluster.workloads[group.key].replicas == 3)


async def test_a_deployment_of_which_nothing_is_said_is_left_as_it_is(server: Server) -> None:
    cluster, group = Deployments(), a_group(deploymentRef=REF)
    async with operator(server.url, cluster=cluster) as op:
        await op.put(STREAM, group)
        assert (
            await says(op, group, SCALING, "False", ConditionReason.NOT_SCALED)
            == "autoscaling is not set: replicas is the Deployment's own"
        )
        op.engine.check_all()
        await op.engine.idle()
        assert replicas(cluster) == 7
        assert "scale" not in cluster.writes
        await until(lambda: op.cluster.statuses[group.key].replicas == 5)


async def test_a_suspended_group_stops_the_deployment_that_it_names(server: Server) -> None:
    cluster = Deployments()
    async with operator(server.url, cluster=cluster) as op:
        await op.put(STREAM, a_group(deploymentRef=REF))
        suspended = a_group(deploymentRef=REF, suspend=True, meta={"generation": 2})
        op.declare(suspended)
        await until(lambda: replicas(cluster) == 0)
        await says(op, suspended, SCALING, "False", ConditionReason.SUSPENDED)


async def test_what_somebody_else_set_is_set_back(server: Server) -> None:
    cluster = Deployments()
    async with operator(server.url, cluster=cluster) as op:
        await op.put(STREAM, GROUP)
        await until(lambda: replicas(cluster) == 3)
        cluster.there["mine"] = WorkloadSeen(9, 3)
        op.engine.requeue(GROUP.key)
        await until(lambda: replicas(cluster) == 3)


async def test_a_deployment_stays_when_its_group_goes(server: Server) -> None:
    cluster = Deployments()
    async with operator(server.url, cluster=cluster) as op:
        await op.put(STREAM, GROUP)
        await until(lambda: replicas(cluster) == 3)
        await op.delete(GROUP)
        assert replicas(cluster) == 3


async def test_a_deployment_that_is_missing_is_told_of_until_it_is_there(server: Server) -> None:
    cluster = Deployments(there={})
    async with operator(server.url, cluster=cluster) as op:
        await op.put(STREAM, GROUP)
        message = await says(op, GROUP, SCALING, "False", ConditionReason.DEPLOYMENT_MISSING)
        assert message == "Deployment mine not found: create it, or correct deploymentRef"
        await op.event(GROUP.key, ConditionReason.DEPLOYMENT_MISSING)
        assert op.cluster.ready(GROUP.key)
        assert "scale" not in cluster.writes
        cluster.there["mine"] = WorkloadSeen(1, 1)
        op.engine.requeue(GROUP.key)
        await until(lambda: replicas(cluster) == 3)
        await says(op, GROUP, SCALING, "False", ConditionReason.NOT_SCALED)


async def test_a_deployment_that_vanishes_is_told_of(server: Server) -> None:
    cluster = Deployments()
    async with operator(server.url, cluster=cluster) as op:
        await op.put(STREAM, GROUP)
        await until(lambda: replicas(cluster) == 3)
        cluster.there.clear()
        op.engine.requeue(GROUP.key)
        await says(op, GROUP, SCALING, "False", ConditionReason.DEPLOYMENT_MISSING)


async def test_the_older_of_two_groups_scales_the_deployment_that_both_name(server: Server) -> None:
    cluster = Deployments()
    older = a_group("older", deploymentRef=REF, replicas=2, age=9)
    younger = a_group("younger", deploymentRef=REF, replicas=5)
    async with operator(server.url, cluster=cluster) as op:
        await op.put(STREAM, younger, older)
        message = await says(op, younger, SCALING, "False", ConditionReason.DEPLOYMENT_CLAIMED)
        assert message == "Deployment mine is already scaled by the older ConsumerGroup older"
        await op.event(younger.key, ConditionReason.DEPLOYMENT_CLAIMED)
        assert op.cluster.ready(younger.key)
        await until(lambda: replicas(cluster) == 2)
        await says(op, older, SCALING, "False", ConditionReason.NOT_SCALED)


async def test_the_younger_group_takes_over_when_the_older_names_it_no_more(server: Server) -> None:
    cluster = Deployments()
    older = a_group("older", deploymentRef=REF, replicas=2, age=9)
    younger = a_group("younger", deploymentRef=REF, replicas=5)
    async with operator(server.url, cluster=cluster) as op:
        await op.put(STREAM, older, younger)
        await says(op, younger, SCALING, "False", ConditionReason.DEPLOYMENT_CLAIMED)
        op.declare(a_group("older", age=9, meta={"generation": 2}))
        await until(lambda: replicas(cluster) == 5)
        await says(op, younger, SCALING, "False", ConditionReason.NOT_SCALED)


async def test_a_deployment_that_runs_another_groups_consumers_is_not_said_to_be_missing(
    server: Server,
) -> None:
    cluster = Deployments(reads=ChildNotOurs("the Deployment mine runs the consumers of another group"))
    async with operator(server.url, cluster=cluster) as op:
        op.declare(STREAM, GROUP)
        message = await says(op, GROUP, SYNCED, "False", ConditionReason.CHILD_NOT_OURS)
        assert message == "the Deployment mine runs the consumers of another group"
        await says(op, GROUP, SCALING, "False", ConditionReason.NOT_SCALED)
        assert ConditionReason.DEPLOYMENT_MISSING not in op.cluster.reasons(GROUP.key)
        cluster.reads = None
        await op.ready(GROUP.key)
        await until(lambda: replicas(cluster) == 3)


async def test_a_group_that_names_a_deployment_instead_of_a_template_gives_up_its_own(server: Server) -> None:
    cluster = Deployments()
    own = a_group(template=TEMPLATE, replicas=2)
    async with operator(server.url, cluster=cluster) as op:
        await op.put(STREAM, own)
        await until(lambda: own.key in cluster.workloads)
        op.declare(a_group(deploymentRef=REF, replicas=2, meta={"generation": 2}))
        await until(lambda: replicas(cluster) == 2)
        assert not cluster.workloads


async def test_a_group_with_a_template_instead_of_a_deployment_leaves_that_as_it_is(server: Server) -> None:
    cluster = Deployments()
    async with operator(server.url, cluster=cluster) as op:
        await op.put(STREAM, GROUP)
        await until(lambda: replicas(cluster) == 3)
        own = a_group(template=TEMPLATE, replicas=1, meta={"generation": 2})
        op.declare(own)
        await until(lambda: own.key in cluster.workloads)
        assert replicas(cluster) == 3


async def test_consumers_that_somebody_edited_are_applied_again(server: Server) -> None:
    cluster = Deployments()
    group = a_group(template=TEMPLATE)
    async with operator(server.url, cluster=cluster) as op:
        await op.put(STREAM, group)
        await until(lambda: group.key in cluster.workloads)
        cluster.workloads[group.key] = WorkloadSeen(1, 1, current=False)
        op.engine.requeue(group.key)
        await until(lambda: cluster.workloads[group.key].current)


async def test_a_template_that_is_refused_is_told_tried_again_and_recovers(server: Server) -> None:
    cluster = Deployments(refuses=ClusterRefused("the Deployment is refused: no such field"))
    group = a_group(template=TEMPLATE)
    async with operator(server.url, cluster=cluster) as op:
        op.declare(STREAM, group)
        message = await says(op, group, SYNCED, "False", ConditionReason.TEMPLATE_REFUSED)
        assert message == "the Deployment is refused: no such field"
        assert (
            await says(op, group, ConditionType.READY, "False", ConditionReason.TEMPLATE_REFUSED) == message
        )
        await op.event(group.key, ConditionReason.TEMPLATE_REFUSED)
        tries = cluster.tries
        await until(lambda: cluster.tries > tries)
        cluster.refuses = None
        await op.ready(group.key)
        assert group.key in cluster.workloads
        await says(op, group, SYNCED, "True", ConditionReason.IN_SYNC)
        # it was told once
        assert op.cluster.reasons(group.key).count(ConditionReason.TEMPLATE_REFUSED) == 1


async def test_a_corrected_template_does_not_wait_for_the_next_try(server: Server) -> None:
    cluster = Deployments(refuses=ClusterRefused("no"))
    async with operator(server.url, cluster=cluster) as op:
        op.declare(STREAM, a_group(template=TEMPLATE))
        await until(lambda: cluster.tries > 3)
        cluster.refuses = None
        corrected = a_group(template=TEMPLATE, replicas=2, meta={"generation": 2})
        op.declare(corrected)
        await until(lambda: corrected.key in cluster.workloads, timeout=2)


async def test_a_group_serves_although_its_template_is_refused(server: Server, admin: redis.Redis) -> None:
    cluster = Deployments(refuses=ClusterRefused("no"))
    group = a_group(template=TEMPLATE)
    async with operator(server.url, cluster=cluster) as op:
        op.declare(STREAM, group)
        await says(op, group, SYNCED, "False", ConditionReason.TEMPLATE_REFUSED)
        assert [found["name"] for found in admin.xinfo_groups(KEY)] == ["coder"]
        await says(op, group, CREDENTIALS, "True", ConditionReason.CREDENTIALS_APPLIED)


async def test_another_refusal_is_told_in_its_words(server: Server) -> None:
    cluster = Deployments(refuses=ClusterRefused("one"))
    group = a_group(template=TEMPLATE)
    async with operator(server.url, cluster=cluster) as op:
        op.declare(STREAM, group)
        assert await says(op, group, SYNCED, "False", ConditionReason.TEMPLATE_REFUSED) == "one"
        cluster.refuses = ChildNotOurs("two")
        assert await says(op, group, SYNCED, "False", ConditionReason.CHILD_NOT_OURS) == "two"
        await op.event(group.key, ConditionReason.CHILD_NOT_OURS)


async def test_a_group_that_needs_no_consumers_any_more_is_not_blamed_for_them(server: Server) -> None:
    cluster = Deployments(refuses=ClusterRefused("no"))
    async with operator(server.url, cluster=cluster) as op:
        op.declare(STREAM, a_group(template=TEMPLATE))
        await says(op, GROUP, SYNCED, "False", ConditionReason.TEMPLATE_REFUSED)
        op.declare(a_group(meta={"generation": 2}))
        await op.ready(GROUP.key)


async def test_a_cluster_that_is_away_is_no_fault_of_the_template(server: Server) -> None:
    cluster = Deployments(refuses=ClusterUnavailable("the API server does not answer"))
    group = a_group(template=TEMPLATE)
    async with operator(server.url, cluster=cluster) as op:
        op.declare(STREAM, group)
        await until(lambda: cluster.tries > 1)
        cluster.refuses = None
        await op.ready(group.key)
        await until(lambda: group.key in cluster.workloads)
        assert ConditionReason.TEMPLATE_REFUSED not in op.cluster.reasons(group.key)


async def test_a_secret_of_somebody_else_is_told_of_and_recovers(server: Server) -> None:
    cluster = Deployments(secrets_refused=ChildNotOurs("the Secret agentstream-planner is not ours"))
    async with operator(server.url, cluster=cluster) as op:
        op.declare(STREAM)
        await until(lambda: op.cluster.condition(STREAM.key, CREDENTIALS) is not None)
        await op.event(STREAM.key, ConditionReason.CHILD_NOT_OURS)
        assert op.cluster.says(STREAM.key, CREDENTIALS) == (
            "False",
            ConditionReason.CHILD_NOT_OURS,
            "the Secret agentstream-planner is not ours",
        )
        assert not op.cluster.ready(STREAM.key)
        cluster.secrets_refused = None
        await op.ready(STREAM.key)
        assert ("team", "planner") in cluster.secrets


async def test_consumers_do_not_start_without_their_secret(server: Server) -> None:
    cluster = Deployments(secrets_refused=ChildNotOurs("the Secret agentstream-coder is not ours"))
    group = a_group(template=TEMPLATE)
    async with operator(server.url, cluster=cluster) as op:
        op.declare(STREAM, group)
        await says(op, group, CREDENTIALS, "False", ConditionReason.CHILD_NOT_OURS)
        assert not cluster.workloads
        cluster.secrets_refused = None
        await until(lambda: group.key in cluster.workloads)
