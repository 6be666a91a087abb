"""Deployments on a real API server: groups' own, those that groups name, and what deleting pods costs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from agentstream_operator.cluster.api import Api, ApiError
from agentstream_operator.cluster.kinds import DEPLOYMENTS, ApiKind
from agentstream_operator.cluster.labels import GROUP_LABEL, MANAGED_BY
from agentstream_operator.cluster.pods import COST
from agentstream_operator.cluster.port import (
    ChildNotOurs,
    ClusterRefused,
    ClusterUnavailable,
    Pods,
    WorkloadSeen,
)
from agentstream_operator.cluster.workloads import DeploymentRefs
from cluster.adapter import Adapter, Json, adapter_of
from cluster.team import Team
from support.waiting import until
from unit.cluster.answers import answering, refuses, says
from unit.resources.manifests import a_template

NAME = "coder-consumer"


def there(team: Team) -> Json:
    """The Deployment of the group."""
    found = team.get("Deployment", NAME)
    assert found is not None
    return found


def image(team: Team) -> str:
    """What the Deployment runs."""
    found: str = there(team)["spec"]["template"]["spec"]["containers"][0]["image"]
    return found


def foreign(name: str = NAME) -> Json:
    """A Deployment that is somebody else's."""
    labels = {"app": "other"}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "replicas": 7,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"containers": [{"name": "other", "image": "other:1"}]},
            },
        },
    }


async def test_a_deployment_runs_as_soon_as_it_is_applied(adapter: Adapter) -> None:
    group = adapter.group(template=a_template())
    assert await adapter.cluster.workload(group) is None
    await adapter.cluster.apply_workload(group, 2)
    assert await adapter.cluster.workload(group) == WorkloadSeen(2, 0)
    assert (there(adapter.team)["spec"]["replicas"], image(adapter.team)) == (2, "coder:1")


async def test_what_is_as_it_should_be_is_not_written(adapter: Adapter) -> None:
    group = adapter.group(template=a_template())
    await adapter.cluster.apply_workload(group, 2)
    before = adapter.writes
    await adapter.cluster.apply_workload(group, 2)
    adapter.tell("Deployment", NAME)
    await adapter.cluster.apply_workload(group, 2)
    assert adapter.writes == before


async def test_after_a_restart_what_is_as_it_should_be_is_not_written(adapter: Adapter) -> None:
    group = adapter.group(template=a_template())
    await adapter.cluster.apply_workload(group, 2)
    async with adapter_of(adapter.team) as other:
        await other.listed()
        assert await other.cluster.workload(group) == WorkloadSeen(2, 0)
        await other.cluster.apply_workload(group, 2)
        assert other.writes == 0


async def test_another_number_or_template_is_applied(adapter: Adapter) -> None:
    await adapter.cluster.apply_workload(adapter.group(template=a_template()), 2)
    group = adapter.group(template=a_template(image="coder:2"))
    await adapter.cluster.apply_workload(group, 0)
    assert (there(adapter.team)["spec"]["replicas"], image(adapter.team)) == (0, "coder:2")
    assert await adapter.cluster.workload(group) == WorkloadSeen(0, 0)


async def test_what_somebody_edited_is_put_right(adapter: Adapter) -> None:
    group = adapter.group(template=a_template())
    await adapter.cluster.apply_workload(group, 1)
    adapter.team.kubectl("set", "image", f"deployment/{NAME}", "coder=other:1")
    adapter.tell("Deployment", NAME)
    assert await adapter.cluster.workload(group) == WorkloadSeen(1, 0, current=False)
    await adapter.cluster.apply_workload(group, 1)
    assert image(adapter.team) == "coder:1"
    assert await adapter.cluster.workload(group) == WorkloadSeen(1, 0)


async def test_what_was_edited_while_nobody_looked_is_put_right(adapter: Adapter) -> None:
    group = adapter.group(template=a_template())
    await adapter.cluster.apply_workload(group, 1)
    adapter.team.kubectl("set", "image", f"deployment/{NAME}", "coder=other:1")
    async with adapter_of(adapter.team) as other:
        await other.listed()
        await other.cluster.apply_workload(group, 1)
    assert image(adapter.team) == "coder:1"


