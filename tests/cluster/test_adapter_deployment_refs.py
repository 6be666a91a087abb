"""Deployments that ConsumerGroups name, on a real API server: how they run, as long as somebody asks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from agentstream_operator.cluster.api import ApiError
from agentstream_operator.cluster.kinds import DEPLOYMENTS
from agentstream_operator.cluster.labels import GROUP_LABEL, MANAGED_BY
from agentstream_operator.cluster.port import ChildNotOurs, ClusterUnavailable, WorkloadSeen
from agentstream_operator.cluster.workloads import DeploymentRefs
from cluster.adapter import Adapter, Json
from cluster.team import Team
from support.waiting import until
from unit.cluster.answers import answering, refuses, says


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
