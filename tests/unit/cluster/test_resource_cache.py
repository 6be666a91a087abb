"""What is passed on of what is there: by the list at the start, by events, and by comparing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from agentstream_operator.cluster.api import ApiError
from agentstream_operator.cluster.kinds import AGENTSTREAMS, DEPLOYMENTS, OWNED_KINDS, PODS, SECRETS, ApiKind
from agentstream_operator.cluster.labels import OURS
from agentstream_operator.cluster.owned_objects import Change, OwnedObjects
from agentstream_operator.cluster.port import ClusterUnavailable, Unreadable
from agentstream_operator.cluster.resource_cache import ResourceCache, is_same
from agentstream_operator.plan.observed import Gone
from agentstream_operator.resources.meta import FINALIZER, ResourceKey
from agentstream_operator.resources.parse import AnyResource, parse_resource
from support.clock import run_virtually
from unit.cluster.objects import Json, a_deployment, a_pod, a_resource, a_secret

TASKS, DOOMED = (ResourceKey("AgentStream", "team", name) for name in ("tasks", "doomed"))
CODER = ResourceKey("ConsumerGroup", "team", "coder")


@dataclass
class Known:
    """Who acts on resources: remembers them, and in which order it was told of what."""

    resources: dict[ResourceKey, AnyResource] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)

    def known(self, key: ResourceKey) -> AnyResource | None:
        return self.resources.get(key)

    def put(self, resource: AnyResource) -> None:
        self.resources[resource.key] = resource
        self.told.append(f"put {resource.metadata.name}")

    def remove(self, key: ResourceKey) -> None:
        self.resources.pop(key, None)
        self.told.append(f"remove {key.name}")

    def unreadable(self, found: Unreadable) -> None:
        self.told.append(f"unreadable {found.owner.key.name}")


@dataclass
class There:
    """The API server as far as it is asked: what is there, by kind and place.

    Attributes:
        objects: what is there.
        asked: which lists were asked for, and which objects.
        meanwhile: happens after each list.
        refuses: what lists are answered by, one after the other.
    """

    objects: dict[tuple[str, str, str], Json] = field(default_factory=dict)
    asked: list[tuple[str, ...]] = field(default_factory=list)
    meanwhile: Callable[[], None] = lambda: None
    refuses: list[Exception] = field(default_factory=list)

    def put(self, *found: Json) -> None:
        for each in found:
            metadata = each["metadata"]
            self.objects[each["kind"], metadata["namespace"], metadata["name"]] = each

    def drop(self, key: ResourceKey) -> None:
        del self.objects[key]

    async def list(self, kind: ApiKind, namespace: str | None, selector: str = "") -> AsyncIterator[Json]:
        self.asked.append((kind.plural, namespace or "", selector))
        if self.refuses:
            raise self.refuses.pop()
        found = [
            each
            for (its_kind, its_namespace, _), each in self.objects.items()
            if its_kind == kind.kind and namespace in {None, its_namespace}
        ]
        self.meanwhile()
        for each in found:
            yield each

    async def get(self, kind: ApiKind, namespace: str, name: str) -> Json | None:
        self.asked.append((kind.plural, namespace, name))
        return self.objects.get((kind.kind, namespace, name))


class Watched:
    """An cache with all around it.

    Attributes:
        there: what the API server has.
        reconciler: who acts on resources.
        woken: whom changes of children concerned.
    """

    def __init__(self, *found: Json, namespaces: list[str] | None = None) -> None:
        self.there, self.reconciler, self.owned = There(), Known(), OwnedObjects()
        self.woken: list[Change] = []
        self.there.put(*found)
        api: Any = self.there
        self.cache = ResourceCache(api, namespaces, self.owned, self.reconciler, self.woken.append)

    def change(self, *found: Json, kind: ApiKind = AGENTSTREAMS) -> None:
        """Objects change, and events tell of it."""
        self.there.put(*found)
        for each in found:
            self.cache.tell(kind, "MODIFIED", each)


def deleting(found: Json) -> Json:
    """A resource that is being deleted."""
    return {**found, "metadata": {**found["metadata"], "deletionTimestamp": "2026-01-01T00:00:00Z"}}


WRONG = {"retention": {"minAge": "soon"}}


async def test_everything_is_listed_once_children_before_resources() -> None:
    watched = Watched(a_resource(), a_resource("ConsumerGroup", "coder"), a_secret(), a_deployment(), a_pod())
    await watched.cache.fill()
    assert watched.there.asked == [
        ("secrets", "", OURS),
        ("deployments", "", OURS),
        ("pods", "", OURS),
        ("horizontalpodautoscalers", "", OURS),
        ("agentstreams", "", ""),
        ("consumergroups", "", ""),
        ("streamreplays", "", ""),
    ]
    assert watched.reconciler.told == ["put tasks", "put coder"]
    assert (len(watched.owned.secrets), len(watched.owned.deployments)) == (1, 1)
    assert set(watched.owned.alive(CODER)) == {"a"}
    # nobody is there yet to be woken
    assert watched.woken == []


async def test_only_the_watched_namespaces_are_listed() -> None:
    other = a_resource(name="other", namespace="elsewhere")
    watched = Watched(a_resource(), other, namespaces=["team", "more"])
    await watched.cache.fill()
    assert {namespace for _, namespace, _ in watched.there.asked} == {"team", "more"}
    assert watched.reconciler.told == ["put tasks"]


async def test_a_list_that_failed_can_be_asked_for_again() -> None:
    watched = Watched(a_resource(), a_secret())
    watched.there.refuses = [ClusterUnavailable("no answer")]
    with pytest.raises(ClusterUnavailable):
        await watched.cache.fill()
    await watched.cache.fill()
    assert watched.reconciler.told == ["put tasks"]


async def test_what_came_changed_or_went_while_nothing_was_watched_is_taken_and_not_missed() -> None:
    watched = Watched(a_resource(), a_resource(name="doomed"), a_resource("ConsumerGroup", "coder"), a_pod())
    await watched.cache.fill()
    watched.reconciler.told.clear()
    watched.there.drop(DOOMED)
    del watched.there.objects["Pod", "team", "a"]
    watched.there.put(a_resource(generation=2, version=50), a_resource(name="fresh", version=51))
    await watched.cache.refill()
    assert sorted(watched.reconciler.told) == ["put fresh", "put tasks", "remove doomed"]
    assert [change.gone for change in watched.woken if change.gone] == [Gone("a")]
    assert watched.cache.missed == watched.cache.missed_lately == 0
    watched.reconciler.told.clear()
    await watched.cache.refill()
    assert watched.reconciler.told == []


async def test_what_the_watches_tell_of_at_the_start_is_known_already() -> None:
    watched = Watched(a_resource(), a_secret())
    await watched.cache.fill()
    watched.cache.tell(AGENTSTREAMS, None, a_resource())
    watched.cache.tell(SECRETS, None, a_secret())
    assert watched.reconciler.told == ["put tasks"]
    assert watched.woken == []
    assert +watched.cache.events == {"agentstreams": 1, "secrets": 1}


def test_resources_are_put_in_as_they_come_and_taken_out_as_they_go() -> None:
    watched = Watched()
    watched.cache.tell(AGENTSTREAMS, "ADDED", a_resource(version=1))
    watched.cache.tell(AGENTSTREAMS, "MODIFIED", a_resource(version=2, generation=2))
    watched.cache.tell(AGENTSTREAMS, "DELETED", a_resource(version=3, generation=2))
    assert watched.reconciler.told == ["put tasks", "put tasks", "remove tasks"]


def test_an_object_of_an_event_need_not_name_its_kind() -> None:
    watched = Watched()
    found = a_resource()
    del found["kind"]
    watched.cache.tell(AGENTSTREAMS, "ADDED", found)
    assert TASKS in watched.reconciler.resources


def test_what_is_older_than_what_is_known_is_passed_over() -> None:
    watched = Watched()
    watched.cache.tell(AGENTSTREAMS, "MODIFIED", a_resource(version=5, generation=2))
    watched.cache.tell(AGENTSTREAMS, "MODIFIED", a_resource(version=4))
    watched.cache.tell(AGENTSTREAMS, "DELETED", a_resource(version=4))
    assert watched.reconciler.told == ["put tasks"]
    assert watched.reconciler.resources[TASKS].metadata.generation == 2


def test_versions_are_numbers() -> None:
    watched = Watched()
    watched.cache.tell(AGENTSTREAMS, "ADDED", a_resource(version=9))
    watched.cache.tell(AGENTSTREAMS, "MODIFIED", a_resource(version=10, generation=2))
    assert watched.reconciler.resources[TASKS].metadata.generation == 2


def test_the_end_of_what_is_not_known_is_nobodys_business() -> None:
    watched = Watched()
    watched.cache.tell(AGENTSTREAMS, "DELETED", a_resource())
    assert watched.reconciler.told == []


def test_one_that_was_deleted_and_made_again_is_another_one() -> None:
    watched = Watched()
    watched.cache.tell(AGENTSTREAMS, "ADDED", a_resource(version=1))
    watched.cache.tell(AGENTSTREAMS, "DELETED", a_resource(version=2))
    watched.cache.tell(AGENTSTREAMS, "ADDED", a_resource(version=3, uid="born again"))
    assert watched.reconciler.told == ["put tasks", "remove tasks", "put tasks"]
    assert watched.reconciler.resources[TASKS].metadata.uid == "born again"


def test_the_echo_of_a_written_status_is_not_even_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched()
    watched.cache.tell(AGENTSTREAMS, "ADDED", a_resource(version=1))
    monkeypatch.setattr("agentstream_operator.cluster.resource_cache.parse_resource", None)
    echo = {**a_resource(version=2), "status": {"observedGeneration": 1}}
    watched.cache.tell(AGENTSTREAMS, "MODIFIED", echo)
    assert watched.reconciler.told == ["put tasks"]


def test_a_resource_that_cannot_be_read_stays_as_it_was(caplog: pytest.LogCaptureFixture) -> None:
    watched = Watched()
    watched.cache.tell(AGENTSTREAMS, "ADDED", a_resource(version=1))
    watched.cache.tell(AGENTSTREAMS, "MODIFIED", a_resource(version=2, generation=2, spec=WRONG))
    assert watched.reconciler.told == ["put tasks", "unreadable tasks"]
    assert watched.reconciler.resources[TASKS].metadata.generation == 1
    assert "AgentStream team/tasks: spec.retention.minAge" in caplog.text
    watched.cache.tell(AGENTSTREAMS, "MODIFIED", a_resource(version=3, generation=3))
    assert watched.reconciler.told[2:] == ["put tasks"]


def test_a_resource_that_could_never_be_read_is_taken_out_when_it_goes() -> None:
    watched = Watched()
    watched.cache.tell(AGENTSTREAMS, "ADDED", a_resource(version=1, spec=WRONG))
    watched.cache.tell(AGENTSTREAMS, "DELETED", a_resource(version=2, spec=WRONG))
    assert watched.reconciler.told == ["unreadable tasks", "remove tasks"]


def test_changes_of_children_wake_whom_they_concern() -> None:
    watched = Watched()
    watched.cache.tell(SECRETS, "ADDED", a_secret(1))
    watched.cache.tell(DEPLOYMENTS, "MODIFIED", a_deployment(2))
    watched.cache.tell(PODS, "ADDED", a_pod(3))
    watched.cache.tell(PODS, "DELETED", a_pod(4))
    watched.cache.tell(PODS, "DELETED", a_pod(4))
    assert watched.woken == [
        Change(agent=("team", "coder")),
        Change(group=CODER),
        Change(group=CODER),
        Change(group=CODER, gone=Gone("a"), deleted=True),
    ]
    assert +watched.cache.events == {"secrets": 1, "deployments": 1, "pods": 3}


@pytest.mark.parametrize(
    ("found", "same"),
    [
        (a_resource(version=2), True),
        (a_resource(version=2, labels={"a": "b"}), True),
        (a_resource(version=2, managedFields=[{"manager": "kubectl"}]), True),
        (a_resource(version=2, annotations={}), True),
        (a_resource(version=2, finalizers=[]), True),
        (a_resource(version=2, uid="other"), False),
        (a_resource(version=2, generation=2), False),
        (a_resource(version=2, annotations={"a": "b"}), False),
        (a_resource(version=2, finalizers=[FINALIZER]), False),
        (deleting(a_resource(version=2)), False),
    ],
)
def test_a_resource_is_the_same_if_nothing_of_it_changed_that_matters(found: Json, *, same: bool) -> None:
    assert is_same(parse_resource(a_resource()).metadata, found["metadata"]) is same


def test_a_resource_that_is_being_deleted_is_the_same_as_long_as_it_is() -> None:
    assert is_same(parse_resource(deleting(a_resource())).metadata, deleting(a_resource())["metadata"])


def test_a_resource_without_a_generation_has_the_first() -> None:
    found = a_resource()
    del found["metadata"]["generation"]
    assert is_same(parse_resource(found).metadata, found["metadata"])


async def filled(*found: Json) -> Watched:
    """An cache that has listed everything."""
    watched = Watched(*found)
    await watched.cache.fill()
    watched.reconciler.told.clear()
    watched.there.asked.clear()
    return watched


async def test_where_nothing_was_missed_nothing_is_looked_at() -> None:
    watched = await filled(a_resource(), a_resource("ConsumerGroup", "coder"))
    watched.change(a_resource(version=2, generation=2))
    await watched.cache.compare(grace=3600)
    resources = [(plural, "", "") for plural in ("agentstreams", "consumergroups", "streamreplays")]
    owned = [(kind.plural, "", OURS) for kind in OWNED_KINDS]
    assert watched.there.asked == [*resources, *owned]
    assert (watched.cache.missed, watched.cache.missed_lately) == (0, 0)


async def test_what_no_event_told_of_is_made_up_for() -> None:
    watched = await filled(a_resource(), a_resource(name="doomed"))
    watched.there.put(a_resource(version=2, generation=2), a_resource("ConsumerGroup", "coder"))
    watched.there.drop(DOOMED)
    await watched.cache.compare(grace=0)
    assert sorted(watched.reconciler.told) == ["put coder", "put tasks", "remove doomed"]
    assert (watched.cache.missed, watched.cache.missed_lately) == (3, 3)


async def test_what_changed_again_is_taken_as_it_is_now() -> None:
    watched = await filled(a_resource())
    watched.there.put(a_resource(version=2, generation=2))
    watched.there.meanwhile = lambda: watched.there.put(a_resource(version=3, generation=3))
    await watched.cache.compare(grace=0)
    assert watched.reconciler.resources[TASKS].metadata.generation == 3
    assert watched.cache.missed == 1


async def test_what_changed_and_then_vanished_unheard_is_taken_out() -> None:
    watched = await filled(a_resource())
    watched.there.put(a_resource(version=2, generation=2))
    watched.there.meanwhile = lambda: watched.there.objects.pop(TASKS, None)
    await watched.cache.compare(grace=0)
    assert watched.reconciler.told == ["remove tasks"]
    assert watched.cache.missed == 1


async def test_what_came_and_went_unheard_never_was() -> None:
    watched = await filled()
    watched.there.put(a_resource())
    watched.there.meanwhile = lambda: watched.there.objects.pop(TASKS, None)
    await watched.cache.compare(grace=0)
    assert watched.reconciler.told == []
    assert watched.cache.missed == 0


async def test_children_that_vanished_unheard_are_forgotten() -> None:
    # a watch that has to begin anew tells of what is there, and of nothing that is not
    watched = await filled(a_secret(), a_deployment(), a_pod(), a_pod(name="b"))
    watched.there.objects.clear()
    watched.there.put(a_pod(7))
    await watched.cache.compare(grace=0)
    assert watched.woken == [Change(group=CODER, gone=Gone("b"), deleted=True)]
    owned = watched.owned
    assert (owned.secrets, owned.deployments, list(owned.pods)) == ({}, {}, [("team", "a")])
    assert watched.cache.missed == 0


async def test_a_child_that_came_back_meanwhile_is_taken_as_it_is_now() -> None:
    watched = await filled(a_deployment(replicas=1))
    watched.there.objects.clear()
    watched.there.meanwhile = lambda: watched.there.put(a_deployment(9, replicas=4))
    await watched.cache.compare(grace=0)
    assert [found.replicas for found in watched.owned.deployments.values()] == [4]


def compared(*found: Json, then: Callable[[Watched], None], meanwhile: Callable[[Watched], None]) -> Watched:
    """An cache of these that is compared after something happened, and another thing in the meantime."""

    async def compare() -> Watched:
        watched = await filled(*found)
        then(watched)
        asyncio.get_running_loop().call_later(10, meanwhile, watched)
        await watched.cache.compare(grace=20)
        return watched

    return run_virtually(compare())


def test_a_watch_gets_time_to_tell_of_a_change() -> None:
    changed = a_resource(version=2, generation=2)
    watched = compared(
        a_resource(),
        then=lambda watched: watched.there.put(changed),
        meanwhile=lambda watched: watched.cache.tell(AGENTSTREAMS, "MODIFIED", changed),
    )
    assert watched.reconciler.told == ["put tasks"]
    assert watched.cache.missed == 0
    assert ("agentstreams", "team", "tasks") not in watched.there.asked


def test_a_watch_gets_time_to_tell_of_an_end() -> None:
    gone = a_resource(name="doomed", version=2)
    watched = compared(
        a_resource(name="doomed"),
        then=lambda watched: watched.there.drop(DOOMED),
        meanwhile=lambda watched: watched.cache.tell(AGENTSTREAMS, "DELETED", gone),
    )
    assert watched.reconciler.told == ["remove doomed"]
    assert watched.cache.missed == 0


def test_one_that_was_made_again_in_the_meantime_was_not_missed() -> None:
    again = a_resource(name="doomed", version=3, uid="born again")
    watched = compared(
        a_resource(name="doomed"),
        then=lambda watched: watched.there.drop(DOOMED),
        meanwhile=lambda watched: watched.change(again),
    )
    assert watched.reconciler.resources[DOOMED].metadata.uid == "born again"
    assert watched.cache.missed == 0


async def test_what_was_missed_in_a_row_counts_until_nothing_is_missed() -> None:
    watched = await filled(a_resource())
    for version in (2, 3):
        watched.there.put(a_resource(version=version, generation=version))
        await watched.cache.compare(grace=0)
    assert (watched.cache.missed, watched.cache.missed_lately) == (2, 2)
    await watched.cache.compare(grace=0)
    assert (watched.cache.missed, watched.cache.missed_lately) == (2, 0)


def test_it_compares_again_and_again_whatever_the_api_server_says(caplog: pytest.LogCaptureFixture) -> None:
    async def watch() -> Watched:
        watched = await filled(a_resource())
        watched.there.refuses = [ApiError(403, "forbidden"), ClusterUnavailable("no answer")]
        watched.there.put(a_resource(version=2, generation=2))
        watching = asyncio.create_task(watched.cache.watch())
        # less than five minutes and a tenth pass between two, and the watches get twenty seconds
        await asyncio.sleep(3 * 330 + 20)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        return watched

    watched = run_virtually(watch())
    assert watched.reconciler.told == ["put tasks"]
    assert "with a list: no answer" in caplog.text
    assert "with a list: forbidden" in caplog.text
