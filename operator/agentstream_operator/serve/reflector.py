"""Keeps AgentStreams and ConsumerGroups in a store, by listing and watching the API server; read only."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Mapping, Sequence
from typing import Any

from agentstream_operator.cluster.api import Api, ApiError
from agentstream_operator.cluster.kinds import AGENTSTREAMS, CONSUMERGROUPS, RESOURCES, ApiKind
from agentstream_operator.cluster.port import ClusterUnavailable
from agentstream_operator.cluster.resource_cache import is_same
from agentstream_operator.reconcile.state.index import ResourceIndex
from agentstream_operator.resources.meta import ResourceKey
from agentstream_operator.resources.parse import InvalidResource, parse_resource

_log = logging.getLogger(__name__)
_RETRY = 2.0

Json = Mapping[str, Any]


class Reflector:
    """Lists and watches resources in some namespaces, or in all (None), and mirrors them in a store.

    Their statuses are those of when their specs changed last, unless it is `with_status`.
    """

    def __init__(
        self,
        api: Api,
        namespaces: Sequence[str] | None,
        store: ResourceIndex,
        *,
        with_status: bool = False,
    ) -> None:
        self._api = api
        self._with_status = with_status
        self._store = store
        scopes = [None] if namespaces is None else namespaces
        kinds = (AGENTSTREAMS, CONSUMERGROUPS)
        self._unlisted = {(kind.kind, namespace) for kind in kinds for namespace in scopes}
        self._known: set[ResourceKey] = set()

    @property
    def complete(self) -> bool:
        """Whether every kind has been listed in every namespace."""
        return not self._unlisted

    async def watch(self) -> None:
        """Lists and watches; never returns."""
        async with asyncio.TaskGroup() as tasks:
            for kind, namespace in tuple(self._unlisted):
                tasks.create_task(self._list_and_watch(RESOURCES[kind], namespace), name=f"watch {kind}")

    async def _list_and_watch(self, kind: ApiKind, namespace: str | None) -> None:
        while True:
            try:
                version = await self._list(kind, namespace)
                self._unlisted.discard((kind.kind, namespace))
                while True:
                    version = await self._changes(kind, namespace, version)
            except (ApiError, ClusterUnavailable) as error:
                _log.warning("cannot list or watch %s, trying again: %s", kind.plural, error)
            await asyncio.sleep(_RETRY * (0.5 + random.random()))  # noqa: S311 - only spreads load

    async def _list(self, kind: ApiKind, namespace: str | None) -> str:
        """Takes the resources of a kind and namespace as listed, each before the next is decoded.

        Returns the version of the list.
        """
        listed, version = set(), ""
        async for page in self._api.pages(kind, namespace):
            version = version or page.metadata.version
            for found in page:
                listed.add(_key(kind, found))
                self._put(kind, found)
        for key in self._known - listed:
            if key.kind == kind.kind and namespace in (None, key.namespace):
                self._remove(key)
        return version

    async def _changes(self, kind: ApiKind, namespace: str | None, version: str) -> str:
        """Applies events until the watch ends. Returns the last resourceVersion."""
        async for change, found in self._api.watch(kind, namespace, version):
            version = found["metadata"]["resourceVersion"]
            if change == "DELETED":
                self._remove(_key(kind, found))
            elif change != "BOOKMARK":
                self._put(kind, found)
        return version

    def _put(self, kind: ApiKind, found: Json) -> None:
        key = _key(kind, found)
        self._known.add(key)
        known = self._store.get(key)
        if known is not None and not self._with_status and is_same(known.metadata, found["metadata"]):
            # mostly an update of the status
            return
        try:
            resource = parse_resource({"apiVersion": kind.api_version, "kind": kind.kind, **found})
        except InvalidResource as error:
            problems = "; ".join(error.problems)
            _log.warning("%s is invalid, keeping its last valid version: %s", error.subject, problems)
        else:
            self._store.put(resource)

    def _remove(self, key: ResourceKey) -> None:
        self._known.discard(key)
        self._store.remove(key)


def _key(kind: ApiKind, found: Json) -> ResourceKey:
    return ResourceKey(kind.kind, found["metadata"]["namespace"], found["metadata"]["name"])
