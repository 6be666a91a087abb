"""Everything that is there: listed whole before the first write, then told of by events and compared."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from agentstream_operator.cluster.api import Api, ApiError
from agentstream_operator.cluster.kinds import OWNED_KINDS, RESOURCES, ApiKind
from agentstream_operator.cluster.labels import OURS
from agentstream_operator.cluster.owned_objects import Change, OwnedObjects
from agentstream_operator.cluster.port import ClusterUnavailable
from agentstream_operator.resources.agentstream import AgentStream
from agentstream_operator.resources.consumergroup import ConsumerGroup
from agentstream_operator.resources.meta import ObjectMeta, ResourceKey
from agentstream_operator.resources.parse import InvalidResource, parse_resource

_log = logging.getLogger(__name__)

Resource = AgentStream | ConsumerGroup
Json = Mapping[str, Any]

_EVERY = 300.0
_GRACE = 20.0
"""Seconds that a watch gets to tell of what a list shows."""


class ChangeListener(Protocol):
    """Who acts on resources."""

    def known(self, key: ResourceKey) -> Resource | None:
        """A resource as it was put in last."""
        ...

    def put(self, resource: Resource) -> None:
        """A resource is new or changed."""
        ...

    def remove(self, key: ResourceKey) -> None:
        """A resource is gone."""
        ...

    def unreadable(self, key: ResourceKey) -> None:
        """A resource exists that cannot be read."""
        ...


class ResourceCache:
    """Passes on what is there to who acts on it.

    Args:
        api: the API server.
        namespaces: those that are watched; None for all.
        owned: what is known of Secrets, Deployments and pods.
        reconciler: who acts on resources.
        wake: called with whom a change of a child concerns.

    Attributes:
        events: how many events came, by the plural of their kind.
        missed: changes that a list showed and no event had told of; 0 as long as the watches live.
        missed_lately: those since a list last showed none.
    """

    def __init__(
        self,
        api: Api,
        namespaces: Sequence[str] | None,
        owned: OwnedObjects,
        reconciler: ChangeListener,
        wake: Callable[[Change], None],
    ) -> None:
        self._api = api
        self._namespaces: Sequence[str | None] = [None] if namespaces is None else namespaces
        self._owned = owned
        self._reconciler = reconciler
        self._wake = wake
        self._versions: dict[ResourceKey, str] = {}
        self.events: Counter[str] = Counter({kind.plural: 0 for kind in (*RESOURCES.values(), *OWNED_KINDS)})
        self.missed = self.missed_lately = 0

    async def fill(self) -> None:
        """Lists everything once, children before the resources that they belong to.

        Raises:
            ApiError: a list is refused.
            ClusterUnavailable: the API server does not answer.
        """
        for kind in OWNED_KINDS:
            for found in await self._list(kind, OURS):
                self._owned.put(found)
        for kind in RESOURCES.values():
            for found in await self._list(kind):
                self._put(kind, found)

    def tell(self, kind: ApiKind, change: str | None, found: Json) -> None:
        """An event: an object was there from the start (None), `ADDED`, `MODIFIED` or `DELETED`."""
        self.events[kind.plural] += 1
        found = {**found, "kind": kind.kind}
        deleted = change == "DELETED"
        if kind.kind in RESOURCES:
            if deleted:
                self._remove(kind, found)
            else:
                self._put(kind, found)
            return
        wake = self._owned.remove(found) if deleted else self._owned.put(found)
        if wake is not None:
            self._wake(wake)

    async def watch(self) -> None:
        """Compares with a list, again and again: a watch may have missed something, for ever."""
        while True:
            await asyncio.sleep(_EVERY * (0.9 + 0.2 * random.random()))  # noqa: S311 - only spreads load
            try:
                await self.compare()
            except (ApiError, ClusterUnavailable) as error:
                _log.warning("could not compare the watched objects with a list: %s", error)

    async def compare(self, grace: float = _GRACE) -> None:
        """Puts in, or removes, what no event told of.

        Args:
            grace: seconds that events of resources get to come after the list.

        Raises:
            ApiError: a list is refused.
            ClusterUnavailable: the API server does not answer.
        """
        before = self.missed
        for kind in RESOURCES.values():
            await self._compare(kind, grace)
        missed = self.missed - before
        self.missed_lately = self.missed_lately + missed if missed else 0
        for kind in OWNED_KINDS:
            await self._compare_children(kind)

    async def _compare(self, kind: ApiKind, grace: float) -> None:
        listed = {_key(kind, found): found for found in await self._list(kind)}
        astray = {
            key
            for key, found in listed.items()
            if self._versions.get(key) != found["metadata"]["resourceVersion"]
        }
        astray |= {key for key in self._versions if key.kind == kind.kind} - listed.keys()
        if astray:
            await asyncio.sleep(grace)
        for key in astray:
            await self._look(kind, key, listed.get(key))

    async def _compare_children(self, kind: ApiKind) -> None:
        """Takes up children as they are: a watch that begins anew tells of what is there, and of no end."""
        known = self._owned.versions(kind.kind)
        wakes = []
        for found in await self._list(kind, OURS):
            known.pop((found["metadata"]["namespace"], found["metadata"]["name"]), None)
            wakes.append(self._owned.put(found))
        for place, version in known.items():
            metadata = {"namespace": place[0], "name": place[1], "resourceVersion": version}
            if await self._api.get(kind, *place) is None:
                wakes.append(self._owned.remove({"kind": kind.kind, "metadata": metadata}))
        for wake in filter(None, wakes):
            self._wake(wake)

    async def _look(self, kind: ApiKind, key: ResourceKey, listed: Json | None) -> None:
        """Takes up what became of a resource, if no event has told of it by now."""
        known = self._versions.get(key)
        if (
            listed is not None
            and known is not None
            and int(known) >= int(listed["metadata"]["resourceVersion"])
        ):
            return
        found = await self._api.get(kind, key.namespace, key.name)
        if found is None:
            if key in self._versions:
                self.missed += 1
                self._forget(key)
        elif self._versions.get(key) != found["metadata"]["resourceVersion"]:
            self.missed += 1
            self._put(kind, found)

    async def _list(self, kind: ApiKind, selector: str = "") -> list[dict[str, Any]]:
        return [
            found
            for namespace in self._namespaces
            async for found in self._api.list(kind, namespace, selector)
        ]

    def _put(self, kind: ApiKind, found: Json) -> None:
        key, metadata = _key(kind, found), found["metadata"]
        version = self._versions.get(key)
        if version is not None and int(version) > int(metadata["resourceVersion"]):
            return
        self._versions[key] = metadata["resourceVersion"]
        known = self._reconciler.known(key)
        if known is not None and is_same(known.metadata, metadata):
            # above all the echo of a status that was just written
            return
        try:
            resource = parse_resource(found)
        except InvalidResource as error:
            _log.warning("invalid resource; its last valid version stays in effect: %s", error)
            self._reconciler.unreadable(key)
        else:
            self._reconciler.put(resource)

    def _remove(self, kind: ApiKind, found: Json) -> None:
        key = _key(kind, found)
        version = self._versions.get(key)
        if version is not None and int(version) <= int(found["metadata"]["resourceVersion"]):
            self._forget(key)

    def _forget(self, key: ResourceKey) -> None:
        self._versions.pop(key, None)
        self._reconciler.remove(key)


def is_same(known: ObjectMeta, found: Json) -> bool:
    """Whether nothing changed that matters: with its generation the spec stays, and a status is our own."""
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
