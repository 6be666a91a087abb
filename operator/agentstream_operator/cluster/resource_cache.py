"""Lists and watches all resources and owned objects, and compares them with lists from time to time."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Protocol

from agentstream_operator.cluster.api import Api, ApiError
from agentstream_operator.cluster.kinds import OWNED_KINDS, RESOURCES, ApiKind
from agentstream_operator.cluster.labels import OURS
from agentstream_operator.cluster.owned_objects import Change, OwnedObjects
from agentstream_operator.cluster.port import ClusterUnavailable, Owner, Unreadable
from agentstream_operator.resources.meta import ObjectMeta, ResourceKey
from agentstream_operator.resources.parse import AnyResource, InvalidResource, parse_resource

_log = logging.getLogger(__name__)

Json = Mapping[str, Any]

_EVERY = 300.0
_GRACE = 20.0
"""Seconds that events get to arrive after a list."""


class ChangeListener(Protocol):
    """Receives changes of resources."""

    def known(self, key: ResourceKey) -> AnyResource | None:
        """Returns a resource as it was put last."""

    def put(self, resource: AnyResource) -> None:
        """Takes a new or changed resource."""

    def remove(self, key: ResourceKey) -> None:
        """Drops a resource that is gone."""

    def unreadable(self, found: Unreadable) -> None:
        """Notes a resource that cannot be parsed."""


class ResourceCache:
    """Passes changes in the watched namespaces (None: all) on to a listener.

    Attributes:
        events: the number of watch events, by the plural of their kind.
        missed: changes that a list showed without an event; 0 as long as the watches work.
        missed_lately: those since the last list without any.
    """

    def __init__(
        self,
        api: Api,
        namespaces: Sequence[str] | None,
        owned: OwnedObjects,
        listener: ChangeListener,
        on_change: Callable[[Change], None],
    ) -> None:
        self._api = api
        self._namespaces: Sequence[str | None] = [None] if namespaces is None else namespaces
        self._owned = owned
        self._listener = listener
        self._on_change = on_change
        self._versions: dict[ResourceKey, str] = {}
        self.events: Counter[str] = Counter({kind.plural: 0 for kind in (*RESOURCES.values(), *OWNED_KINDS)})
        self.missed = self.missed_lately = 0

    async def fill(self) -> None:
        """Lists everything once, owned objects before resources. Raises as `Api.list`."""
        for kind in OWNED_KINDS:
            async for found in self._list(kind, OURS):
                self._put_child(found)
        for kind in RESOURCES.values():
            async for found in self._list(kind):
                self._put(kind, found)

    async def refill(self) -> None:
        """Takes what came, changed or went while nothing was watched. Raises as `fill`."""
        for kind in RESOURCES.values():
            listed = set()
            async for found in self._list(kind):
                listed.add(_key(kind, found))
                self._put(kind, found)
            for gone in [key for key in self._versions if key.kind == kind.kind and key not in listed]:
                self._forget(gone)
        for kind in OWNED_KINDS:
            await self._compare_children(kind)

    def tell(self, kind: ApiKind, event: str | None, found: Json) -> None:
        """Takes an event: None for an object of the initial list, `ADDED`, `MODIFIED` or `DELETED`."""
        self.events[kind.plural] += 1
        found = {**found, "kind": kind.kind}
        deleted = event == "DELETED"
        if kind.kind in RESOURCES:
            if deleted:
                self._remove(kind, found)
            else:
                self._put(kind, found)
            return
        change = self._owned.remove(found) if deleted else self._put_child(found)
        if change is not None:
            self._on_change(change)

    async def watch(self) -> None:
        """Compares with a list from time to time: a watch may have missed an event."""
        while True:
            await asyncio.sleep(_EVERY * (0.9 + 0.2 * random.random()))  # noqa: S311 - only spreads load
            try:
                await self.compare()
            except (ApiError, ClusterUnavailable) as error:
                _log.warning("could not compare the watched objects with a list: %s", error)

    async def compare(self, grace: float = _GRACE) -> None:
        """Takes changes that no event announced, `grace` seconds after the list. Raises as `fill`."""
        before = self.missed
        for kind in RESOURCES.values():
            await self._compare(kind, grace)
        missed = self.missed - before
        self.missed_lately = self.missed_lately + missed if missed else 0
        for kind in OWNED_KINDS:
            await self._compare_children(kind)

    async def _compare(self, kind: ApiKind, grace: float) -> None:
        versions = {
            _key(kind, found): found["metadata"]["resourceVersion"] async for found in self._list(kind)
        }
        differing = {key for key, version in versions.items() if self._versions.get(key) != version}
        differing |= {key for key in self._versions if key.kind == kind.kind} - versions.keys()
        if differing:
            await asyncio.sleep(grace)
        for key in differing:
            await self._look(kind, key, versions.get(key))

    async def _compare_children(self, kind: ApiKind) -> None:
        """Takes all objects of a kind as listed: a restarted watch reports no deletions."""
        known = self._owned.versions(kind.kind)
        changes = []
        async for found in self._list(kind, OURS):
            known.pop((found["metadata"]["namespace"], found["metadata"]["name"]), None)
            changes.append(self._put_child(found))
        for place, version in known.items():
            metadata = {"namespace": place[0], "name": place[1], "resourceVersion": version}
            if await self._api.get(kind, *place) is None:
                changes.append(self._owned.remove({"kind": kind.kind, "metadata": metadata}))
        for change in filter(None, changes):
            self._on_change(change)

    async def _look(self, kind: ApiKind, key: ResourceKey, listed: str | None) -> None:
        """Takes a resource that no event announced during the grace period; `listed`: its version."""
        known = int(self._versions.get(key, -1))
        if listed is not None and known >= int(listed):
            return
        found = await self._api.get(kind, key.namespace, key.name)
        if found is None:
            if key in self._versions:
                self.missed += 1
                self._forget(key)
        elif self._versions.get(key) != found["metadata"]["resourceVersion"]:
            self.missed += 1
            self._put(kind, found)

    async def _list(self, kind: ApiKind, selector: str = "") -> AsyncIterator[dict[str, Any]]:
        # one after the other: decoded at the same time, large ones would take more memory than there is
        for namespace in self._namespaces:
            async for found in self._api.list(kind, namespace, selector):
                yield found

    def _put_child(self, found: Json) -> Change | None:
        """Takes an object that the operator made. One that it cannot read stands for none."""
        try:
            return self._owned.put(found)
        except Exception:  # noqa: BLE001 - the others are read
            _log.exception("%s: cannot be read; all others are", found["kind"])
            return None

    def _put(self, kind: ApiKind, found: Json) -> None:
        """Takes a resource; whatever fails about it concerns no other."""
        try:
            self._take(kind, found)
        except Exception:  # noqa: BLE001 - the others are read
            _log.exception("%s: could not be taken; all others are", _key(kind, found))

    def _take(self, kind: ApiKind, found: Json) -> None:
        key, metadata = _key(kind, found), found["metadata"]
        if int(self._versions.get(key, -1)) > int(metadata["resourceVersion"]):
            return
        self._versions[key] = metadata["resourceVersion"]
        known = self._listener.known(key)
        if known is not None and is_same(known.metadata, metadata):
            # mostly the echo of a status that was just written
            return
        try:
            resource = parse_resource(found)
        except InvalidResource as error:
            _log.warning("invalid resource; its last valid version stays in effect: %s", error)
            owner = Owner(key, metadata["uid"])
            self._listener.unreadable(
                Unreadable(owner, metadata.get("generation", 0), "; ".join(error.problems))
            )
        else:
            self._listener.put(resource)

    def _remove(self, kind: ApiKind, found: Json) -> None:
        key = _key(kind, found)
        if key in self._versions and int(self._versions[key]) <= int(found["metadata"]["resourceVersion"]):
            self._forget(key)

    def _forget(self, key: ResourceKey) -> None:
        self._versions.pop(key, None)
        self._listener.remove(key)


def is_same(known: ObjectMeta, found: Json) -> bool:
    """Returns whether generation (the spec), finalizers, annotations and deletion are unchanged."""
    deleting = known.deletion_timestamp is not None
    return (
        known.uid == found["uid"]
        and known.generation == found.get("generation", 0)
        and known.finalizers == tuple(found.get("finalizers") or ())
        and deleting == ("deletionTimestamp" in found)
        and dict(known.annotations) == (found.get("annotations") or {})
    )


def _key(kind: ApiKind, found: Json) -> ResourceKey:
    return ResourceKey(kind.kind, found["metadata"]["namespace"], found["metadata"]["name"])