async def test_what_others_add_stays(adapter: Adapter) -> None:
    group = adapter.group(template=a_template())
    await adapter.cluster.apply_workload(group, 1)
    adapter.team.kubectl("rollout", "restart", f"deployment/{NAME}")
    adapter.tell("Deployment", NAME)
    await adapter.cluster.apply_workload(group, 1)
    annotations = there(adapter.team)["spec"]["template"]["metadata"]["annotations"]
    assert "kubectl.kubernetes.io/restartedAt" in annotations


async def test_who_scaled_it_is_overruled(adapter: Adapter) -> None:
    group = adapter.group(template=a_template())
    await adapter.cluster.apply_workload(group, 1)
    adapter.team.kubectl("scale", f"deployment/{NAME}", "--replicas=5")
    adapter.tell("Deployment", NAME)
    seen = await adapter.cluster.workload(group)
    assert seen is not None
    assert seen.replicas == 5
    await adapter.cluster.apply_workload(group, 1)
    assert there(adapter.team)["spec"]["replicas"] == 1


async def test_one_that_was_deleted_and_made_again_by_somebody_is_put_right(adapter: Adapter) -> None:
    await adapter.cluster.apply_workload(adapter.group(template=a_template(image="coder:0")), 1)
    group = adapter.group(template=a_template())
    await adapter.cluster.apply_workload(group, 1)
    copy = there(adapter.team)
    for field in ("uid", "resourceVersion", "creationTimestamp", "generation", "managedFields"):
        copy["metadata"].pop(field)
    copy["spec"]["template"]["spec"]["containers"][0]["image"] = "other:1"
    adapter.remove("Deployment", NAME)
    adapter.team.create(copy)
    adapter.tell("Deployment", NAME)
    assert await adapter.cluster.workload(group) == WorkloadSeen(1, 0, current=False)
    await adapter.cluster.apply_workload(group, 1)
    assert image(adapter.team) == "coder:1"


async def test_one_that_was_made_unheard_is_taken_up(adapter: Adapter) -> None:
    group = adapter.group(template=a_template())
    async with adapter_of(adapter.team) as other:
        await other.cluster.apply_workload(group, 1)
    await adapter.cluster.apply_workload(group, 3)
    assert there(adapter.team)["spec"]["replicas"] == 3


async def test_one_that_was_deleted_unheard_is_made_again(adapter: Adapter) -> None:
    group = adapter.group(template=a_template())
    await adapter.cluster.apply_workload(group, 1)
    adapter.team.delete("Deployment", NAME)
    await adapter.cluster.apply_workload(group, 2)
    assert there(adapter.team)["spec"]["replicas"] == 2


async def test_a_deployment_of_somebody_else_is_left_alone(adapter: Adapter) -> None:
    adapter.team.create(foreign())
    group = adapter.group(template=a_template())
    with pytest.raises(
        ChildNotOurs, match=f"Deployment {NAME} exists and was not created by AgentStream: rename or delete"
    ):
        await adapter.cluster.apply_workload(group, 1)
    await adapter.cluster.delete_workload(group.key)
    assert there(adapter.team)["spec"]["replicas"] == 7


