"""Applies manifests for trial: the API server says what would come of them, and changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from agentstream_operator.cluster.api import Api, ApiError
from agentstream_operator.cluster.connect import connect
from agentstream_operator.cluster.kinds import AGENTSTREAMS, CONSUMERGROUPS, RESOURCES
from agentstream_operator.plan.changes import Trial
from agentstream_operator.resources.meta import ResourceKey

_LAST_APPLIED: Final = "kubectl.kubernetes.io/last-applied-configuration"
_METADATA: Final = ("labels", "annotations")
Json = dict[str, Any]


async def try_all(
    kubeconfig: Path | None,
    context: str | None,
    namespace: str | None,
    manifests: Sequence[Mapping[str, Any]],
) -> list[Trial]:
    """Tries out what applying manifests would come to, as `kubectl apply` would.

    Args:
        kubeconfig: as `connect`.
        context: as `connect`.
        namespace: of manifests that name none; that of the context if absent.
        manifests: the resources as declared.

    Raises:
        NoCluster: no API server is configured.
        ApiError: the caller may not read a resource.
        ClusterUnavailable: the API server does not answer.
    """
    connection = await connect(kubeconfig, context)
    api = Api(connection.client)
    keys = {
        each: _key(manifest, namespace or connection.namespace) for each, manifest in enumerate(manifests)
    }
    declared = frozenset(keys.values())
    try:
        trials = (_try(api, keys[each], manifest, declared) for each, manifest in enumerate(manifests))
        return await asyncio.gather(*trials)
    finally:
        await connection.close()


def _key(manifest: Mapping[str, Any], namespace: str) -> ResourceKey:
    metadata = manifest["metadata"]
    return ResourceKey(manifest["kind"], metadata.get("namespace") or namespace, metadata["name"])


async def _try(
    api: Api, key: ResourceKey, manifest: Mapping[str, Any], declared: Collection[ResourceKey]
) -> Trial:
    kind = RESOURCES[key.kind]
    live = await api.get(kind, key.namespace, key.name)
    try:
        if live is not None:
            return Trial(key, live, await api.trial(kind, key.namespace, patch_of(manifest, live), key.name))
        body = {**manifest, "metadata": {**manifest["metadata"], "namespace": key.namespace}}
        after = await api.trial(kind, key.namespace, body)
    except ApiError as error:
        return Trial(key, live, None, (f"the API server refuses it: {error}",))
    return Trial(key, None, after, orphan=await _is_orphan(api, key, after, declared))


async def _is_orphan(
    api: Api, key: ResourceKey, manifest: Mapping[str, Any], declared: Collection[ResourceKey]
) -> bool:
    """Tells whether a group has no stream, neither there nor declared beside it."""
    if key.kind != CONSUMERGROUPS.kind:
        return False
    stream = ResourceKey(AGENTSTREAMS.kind, key.namespace, manifest["spec"]["streamRef"]["name"])
    return stream not in declared and await api.get(AGENTSTREAMS, stream.namespace, stream.name) is None


def patch_of(manifest: Mapping[str, Any], live: Mapping[str, Any]) -> Json:
    """Builds the merge patch by which a resource becomes what is declared.

    Fields that were applied before and are not declared any more are removed; others stay: what somebody
    else has set, as `kubectl scale` does, and what the API server filled in.
    """
    owned = _applied(live)
    patch: Json = {
        "spec": _merge(manifest.get("spec") or {}, owned.get("spec") or {}, live.get("spec") or {})
    }
    parts = {
        part: _merge(
            manifest["metadata"].get(part) or {},
            (owned.get("metadata") or {}).get(part) or {},
            live["metadata"].get(part) or {},
        )
        for part in _METADATA
    }
    return {**patch, "metadata": {part: changed for part, changed in parts.items() if changed}}


def _merge(declared: Mapping[str, Any], owned: Mapping[str, Any], live: Mapping[str, Any]) -> Json:
    merged: Json = {}
    for name, value in declared.items():
        there = live.get(name)
        if isinstance(value, Mapping) and isinstance(there, Mapping):
            merged[name] = _merge(value, owned.get(name) or {}, there)
        else:
            merged[name] = value
    gone = (name for name in owned if name not in declared and name in live and name != _LAST_APPLIED)
    return {**merged, **dict.fromkeys(gone)}


def _applied(live: Mapping[str, Any]) -> Json:
    """The fields that were applied, as maps of names: by server-side apply, or by `kubectl apply` before."""
    metadata = live["metadata"]
    owned: Json = {}
    for entry in metadata.get("managedFields") or ():
        if entry.get("operation") == "Apply" and not entry.get("subresource"):
            _add(owned, _named(entry.get("fieldsV1") or {}))
    try:
        before = msgspec.json.decode((metadata.get("annotations") or {}).get(_LAST_APPLIED, "{}"))
    except msgspec.DecodeError:
        # anybody can write the annotation
        before = {}
    if isinstance(before, dict):
        _add(owned, before)
    return owned


def _named(fields: Mapping[str, Any]) -> Json:
    """The names in a set of fields (FieldsV1); those of items of lists are left out."""
    return {
        name.removeprefix("f:"): _named(parts)
        for name, parts in fields.items()
        if name.startswith("f:") and isinstance(parts, Mapping)
    }


def _add(owned: Json, more: Mapping[str, Any]) -> None:
    for name, parts in more.items():
        into = owned.setdefault(name, {})
        if isinstance(parts, Mapping) and isinstance(into, dict):
            _add(into, parts)
