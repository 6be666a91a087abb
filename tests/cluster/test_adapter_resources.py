"""What is read and written of resources of ours on a real API server: lists, statuses, events."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any

import pytest

from agentstream_operator.cluster import api as module
from agentstream_operator.cluster.api import Api, ApiError
from agentstream_operator.cluster.kinds import AGENTSTREAMS, PODS, ApiKind
from agentstream_operator.cluster.kubernetes import set_finalizer
from agentstream_operator.cluster.labels import OURS
from agentstream_operator.cluster.owned_objects import Change
from agentstream_operator.cluster.port import ClusterRefused, ClusterUnavailable, Event, Owner
from agentstream_operator.cluster.resource_cache import ResourceCache
from agentstream_operator.plan.observed import Gone
from agentstream_operator.reconcile.state.index import ResourceIndex
from agentstream_operator.resources.meta import FINALIZER, ResourceKey
from agentstream_operator.resources.parse import AnyResource
from agentstream_operator.resources.status import (
    AgentStreamStatus,
    Condition,
    ConditionReason,
    ConditionType,
    ConsumerGroupStatus,
)
from cluster.adapter import Adapter, Json
from cluster.team import Team
from support.waiting import until
from unit.cluster.answers import Answer, answering, refuses, says
from unit.resources.manifests import a_group, a_stream, a_template

READY = Condition(
    type=ConditionType.READY,
    status="True",
    reason=ConditionReason.READY,
    message="",
    observed_generation=1,
    last_transition_time=datetime(2026, 1, 1, tzinfo=UTC),
)
STATUS = AgentStreamStatus(observed_generation=1, conditions=(READY,), length=7)


def stream(team: Team) -> Json:
    """The AgentStream."""
    found = team.get("AgentStream", "tasks")
    assert found is not None
    return found


def finalizers(team: Team) -> list[str]:
    """Those of the AgentStream."""
    found: list[str] = stream(team)["metadata"].get("finalizers", [])
    return found


def another(owner: Owner) -> Owner:
    """One of the same name."""
    return owner._replace(uid="00000000-0000-0000-0000-000000000000")


async def test_a_status_is_written_whole(adapter: Adapter) -> None:
    await adapter.cluster.write_status(adapter.owner(), STATUS)
    written = stream(adapter.team)["status"]
    assert (written["observedGeneration"], written["length"]) == (1, 7)
    assert [(c["type"], c["status"]) for c in written["conditions"]] == [("Ready", "True")]
    await adapter.cluster.write_status(adapter.owner(), AgentStreamStatus(observed_generation=2))
    assert stream(adapter.team)["status"] == {"conditions": [], "observedGeneration": 2}


async def test_a_status_of_a_group_is_written_to_the_group(adapter: Adapter) -> None:
    status = ConsumerGroupStatus(observed_generation=1, backlog=3)
    await adapter.cluster.write_status(adapter.owner("ConsumerGroup", "coder"), status)
    found = adapter.team.get("ConsumerGroup", "coder")
    assert found is not None
    assert found["status"]["backlog"] == 3


async def test_the_same_status_again_changes_nothing(adapter: Adapter) -> None:
    owner = adapter.owner()
    await adapter.cluster.write_status(owner, STATUS)
    before = stream(adapter.team)["metadata"]["resourceVersion"]
    await adapter.cluster.write_status(owner, STATUS)
    assert stream(adapter.team)["metadata"]["resourceVersion"] == before


async def test_a_resource_made_anew_does_not_get_the_status_of_another(adapter: Adapter) -> None:
    await adapter.cluster.write_status(another(adapter.owner()), STATUS)
    assert stream(adapter.team)["status"] == {"observedGeneration": -1}


async def test_a_status_makes_no_resource(adapter: Adapter) -> None:
    owner = adapter.owner()
    adapter.team.delete("AgentStream", "tasks")
    await adapter.cluster.write_status(owner, STATUS)
    assert adapter.team.list("AgentStream") == []


async def test_a_status_that_is_refused_is_told_of(own_team: Team) -> None:
    async with answering(refuses(422, "length: must be a number", "FieldValueInvalid")) as server:
        adapter = Adapter(server.api, own_team)
        with pytest.raises(ClusterRefused, match=r"refused the status of AgentStream .*/tasks: .*length"):
            await adapter.cluster.write_status(adapter.owner(), STATUS)


OTHER = "example.com/other"


@pytest.mark.parametrize("before", [[], [OTHER]])
async def test_a_finalizer_comes_and_goes_among_those_of_others(adapter: Adapter, before: list[str]) -> None:
    owner = adapter.owner()
    adapter.team.change("AgentStream", "tasks", {"metadata": {"finalizers": before}})
    await adapter.cluster.set_finalizer(owner, present=True)
    assert finalizers(adapter.team) == [*before, FINALIZER]
    await adapter.cluster.set_finalizer(owner, present=False)
    assert finalizers(adapter.team) == before
    adapter.team.change("AgentStream", "tasks", {"metadata": {"finalizers": None}})


@pytest.mark.parametrize("present", [True, False])
async def test_a_finalizer_that_is_as_wanted_is_not_written(adapter: Adapter, *, present: bool) -> None:
    owner = adapter.owner()
    await set_finalizer(adapter.api, owner, present=present)
    before = adapter.writes
    await set_finalizer(adapter.api, owner, present=present)
    assert adapter.writes == before


async def test_a_resource_made_anew_keeps_its_finalizers(adapter: Adapter) -> None:
    owner = adapter.owner()
    await set_finalizer(adapter.api, owner, present=True)
    await set_finalizer(adapter.api, another(owner), present=False)
    assert finalizers(adapter.team) == [FINALIZER]


async def test_what_is_gone_needs_no_finalizer(adapter: Adapter) -> None:
    owner = adapter.owner()
    adapter.team.delete("AgentStream", "tasks")
    await set_finalizer(adapter.api, owner, present=True)
    assert adapter.team.list("AgentStream") == []


async def test_what_is_being_deleted_gets_no_finalizer_and_loses_it(adapter: Adapter) -> None:
    owner = adapter.owner()
    adapter.team.change("AgentStream", "tasks", {"metadata": {"finalizers": [FINALIZER, OTHER]}})
    adapter.team.delete("AgentStream", "tasks")
    await set_finalizer(adapter.api, owner, present=False)
    assert finalizers(adapter.team) == [OTHER]
    await set_finalizer(adapter.api, owner, present=True)
    assert finalizers(adapter.team) == [OTHER]
    adapter.team.change("AgentStream", "tasks", {"metadata": {"finalizers": None}})


def changing(adapter: Adapter, monkeypatch: pytest.MonkeyPatch, times: int, patch: Json | None) -> None:
    """Lets somebody change the AgentStream, or delete it, after each of the next looks at it."""
    get, left = Api.get, iter(range(times))

    async def get_before(api: Api, kind: ApiKind, namespace: str, name: str) -> Any:
        found = await get(api, kind, namespace, name)
        if (number := next(left, None)) is not None:
            if patch is None:
                adapter.team.delete("AgentStream", "tasks")
            else:
                changed = {"metadata": {"annotations": {"example.com/changed": str(number)}}}
                adapter.team.change("AgentStream", "tasks", changed)
        return found

    monkeypatch.setattr(Api, "get", get_before)


async def test_a_change_at_the_same_moment_loses_nothing(
    adapter: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = adapter.owner()
    changing(adapter, monkeypatch, 4, {})
    await set_finalizer(adapter.api, owner, present=True)
    assert finalizers(adapter.team) == [FINALIZER]
    assert stream(adapter.team)["metadata"]["annotations"] == {"example.com/changed": "3"}


async def test_a_resource_that_never_rests_is_tried_again_later(
    adapter: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = adapter.owner()
    changing(adapter, monkeypatch, 5, {})
    with pytest.raises(ClusterUnavailable, match=r"finalizer of AgentStream .*/tasks: 5 conflicts"):
        await set_finalizer(adapter.api, owner, present=True)


async def test_a_resource_that_goes_at_the_same_moment_needs_no_finalizer(
    adapter: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = adapter.owner()
    changing(adapter, monkeypatch, 1, None)
    await set_finalizer(adapter.api, owner, present=True)
    assert adapter.team.list("AgentStream") == []


async def test_a_finalizer_that_may_not_be_written_is_told_of(adapter: Adapter) -> None:
    owner, found = adapter.owner(), stream(adapter.team)
    async with answering(says(200, found), refuses(403, "you may not")) as server:
        with pytest.raises(ApiError, match="you may not"):
            await set_finalizer(server.api, owner, present=True)


def happened(adapter: Adapter, reason: ConditionReason = ConditionReason.DATA_LOST, **more: Any) -> Event:
    """Something that happened to the AgentStream."""
    owner = adapter.owner()
    return Event(owner.key, reason, **{"message": "7 messages are gone", "uid": owner.uid, **more})


async def test_an_event_is_shown_with_its_resource(adapter: Adapter) -> None:
    await adapter.cluster.emit(happened(adapter, warning=True))
    (event,) = adapter.team.list("Event")
    assert (event["reason"], event["message"], event["type"]) == (
        "DataLost",
        "7 messages are gone",
        "Warning",
    )
    assert event["involvedObject"]["uid"] == stream(adapter.team)["metadata"]["uid"]
    assert (event["source"]["component"], event["reportingInstance"]) == ("agentstream", "agentstream-0")
    shown = adapter.team.kubectl("describe", "agentstream", "tasks")
    assert "7 messages are gone" in shown


async def test_what_is_no_trouble_is_no_warning(adapter: Adapter) -> None:
    await adapter.cluster.emit(happened(adapter, ConditionReason.SCALED_UP))
    (event,) = adapter.team.list("Event")
    assert event["type"] == "Normal"


async def test_two_events_of_a_moment_are_two(adapter: Adapter) -> None:
    for _ in range(2):
        await adapter.cluster.emit(happened(adapter))
    assert len(adapter.team.list("Event")) == 2


async def test_a_long_story_is_cut(adapter: Adapter) -> None:
    await adapter.cluster.emit(happened(adapter, message="x" * 5000))
    (event,) = adapter.team.list("Event")
    assert event["message"] == "x" * 1024


@pytest.mark.parametrize("reason", [ConditionReason.STREAM_CREATED, ConditionReason.GROUP_CREATED])
async def test_the_ordinary_is_only_logged(
    adapter: Adapter, reason: ConditionReason, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        await adapter.cluster.emit(happened(adapter, reason, message="made it"))
    assert adapter.team.list("Event") == []
    assert f"/tasks: {reason}: made it" in caplog.text


@pytest.mark.parametrize("answer", [refuses(403, "no events here"), refuses(503, "busy")])
async def test_an_event_that_cannot_be_written_stops_nothing(
    own_team: Team, answer: Answer, caplog: pytest.LogCaptureFixture
) -> None:
    async with answering(answer) as server:
        adapter = Adapter(server.api, own_team)
        with caplog.at_level(logging.INFO):
            await adapter.cluster.emit(happened(adapter))
    assert "could not write the event: " in caplog.text


class Known(ResourceIndex):
    """Who acts on resources; counts how often it was told of one."""

    told = 0

    def known(self, key: ResourceKey) -> AnyResource | None:
        return self.get(key)

    def put(self, resource: AnyResource) -> set[ResourceKey]:
        self.told += 1
        return super().put(resource)


def cache_of(adapter: Adapter, known: Known) -> ResourceCache:
    woken: list[Change] = []
    return ResourceCache(adapter.api, [adapter.team.namespace], adapter.owned, known, woken.append)


async def test_everything_is_listed_page_by_page(adapter: Adapter, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in ("_FIRST_PAGE", "_MOST"):
        monkeypatch.setattr(module, limit, 3)
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