async def test_a_deployment_that_somebody_makes_at_the_same_moment_is_left_alone(
    adapter: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = adapter.group(template=a_template())
    get = Api.get

    async def get_before(api: Api, kind: ApiKind, namespace: str, name: str) -> Json | None:
        found = await get(api, kind, namespace, name)
        adapter.team.create(foreign())
        return found

    monkeypatch.setattr(Api, "get", get_before)
    with pytest.raises(
        ChildNotOurs, match=f"Deployment {NAME} has fields managed by another client: .*conflict"
    ):
        await adapter.cluster.apply_workload(group, 1)
    assert there(adapter.team)["spec"]["replicas"] == 7


@pytest.mark.parametrize(
    ("template", "why"),
    [
        (a_template(image=""), r"containers\[0\].image: Required value"),
        (a_template(resurces={}), r"resurces: field not declared in schema"),
        (a_template(env=[{"name": "A", "value": "1"}] * 2), r"duplicate entries for key"),
        (a_template(resources={"limits": {"cpu": "lots"}}), r"quantities must match the regular expression"),
        ({"spec": {**a_template()["spec"], "initContainers": "none"}}, r"initContainers: expected list"),
        ({"spec": {**a_template()["spec"], "contaners": []}}, r"contaners: field not declared in schema"),
        ({"spec": {**a_template()["spec"], "restartPolicy": "Never"}}, r"restartPolicy: Unsupported value"),
    ],
)
async def test_a_template_that_makes_no_sense_is_refused_in_the_servers_words(
    adapter: Adapter, template: Json, why: str
) -> None:
    group = adapter.group(template=template)
    with pytest.raises(ClusterRefused, match=f"the API server refused Deployment {NAME}: .*{why}"):
        await adapter.cluster.apply_workload(group, 1)
    assert await adapter.cluster.workload(group) is None


async def test_in_a_namespace_that_ends_no_deployment_is_made(adapter: Adapter) -> None:
    group = adapter.group(template=a_template())
    adapter.team.server.expect("DELETE", f"/api/v1/namespaces/{adapter.team.namespace}")
    await adapter.cluster.apply_workload(group, 1)
    assert adapter.team.list("Deployment") == []


async def test_a_deployment_is_deleted_once(adapter: Adapter) -> None:
    group = adapter.group(template=a_template())
    await adapter.cluster.apply_workload(group, 1)
    await adapter.cluster.delete_workload(group.key)
    assert adapter.team.get("Deployment", NAME) is None
    before = adapter.writes
    await adapter.cluster.delete_workload(group.key)
    assert adapter.writes == before


async def test_a_deletion_that_failed_is_done_at_the_next_try(
    adapter: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = adapter.group(template=a_template())
    await adapter.cluster.apply_workload(group, 1)

    async def fail(*_: Any) -> None:
        raise ClusterUnavailable("away")

    with monkeypatch.context() as patch:
        patch.setattr(Api, "delete", fail)
        with pytest.raises(ClusterUnavailable):
            await adapter.cluster.delete_workload(group.key)
    await adapter.cluster.delete_workload(group.key)
    assert adapter.team.get("Deployment", NAME) is None


async def test_pods_are_known_by_what_was_told_of_them(adapter: Adapter) -> None:
    group = adapter.group(template=a_template())
    assert await adapter.cluster.pods(group) == Pods(f"{NAME}-", frozenset())
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{NAME}-5f-x",
            "labels": {"app.kubernetes.io/managed-by": "agentstream", "agentstream.dev/group": "coder"},
        },
        "spec": {"containers": [{"name": "coder", "image": "coder:1"}]},
    }
    adapter.team.create(pod)
    await adapter.listed()
    assert await adapter.cluster.pods(group) == Pods(f"{NAME}-", frozenset({f"{NAME}-5f-x"}))


async def test_a_named_deployment_is_scaled_and_else_left_as_it_is(adapter: Adapter) -> None:
    adapter.team.create(foreign("mine"))
    group = adapter.group(deploymentRef={"name": "mine"}, replicas=3)
    assert await adapter.cluster.workload(group) == WorkloadSeen(7, 0)
    before = adapter.team.get("Deployment", "mine") or {}
    await adapter.cluster.apply_workload(group, 3)
    assert await adapter.cluster.workload(group) == WorkloadSeen(3, 0)
    after = adapter.team.get("Deployment", "mine") or {}
    assert after["spec"] == {**before["spec"], "replicas": 3}
    assert after["metadata"]["labels"] == before["metadata"]["labels"]
    assert "ownerReferences" not in after["metadata"]


async def test_a_named_deployment_that_is_not_there_is_not_made(adapter: Adapter) -> None:
    group = adapter.group(deploymentRef={"name": "mine"}, replicas=3)
    assert await adapter.cluster.workload(group) is None
    await adapter.cluster.apply_workload(group, 3)
    assert adapter.team.list("Deployment") == []


async def test_a_named_deployment_that_may_not_be_scaled_so_is_told_of(adapter: Adapter) -> None:
    adapter.team.create(foreign("mine"))
    group = adapter.group(deploymentRef={"name": "mine"}, replicas=3)
    with pytest.raises(
        ClusterRefused, match=r"the API server refused Deployment mine: .*must be greater than or equal"
    ):
        await adapter.cluster.apply_workload(group, -1)


async def test_the_deployment_of_another_group_cannot_be_named(adapter: Adapter) -> None:
    await adapter.cluster.apply_workload(adapter.group(template=a_template()), 1)
    group = adapter.group("thief", deploymentRef={"name": NAME}, replicas=3)
    with pytest.raises(ChildNotOurs, match=f"{NAME} was created for the ConsumerGroup coder"):
        await adapter.cluster.workload(group)


