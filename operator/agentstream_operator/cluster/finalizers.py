"""The finalizer of this project on a resource, without touching those of others."""

from __future__ import annotations

from http import HTTPStatus

from agentstream_operator.cluster.api import Api, ApiError
from agentstream_operator.cluster.kinds import RESOURCES
from agentstream_operator.cluster.port import ClusterUnavailable, Owner
from agentstream_operator.resources.meta import FINALIZER

_TRIES = 5


async def set_finalizer(api: Api, about: Owner, *, present: bool) -> None:
    """Adds or removes our finalizer, unless the resource is gone, or another one by now.

    Raises:
        ApiError: the change is refused.
        ClusterUnavailable: the API server does not answer, or others change the resource all the time.
    """
    key, uid = about
    kind = RESOURCES[key.kind]
    for _ in range(_TRIES):
        found = await api.get(kind, key.namespace, key.name)
        if found is None or found["metadata"]["uid"] != uid:
            return
        metadata = found["metadata"]
        before = metadata.get("finalizers") or []
        others = [name for name in before if name != FINALIZER]
        wanted = [*others, FINALIZER] if present else others
        # what is being deleted takes no new one
        if wanted == before or (present and "deletionTimestamp" in metadata):
            return
        patch = {"metadata": {"finalizers": wanted, "resourceVersion": metadata["resourceVersion"]}}
        try:
            await api.merge(kind, key.namespace, key.name, patch)
        except ApiError as error:
            if error.code == HTTPStatus.NOT_FOUND:
                return
            if error.code != HTTPStatus.CONFLICT:
                raise
        else:
            return
    raise ClusterUnavailable(f"{key} is changed by others all the time")
