"""Which groups there are and which streams they read: from lists of the API server, and what it tells since.

Nothing of it is written, and no other process is needed for it: not the operator, either.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from agentstream_operator.cluster.api import Api, ApiError
from agentstream_operator.cluster.kinds import RESOURCES, ApiKind
from agentstream_operator.cluster.port import ClusterUnavailable
from agentstream_operator.cluster.resource_cache import is_same
from agentstream_operator.reconcile.state.index import Store
from agentstream_operator.resources.meta import ResourceKey
from agentstream_operator.resources.parse import InvalidResource, parse_resource

_log = logging.getLogger(__name__)
_RETRY = 2.0

Json = Mapping[str, Any]


class Reflector:
    """Keeps a store as the API server has it.

    Args:
        api: the API server.
        namespaces: those that are watched; None for all.
        store: what is kept.
    """

    def __init__(self, api: Api, namespaces: Sequence[str] | None, store: Store) -> None:
        self._api = api
        self._store = store
        places = [None] if namespaces is None else namespaces
        self._missing = {(kind.kind, namespace) for kind in RESOURCES.values() for namespace in places}
        self._there: set[ResourceKey] = set()

    @property
    def complete(self) -> bool:
        """Whether everything has been listed."""
        return not self._missing

    async def watch(self) -> None:
        """Lists and watches; never returns."""
        async with asyncio.TaskGroup() as tasks:
            for kind, namespace in tuple(self._missing):
                tasks.create_task(self._follow(RESOURCES[kind], namespace), name=f"watch {kind}")

    async def _follow(self, kind: ApiKind, namespace: str | None) -> None:
        while True:
            try:
                found, version = await self._api.snapshot(kind, namespace)
                self._take(kind, namespace, found)
                self._missing.discard((kind.kind, namespace))
                while True:
                    version = await self._changes(kind, namespace, version)
            except (ApiError, ClusterUnavailable) as error:
                _log.warning("%s: listed again: %s", kind.plural, error)
            await asyncio.sleep(_RETRY * (0.5 + random.random()))  # noqa: S311 - only spreads load

    async def _changes(self, kind: ApiKind, namespace: str | None, version: str) -> str:
        """Takes up what happens until the watch ends. Returns the version that it came to."""
        async for change, found in self._api.watch(kind, namespace, version):
            version = found["metadata"]["resourceVersion"]
            if change == "DELETED":
                self._remove(_key(kind, found))
            elif change != "BOOKMARK":
                self._put(kind, found)
        return version

    def _take(self, kind: ApiKind, namespace: str | None, found: Iterable[Json]) -> None:
        """Takes up a whole list."""
        listed = set()
        for each in found:
            listed.add(_key(kind, each))
            self._put(kind, each)
        for key in self._there - listed:
            if key.kind == kind.kind and namespace in (None, key.namespace):
                self._remove(key)

    def _put(self, kind: ApiKind, found: Json) -> None:
        key = _key(kind, found)
        self._there.add(key)
        known = self._store.get(key)
        if known is not None and is_same(known.metadata, found["metadata"]):
            # above all a status that was written
            return
        try:
            resource = parse_resource({"apiVersion": kind.api_version, "kind": kind.kind, **found})
        except InvalidResource as error:
            _log.warning("a resource cannot be read, and stays as it was: %s", error)
        else:
            self._store.put(resource)

    def _remove(self, key: ResourceKey) -> None:
        self._there.discard(key)
        self._store.remove(key)


def _key(kind: ApiKind, found: Json) -> ResourceKey:
    return ResourceKey(kind.kind, found["metadata"]["namespace"], found["metadata"]["name"])