async def pods(adapter: Adapter, *names: str) -> None:
    """Makes pods of the group `coder`, and lets the adapter know of them."""
    labels = {"app.kubernetes.io/managed-by": "agentstream", "agentstream.dev/group": "coder"}
    spec = {"containers": [{"name": "coder", "image": "coder:1"}]}
    for name in names:
        adapter.team.create(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": name, "labels": labels, "finalizers": ["test.example/stay"]},
                "spec": spec,
            }
        )
    await adapter.listed()


def costs(adapter: Adapter) -> dict[str, str | None]:
    """What is said of each pod."""
    found = adapter.team.list("Pod")
    return {pod["metadata"]["name"]: pod["metadata"].get("annotations", {}).get(COST) for pod in found}


async def test_only_what_changes_is_written(adapter: Adapter) -> None:
    group = adapter.group(template=a_template())
    await pods(adapter, "a", "b", "c")
    before = adapter.writes
    await adapter.cluster.set_deletion_costs(group, {"a": 4, "b": 1, "gone": 9})
    assert costs(adapter) == {"a": "3", "b": "1", "c": None}
    assert adapter.writes == before + 2
    await adapter.listed()
    await adapter.cluster.set_deletion_costs(group, {"a": 7})
    assert costs(adapter) == {"a": "3", "b": "0", "c": None}
    assert adapter.writes == before + 3


async def test_of_a_pod_that_leaves_nothing_is_said(adapter: Adapter) -> None:
    group = adapter.group(template=a_template())
    await pods(adapter, "a", "b")
    adapter.team.delete("Pod", "a")
    await adapter.listed()
    await adapter.cluster.set_deletion_costs(group, {"a": 1, "b": 1})
    assert costs(adapter) == {"a": None, "b": "1"}


async def test_what_a_template_says_stays(adapter: Adapter) -> None:
    template = {**a_template(), "metadata": {"annotations": {COST: "7"}}}
    await pods(adapter, "a")
    before = adapter.writes
    await adapter.cluster.set_deletion_costs(adapter.group(template=template), {"a": 1})
    await adapter.cluster.set_deletion_costs(adapter.group("other", deploymentRef={"name": "mine"}), {"a": 1})
    assert adapter.writes == before


async def test_a_pod_that_has_just_gone_is_nobodys_business(adapter: Adapter) -> None:
    group = adapter.group(template=a_template())
    await pods(adapter, "a", "b")
    adapter.team.change("Pod", "a", {"metadata": {"finalizers": None}})
    adapter.team.kubectl("delete", "pod", "a", "--force", "--grace-period=0")
    await adapter.cluster.set_deletion_costs(group, {"a": 1, "b": 1})
    assert costs(adapter) == {"b": "1"}


async def test_a_refusal_is_told_of(adapter: Adapter, monkeypatch: pytest.MonkeyPatch) -> None:
    group = adapter.group(template=a_template())
    await pods(adapter, "a")

    async def forbid(*_: Any) -> None:
        raise ApiError(403, "pods is forbidden")

    monkeypatch.setattr(Api, "merge", forbid)
    with pytest.raises(ApiError, match="pods is forbidden"):
        await adapter.cluster.set_deletion_costs(group, {"a": 1})


@pytest.fixture
async def watching(adapter: Adapter, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[DeploymentRefs]:
    """References that are looked at all the time."""
    monkeypatch.setattr("agentstream_operator.cluster.workloads._READ_EVERY", 0.01)
    watch = asyncio.create_task(adapter.deployment_refs.watch())
    yield adapter.deployment_refs
    assert not watch.done()
    watch.cancel()
    await asyncio.gather(watch, return_exceptions=True)


def a_deployment(replicas: int | None = 2) -> Json:
    """Somebody's Deployment."""
    labels = {"app": "mine"}
    spec = {
        "selector": {"matchLabels": labels},
        "template": {
            "metadata": {"labels": labels},
            "spec": {"containers": [{"name": "mine", "image": "mine:1"}]},
        },
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "mine"},
        "spec": spec if replicas is None else {**spec, "replicas": replicas},
    }


async def seen(adapter: Adapter) -> WorkloadSeen | None:
    return await adapter.deployment_refs.workload((adapter.team.namespace, "mine"))


async def shows(adapter: Adapter, replicas: int) -> bool:
    workload = await seen(adapter)
    return workload is not None and workload.replicas == replicas


