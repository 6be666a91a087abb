"""What is there on a real API server: listed page by page, and compared with what was told."""

from __future__ import annotations

import pytest

from agentstream_operator.cluster import api as module
from agentstream_operator.cluster.kinds import AGENTSTREAMS, PODS
from agentstream_operator.cluster.labels import OURS
from agentstream_operator.cluster.owned_objects import Change
from agentstream_operator.cluster.resource_cache import Resource, ResourceCache
from agentstream_operator.plan.observed import Gone
from agentstream_operator.reconcile.state.index import ResourceIndex
from agentstream_operator.resources.meta import ResourceKey
from cluster.adapter import Adapter
from support.waiting import until
from unit.resources.manifests import a_group, a_stream, a_template


class Known(ResourceIndex):
    """Who acts on resources; counts how often it was told of one."""

    told = 0

    def known(self, key: ResourceKey) -> Resource | None:
        return self.get(key)

    def put(self, resource: Resource) -> set[ResourceKey]:
        self.told += 1
        return super().put(resource)


def cache_of(adapter: Adapter, known: Known) -> ResourceCache:
    woken: list[Change] = []
    return ResourceCache(adapter.api, [adapter.team.namespace], adapter.owned, known, woken.append)


async def test_everything_is_listed_page_by_page(adapter: Adapter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PAGE", 3)
    adapter.team.create(*(a_stream(f"s{number}") for number in range(7)), a_group(streamRef={"name": "s0"}))
    known = Known()
    await cache_of(adapter, known).fill()
    assert {key.name for key in known.streams} == {f"s{number}" for number in range(7)}
    assert {key.name for key in known.groups} == {"coder"}
    assert adapter.api.requests["list", "agentstreams", 200] == 3


async def test_only_children_with_our_label_are_listed(adapter: Adapter) -> None:
    for name, labels in (("ours", {"agentstream.dev/group": "coder"}), ("other", None)):
        managed = {"app.kubernetes.io/managed-by": "agentstream"} if labels else {}
        metadata = {"name": name, "labels": {**managed, **(labels or {})}}
        spec = {"containers": [{"name": "a", "image": "a:1"}]}
        adapter.team.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    found = adapter.api.list(PODS, adapter.team.namespace, OURS)
    assert [pod["metadata"]["name"] async for pod in found] == ["ours"]


async def test_the_echo_of_a_status_is_known_by_its_version(adapter: Adapter) -> None:
    known = Known()
    adapter.team.create(a_stream())
    cache = cache_of(adapter, known)
    await cache.fill()
    adapter.team.change("AgentStream", "tasks", {"status": {"observedGeneration": 1}}, subresource="/status")
    found = adapter.team.get("AgentStream", "tasks")
    assert found is not None
    cache.tell(AGENTSTREAMS, "MODIFIED", found)
    adapter.team.annotate("AgentStream", "tasks", paused="true")
    found = adapter.team.get("AgentStream", "tasks")
    assert found is not None
    cache.tell(AGENTSTREAMS, "MODIFIED", found)
    assert known.told == 2


async def test_what_no_event_told_of_is_found_by_comparing(adapter: Adapter) -> None:
    known = Known()
    adapter.team.create(a_stream("edited"), a_stream("deleted"), a_stream("anew"))
    cache = cache_of(adapter, known)
    await cache.fill()
    adapter.team.change("AgentStream", "edited", {"spec": {"producers": ["boss"]}})
    adapter.team.delete("AgentStream", "deleted")
    adapter.team.delete("AgentStream", "anew")
    adapter.team.create(a_stream("anew"), a_group(template=a_template()))
    await cache.compare(grace=0)
    there = {(s["metadata"]["name"], s["metadata"]["uid"]) for s in adapter.team.list("AgentStream")}
    assert {(s.metadata.name, s.metadata.uid) for s in known.streams.values()} == there
    assert [s.spec.producers for s in known.streams.values() if s.spec.producers] == [("boss",)]
    assert {key.name for key in known.groups} == {"coder"}
    assert cache.missed == 4


async def test_children_that_vanished_without_an_event_are_found_by_comparing(adapter: Adapter) -> None:
    ours = {"app.kubernetes.io/managed-by": "agentstream", "agentstream.dev/group": "coder"}
    spec = {"containers": [{"name": "a", "image": "a:1"}]}
    for name in ("coder-consumer-5d4f-stays", "coder-consumer-5d4f-gone"):
        metadata = {"name": name, "labels": ours}
        adapter.team.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    woken: list[Change] = []
    namespace = adapter.team.namespace
    cache = ResourceCache(adapter.api, [namespace], adapter.owned, Known(), woken.append)
    await cache.fill()
    adapter.team.delete("Pod", "coder-consumer-5d4f-gone")
    await until(lambda: adapter.team.get("Pod", "coder-consumer-5d4f-gone") is None)
    await cache.compare(grace=0)
    coder = ResourceKey("ConsumerGroup", namespace, "coder")
    assert woken == [Change(group=coder, gone=Gone("coder-consumer-5d4f-gone"), deleted=True)]
    assert list(adapter.owned.alive(coder)) == ["coder-consumer-5d4f-stays"]
