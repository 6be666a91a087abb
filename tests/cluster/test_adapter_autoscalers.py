"""Mode HPA on a real API server: an autoscaler is made, and the replicas are its own from then on."""

from __future__ import annotations

from typing import Any

import pytest

from agentstream_operator.cluster.port import AutoscalerSeen, ChildNotOurs, ClusterRefused, WorkloadSeen
from agentstream_operator.resources.consumergroup import ConsumerGroup
from cluster.adapter import Adapter, Json, adapter_of
from cluster.team import Team
from unit.resources.manifests import a_template

NAME = "coder-consumer"
WAITS = AutoscalerSeen(works=None)
HPA = "HorizontalPodAutoscaler"


def a_group(adapter: Adapter, image: str = "coder:1", **scaling: Any) -> ConsumerGroup:
    """A group in mode HPA."""
    return adapter.group(template=a_template(image=image), autoscaling={"mode": "HPA", **scaling})


def replicas(team: Team) -> int:
    found = team.get("Deployment", NAME)
    assert found is not None
    number: int = found["spec"]["replicas"]
    return number


def autoscaler(team: Team) -> Json:
    found = team.get(HPA, NAME)
    assert found is not None
    return found


def scale(team: Team, number: int) -> None:
    """Scales the Deployment as an autoscaler does."""
    team.change("Deployment", NAME, {"spec": {"replicas": number}}, "/scale")


async def test_an_autoscaler_is_made_with_the_deployment(adapter: Adapter) -> None:
    group = a_group(adapter, maxReplicas=7, targetBacklog=2000, scaleDownAfter="90s")
    await adapter.cluster.apply_workload(group, 3)
    found = autoscaler(adapter.team)
    assert found["spec"]["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": NAME}
    assert (found["spec"]["minReplicas"], found["spec"]["maxReplicas"]) == (1, 7)
    (metric,) = found["spec"]["metrics"]
    assert metric["external"]["metric"] == {
        "name": "agentstream-backlog",
        "selector": {"matchLabels": {"group": "coder", "stream": "tasks"}},
    }
    assert metric["external"]["target"] == {"type": "AverageValue", "averageValue": "2k"}
    assert found["spec"]["behavior"]["scaleDown"]["stabilizationWindowSeconds"] == 90
    assert found["metadata"]["ownerReferences"][0]["uid"] == group.metadata.uid
    assert replicas(adapter.team) == 3
    assert await adapter.cluster.workload(group) == WorkloadSeen(3, 0, autoscaler=WAITS)


async def test_what_is_as_it_should_be_is_not_written_again(adapter: Adapter) -> None:
    group = a_group(adapter)
    await adapter.cluster.apply_workload(group, 1)
    before = adapter.writes
    await adapter.cluster.apply_workload(group, 1)
    assert adapter.writes == before
    async with adapter_of(adapter.team) as other:
        await other.listed()
        assert await other.cluster.workload(group) == WorkloadSeen(1, 0, autoscaler=WAITS)
        await other.cluster.apply_workload(group, 1)
        assert other.writes == 0


async def test_a_new_template_leaves_what_the_autoscaler_decided(adapter: Adapter) -> None:
    await adapter.cluster.apply_workload(a_group(adapter), 1)
    scale(adapter.team, 5)
    adapter.tell("Deployment", NAME)
    group = a_group(adapter, image="coder:2")
    assert (await adapter.cluster.workload(group)).replicas == 5
    await adapter.cluster.apply_workload(group, 5)
    assert replicas(adapter.team) == 5
    found = adapter.team.get("Deployment", NAME)
    assert found["spec"]["template"]["spec"]["containers"][0]["image"] == "coder:2"


async def test_the_replicas_stay_through_a_change_of_mode_in_both_directions(adapter: Adapter) -> None:
    direct = adapter.group(template=a_template(), autoscaling={})
    await adapter.cluster.apply_workload(direct, 4)
    group = adapter.group(autoscaling={"mode": "HPA"})
    await adapter.cluster.apply_workload(group, 4)
    assert replicas(adapter.team) == 4
    scale(adapter.team, 6)
    adapter.tell("Deployment", NAME)
    # what follows leaves no field behind
    await adapter.cluster.apply_workload(group, 6)
    assert replicas(adapter.team) == 6
    direct = adapter.group(autoscaling={"mode": "Direct"})
    await adapter.cluster.delete_autoscaler(direct.key)
    assert adapter.team.get(HPA, NAME) is None
    await adapter.cluster.apply_workload(direct, 2)
    assert replicas(adapter.team) == 2
    assert await adapter.cluster.workload(direct) == WorkloadSeen(2, 0)
    assert adapter.team.get(HPA, NAME) is None