def looks(adapter: Adapter) -> int:
    """How often a Deployment was read."""
    return sum(
        n for (verb, kind, _), n in adapter.api.requests.items() if (verb, kind) == ("get", "deployments")
    )


async def test_a_deployment_is_shown_as_it_runs(adapter: Adapter) -> None:
    adapter.team.create(a_deployment())
    adapter.team.change(
        "Deployment", "mine", {"status": {"replicas": 2, "readyReplicas": 1}}, subresource="/status"
    )
    assert await seen(adapter) == WorkloadSeen(2, 1)


async def test_what_is_known_is_not_asked_for_again(adapter: Adapter) -> None:
    for _ in range(3):
        assert await seen(adapter) is None
    assert looks(adapter) == 1


async def test_a_change_shows_after_a_while(adapter: Adapter, watching: DeploymentRefs) -> None:
    adapter.team.create(a_deployment())
    assert await shows(adapter, 2)
    adapter.team.kubectl("scale", "deployment/mine", "--replicas=5")
    await until(lambda: shows(adapter, 5))


async def test_one_that_comes_and_goes_is_noticed(adapter: Adapter, watching: DeploymentRefs) -> None:
    assert await seen(adapter) is None
    adapter.team.create(a_deployment())
    await until(lambda: shows(adapter, 2))
    adapter.team.delete("Deployment", "mine")

    async def gone() -> bool:
        return await seen(adapter) is None

    await until(gone)


async def test_where_nobody_asks_any_more_nobody_looks(adapter: Adapter, watching: DeploymentRefs) -> None:
    adapter.team.create(a_deployment())
    await seen(adapter)
    await until(lambda: not watching._seen)
    before = looks(adapter)
    assert await shows(adapter, 2)
    assert looks(adapter) == before + 1


async def test_a_number_that_was_set_shows_at_once(adapter: Adapter) -> None:
    adapter.team.create(a_deployment())
    await adapter.deployment_refs.scale((adapter.team.namespace, "mine"), 4)
    assert await shows(adapter, 4)


async def test_one_that_is_gone_when_it_is_to_be_scaled_shows_so(adapter: Adapter) -> None:
    adapter.team.create(a_deployment())
    assert await shows(adapter, 2)
    adapter.team.delete("Deployment", "mine")
    with pytest.raises(ApiError) as refused:
        await adapter.deployment_refs.scale((adapter.team.namespace, "mine"), 4)
    assert refused.value.code == 404
    assert await seen(adapter) is None


async def test_one_that_another_group_took_over_is_left_alone(
    adapter: Adapter, watching: DeploymentRefs
) -> None:
    adapter.team.create(a_deployment())
    assert await shows(adapter, 2)
    labels = {MANAGED_BY: "agentstream", GROUP_LABEL: "other"}
    adapter.team.change("Deployment", "mine", {"metadata": {"labels": labels}})

    async def refused() -> str | None:
        try:
            await seen(adapter)
        except ChildNotOurs as error:
            return str(error)
        return None

    assert (
        await until(refused)
        == "Deployment mine was created for the ConsumerGroup other; name another Deployment"
    )


async def test_one_that_cannot_be_read_is_asked_for_again(
    own_team: Team, caplog: pytest.LogCaptureFixture
) -> None:
    found = {"metadata": {"labels": {}}, "spec": {}}
    async with answering(refuses(403, "deployments is forbidden"), says(200, found)) as server:
        adapter = Adapter(server.api, own_team)
        with pytest.raises(ClusterUnavailable, match="deployments is forbidden"):
            await seen(adapter)
        assert f"cannot read Deployment {own_team.namespace}/mine: deployments is" in caplog.text
        assert await seen(adapter) == WorkloadSeen(1, 0)


async def test_it_goes_on_looking_while_the_api_server_is_away(
    own_team: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentstream_operator.cluster.workloads._READ_EVERY", 0.01)

    def one(replicas: int) -> Json:
        return {"metadata": {}, "spec": {"replicas": replicas}}

    async with answering(says(200, one(1)), refuses(503, "busy"), says(200, one(2))) as server:
        adapter = Adapter(server.api, own_team)
        assert await shows(adapter, 1)
        watch = asyncio.create_task(adapter.deployment_refs.watch())
        await until(lambda: shows(adapter, 2))
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)
    assert DEPLOYMENTS.path(own_team.namespace, "mine") == server.asked[0].path
