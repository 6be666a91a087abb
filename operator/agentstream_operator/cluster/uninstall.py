"""Uninstalls: stops the operator and removes the finalizers that would wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from agentstream_operator.cluster.api import Api, ApiError
from agentstream_operator.cluster.connect import connect
from agentstream_operator.cluster.kinds import AGENTSTREAMS, CONSUMERGROUPS, DEPLOYMENTS, ApiKind
from agentstream_operator.cluster.kubernetes import set_finalizer
from agentstream_operator.cluster.port import ClusterUnavailable, Owner
from agentstream_operator.resources.meta import FINALIZER, ResourceKey

WITH_FINALIZERS = (AGENTSTREAMS, CONSUMERGROUPS)
"""The kinds that may have the finalizer: what a StreamReplay leaves on the server expires by itself."""

_WITHIN = 60.0
_LOOK_EVERY = 0.5


async def uninstall(namespaces: Sequence[str] | None, deployment: str | None) -> int:
    """Stops the operator's Deployment, if there is one, and removes the finalizers of all resources.

    Returns the number of resources that had the finalizer in these namespaces (None: all).

    Raises:
        ApiError: a request is refused.
        ClusterUnavailable: the API server does not answer, or the operator does not stop.
        NoCluster: no API server is configured.
    """
    connection = await connect()
    api = Api(connection.client)
    try:
        if deployment is not None:
            await _stop(api, connection.namespace, deployment)
        return await _remove(api, namespaces)
    finally:
        await connection.close()


async def _stop(api: Api, namespace: str, name: str) -> None:
    try:
        await api.merge(DEPLOYMENTS, namespace, name, {"spec": {"replicas": 0}}, part="scale")
    except ApiError as error:
        if error.code == HTTPStatus.NOT_FOUND:
            return
        raise
    try:
        async with asyncio.timeout(_WITHIN):
            while True:
                found = await api.get(DEPLOYMENTS, namespace, name)
                status = (found or {}).get("status") or {}
                if found is None or (
                    not status.get("replicas")
                    and status.get("observedGeneration", 0) >= found["metadata"]["generation"]
                ):
                    return
                await asyncio.sleep(_LOOK_EVERY)
    except TimeoutError as error:
        raise ClusterUnavailable(
            f"Deployment {namespace}/{name} still has pods after {_WITHIN:g} s"
        ) from error


async def _remove(api: Api, namespaces: Sequence[str] | None) -> int:
    count = 0
    for kind in WITH_FINALIZERS:
        for namespace in namespaces or (None,):
            for found in await _all(api, kind, namespace):
                metadata = found["metadata"]
                if FINALIZER in (metadata.get("finalizers") or ()):
                    key = ResourceKey(kind.kind, metadata["namespace"], metadata["name"])
                    await set_finalizer(api, Owner(key, metadata["uid"]), present=False)
                    count += 1
    return count


async def _all(api: Api, kind: ApiKind, namespace: str | None) -> list[dict[str, Any]]:
    """Lists every resource of a kind; none if its CRD is deleted."""
    try:
        return [found async for found in api.list(kind, namespace)]
    except ApiError as error:
        if error.code == HTTPStatus.NOT_FOUND:
            return []
        raise