async def test_between_none_and_some_it_takes_one_write(adapter: Adapter) -> None:
    group = a_group(adapter)
    await adapter.cluster.apply_workload(group, 1)
    for wanted in (0, 1, 0):
        before = adapter.writes
        await adapter.cluster.apply_workload(group, wanted)
        assert (replicas(adapter.team), adapter.writes) == (wanted, before + 1)
        assert await adapter.cluster.workload(group) == WorkloadSeen(wanted, 0, autoscaler=WAITS)


async def test_a_hand_over_that_was_cut_short_is_finished(adapter: Adapter) -> None:
    direct = adapter.group(template=a_template(), autoscaling={})
    await adapter.cluster.apply_workload(direct, 4)
    group = adapter.group(autoscaling={"mode": "HPA"})
    async with adapter_of(adapter.team) as other:
        await other.listed()
        seen = await other.cluster.workload(group)
        assert (seen.current, seen.autoscaler) == (False, None)
        await other.cluster.apply_workload(group, 4)
        assert await other.cluster.workload(group) == WorkloadSeen(4, 0, autoscaler=WAITS)
    assert replicas(adapter.team) == 4


async def test_limits_that_change_are_applied_and_what_somebody_edited_is_put_right(adapter: Adapter) -> None:
    group = a_group(adapter, maxReplicas=3)
    await adapter.cluster.apply_workload(group, 1)
    group = a_group(adapter, maxReplicas=5)
    assert not (await adapter.cluster.workload(group)).current
    await adapter.cluster.apply_workload(group, 1)
    assert autoscaler(adapter.team)["spec"]["maxReplicas"] == 5
    adapter.team.change(HPA, NAME, {"spec": {"maxReplicas": 50}})
    adapter.tell(HPA, NAME)
    assert not (await adapter.cluster.workload(group)).current
    await adapter.cluster.apply_workload(group, 1)
    assert autoscaler(adapter.team)["spec"]["maxReplicas"] == 5
    assert (await adapter.cluster.workload(group)).current


async def test_one_that_is_gone_is_made_again(adapter: Adapter) -> None:
    group = a_group(adapter)
    await adapter.cluster.apply_workload(group, 1)
    adapter.remove(HPA, NAME)
    assert await adapter.cluster.workload(group) == WorkloadSeen(1, 0, current=False)
    await adapter.cluster.apply_workload(group, 1)
    assert autoscaler(adapter.team)


async def test_somebody_elses_is_left_alone(adapter: Adapter) -> None:
    adapter.team.kubectl("create", "deployment", "other", "--image=other:1")
    adapter.team.kubectl("autoscale", "deployment", "other", f"--name={NAME}", "--max=3", "--cpu=80%")
    group = a_group(adapter)
    with pytest.raises(
        ChildNotOurs, match=f"HorizontalPodAutoscaler {NAME} exists and was not created by AgentStream"
    ):
        await adapter.cluster.apply_workload(group, 1)
    await adapter.cluster.delete_autoscaler(group.key)
    assert autoscaler(adapter.team)["spec"]["maxReplicas"] == 3


async def test_what_the_api_server_refuses_is_told(adapter: Adapter) -> None:
    group = a_group(adapter)
    await adapter.cluster.apply_workload(group, 1)
    wrong = group.spec.autoscaling.model_copy(update={"max_replicas": 0})
    spec = group.spec.model_copy(update={"autoscaling": wrong})
    with pytest.raises(ClusterRefused, match=f"the API server refused HorizontalPodAutoscaler {NAME}"):
        await adapter.cluster.apply_workload(group.model_copy(update={"spec": spec}), 1)


async def test_a_deployment_that_is_named_is_scaled_and_nothing_else(adapter: Adapter) -> None:
    adapter.team.kubectl("create", "deployment", "theirs", "--image=other:1", "--replicas=0")
    group = adapter.group(deploymentRef={"name": "theirs"}, autoscaling={"mode": "HPA"})
    assert await adapter.cluster.workload(group) == WorkloadSeen(0, 0, current=False)
    await adapter.cluster.apply_workload(group, 1)
    assert autoscaler(adapter.team)["spec"]["scaleTargetRef"]["name"] == "theirs"
    assert await adapter.cluster.workload(group) == WorkloadSeen(1, 0, autoscaler=WAITS)
    before = adapter.writes
    await adapter.cluster.apply_workload(group, 1)
    assert adapter.writes == before
    await adapter.cluster.apply_workload(group, 0)
    assert adapter.team.get("Deployment", "theirs")["spec"]["replicas"] == 0
