"""The end of an installation on a real API server: the operator stopped, and all finalizers gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agentstream_operator.cluster import uninstall as module
from agentstream_operator.cluster.api import Api, ApiError
from agentstream_operator.cluster.connect import NoCluster
from agentstream_operator.cluster.kinds import ApiKind
from agentstream_operator.cluster.port import ClusterUnavailable
from agentstream_operator.cluster.uninstall import uninstall
from agentstream_operator.resources.meta import FINALIZER
from cluster.adapter import Json
from cluster.team import Team
from support.waiting import until
from unit.resources.manifests import a_group, a_stream

LOADER = "kubernetes.aio.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION"
OTHER = "example.com/other"


@pytest.fixture(autouse=True)
def access(own_team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connects as the administrator, in the namespace of the test."""
    monkeypatch.setattr(LOADER, str(own_team.server.kubeconfig))
    monkeypatch.setenv("POD_NAMESPACE", own_team.namespace)
    monkeypatch.setattr(module, "_LOOK_EVERY", 0.01)


@pytest.fixture
async def elsewhere(own_team: Team) -> AsyncIterator[Team]:
    """A second namespace."""
    other = Team(own_team.server, f"{own_team.namespace}-else")
    own_team.server.create_namespace(other.namespace)
    yield other
    for kind in ("AgentStream", "ConsumerGroup"):
        for found in other.list(kind):
            other.change(kind, found["metadata"]["name"], {"metadata": {"finalizers": None}})


def held(manifest: Json, *finalizers: str) -> Json:
    """A resource with finalizers."""
    metadata = {**manifest["metadata"], "finalizers": list(finalizers)}
    return {**manifest, "metadata": metadata}


def finalizers(team: Team) -> dict[str, list[str]]:
    """Those of all resources of a namespace, by their names."""
    return {
        found["metadata"]["name"]: found["metadata"].get("finalizers", [])
        for kind in ("AgentStream", "ConsumerGroup")
        for found in team.list(kind)
    }


async def test_our_finalizers_go_and_those_of_others_stay(own_team: Team, elsewhere: Team) -> None:
    own_team.create(held(a_stream("a"), FINALIZER), held(a_stream("b"), OTHER, FINALIZER), a_stream("c"))
    own_team.create(held(a_group("d"), FINALIZER))
    elsewhere.create(held(a_stream("e"), FINALIZER))
    assert await uninstall([own_team.namespace], None) == 3
    assert finalizers(own_team) == {"a": [], "b": [OTHER], "c": [], "d": []}
    assert finalizers(elsewhere) == {"e": [FINALIZER]}
    assert await uninstall([own_team.namespace, elsewhere.namespace], None) == 1
    own_team.change("AgentStream", "b", {"metadata": {"finalizers": None}})


async def test_without_namespaces_it_looks_everywhere(
    own_team: Team, elsewhere: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_team.create(held(a_stream("a"), FINALIZER))
    elsewhere.create(held(a_stream("e"), FINALIZER))
    everything = Api.list

    async def hiding_other_tests(api: Api, kind: ApiKind, namespace: str | None) -> AsyncIterator[Json]:
        async for found in everything(api, kind, namespace):
            if found["metadata"]["namespace"] in {own_team.namespace, elsewhere.namespace}:
                yield found

    monkeypatch.setattr(Api, "list", hiding_other_tests)
    assert await uninstall(None, None) == 2
    assert (finalizers(own_team), finalizers(elsewhere)) == ({"a": []}, {"e": []})


async def test_what_is_being_deleted_is_let_go(own_team: Team) -> None:
    own_team.create(held(a_stream("a"), FINALIZER))
    own_team.delete("AgentStream", "a")
    assert await uninstall([own_team.namespace], None) == 1
    assert own_team.list("AgentStream") == []


async def test_where_the_crds_are_gone_there_is_nothing_to_do(
    own_team: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WITH_FINALIZERS", [ApiKind("agentstream.dev/v1", "Ghost", "ghosts")])
    assert await uninstall([own_team.namespace], None) == 0


async def test_a_list_that_is_refused_is_told_of(
    own_team: Team, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_team.kubectl("create", "serviceaccount", "nobody")
    kubeconfig = own_team.server.access_of(own_team.namespace, "nobody", tmp_path / "kubeconfig")
    monkeypatch.setattr(LOADER, str(kubeconfig))
    with pytest.raises(ApiError, match="cannot list resource"):
        await uninstall([own_team.namespace], None)


async def test_without_a_cluster_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LOADER, str(tmp_path / "missing"))
    with pytest.raises(NoCluster, match="set KUBECONFIG"):
        await uninstall(None, None)


def operator() -> Json:
    """The operator's Deployment."""
    labels = {"app": "operator"}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "operator"},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"containers": [{"name": "operator", "image": "operator:1"}]},
            },
        },
    }


def report(team: Team, generation: int, replicas: int) -> None:
    """Does what a controller does: says how many pods there are."""
    status = {"observedGeneration": generation, "replicas": replicas}
    team.change("Deployment", "operator", {"status": status}, subresource="/status")


def generation(team: Team) -> int:
    """Counts the changes of the Deployment's spec."""
    found = team.get("Deployment", "operator")
    assert found is not None
    count: int = found["metadata"]["generation"]
    return count


async def looks(team: Team, count: int = 2) -> None:
    """Waits until the Deployment has been looked at a few more times."""
    position = team.server.position

    def looked() -> bool:
        requests = team.server.requests_since(position)
        return sum(r.verb == "get" and r.name == "operator" for r in requests) >= count

    await until(looked)


async def test_finalizers_go_only_after_the_operator_is_gone(own_team: Team) -> None:
    own_team.create(operator(), held(a_stream("a"), FINALIZER))
    report(own_team, generation(own_team), 2)
    retiring = asyncio.create_task(uninstall([own_team.namespace], "operator"))
    await until(lambda: (own_team.get("Deployment", "operator") or {})["spec"]["replicas"] == 0)
    # the controller has not seen that yet
    await looks(own_team)
    report(own_team, generation(own_team), 1)
    await looks(own_team)
    assert finalizers(own_team) == {"a": [FINALIZER]}
    report(own_team, generation(own_team), 0)
    assert await retiring == 1


async def test_zero_pods_of_before_the_change_do_not_count(own_team: Team) -> None:
    own_team.create(operator())
    report(own_team, generation(own_team), 0)
    retiring = asyncio.create_task(uninstall([own_team.namespace], "operator"))
    await looks(own_team, 4)
    assert not retiring.done()
    report(own_team, generation(own_team), 0)
    await retiring


async def test_an_operator_that_is_deleted_meanwhile_is_gone(own_team: Team) -> None:
    own_team.create(operator())
    retiring = asyncio.create_task(uninstall([own_team.namespace], "operator"))
    await looks(own_team)
    own_team.delete("Deployment", "operator")
    assert await retiring == 0


async def test_without_the_operators_deployment_there_is_none_to_stop(own_team: Team) -> None:
    own_team.create(held(a_stream("a"), FINALIZER))
    assert await uninstall([own_team.namespace], "operator") == 1


async def test_an_operator_that_does_not_end_keeps_its_finalizers(
    own_team: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_WITHIN", 0.1)
    own_team.create(operator(), held(a_stream("a"), FINALIZER))
    with pytest.raises(ClusterUnavailable, match=f"Deployment {own_team.namespace}/operator still has pods"):
        await uninstall([own_team.namespace], "operator")
    assert finalizers(own_team) == {"a": [FINALIZER]}
    own_team.change("AgentStream", "a", {"metadata": {"finalizers": None}})
