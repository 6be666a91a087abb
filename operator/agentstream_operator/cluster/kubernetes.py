"""The port to the cluster, on Kubernetes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus

from agentstream_operator.cluster.api import Api, ApiError
from agentstream_operator.cluster.events import EventWriter
from agentstream_operator.cluster.kinds import NAMESPACES, RESOURCES
from agentstream_operator.cluster.labels import deployment_name
from agentstream_operator.cluster.owned_objects import OwnedObjects
from agentstream_operator.cluster.pods import has_deletion_cost, set_deletion_costs
from agentstream_operator.cluster.port import ClusterRefused, ClusterUnavailable, Owner, Pods
from agentstream_operator.cluster.secret_contents import ServerAddress
from agentstream_operator.cluster.secrets import Secrets
from agentstream_operator.cluster.workloads import DeploymentRefs, Workloads
from agentstream_operator.resources.consumergroup import ConsumerGroup
from agentstream_operator.resources.meta import ADOPT_ANNOTATION, FINALIZER, NamespaceSeen
from agentstream_operator.resources.status import AnyStatus

_log = logging.getLogger(__name__)
_COMPONENT = "agentstream"
_TRIES = 5


class KubernetesCluster:
    """Reads and writes Secrets, workloads, statuses, finalizers and events through the API server.

    `server` is the address for agents; `identity` is the reporter of events: the operator's pod.
    """

    def __init__(
        self,
        api: Api,
        owned: OwnedObjects,
        deployment_refs: DeploymentRefs,
        *,
        server: ServerAddress,
        installation: str,
        identity: str,
    ) -> None:
        self._api = api
        self._owned = owned
        self.emit = EventWriter(api, _COMPONENT, identity).emit
        secrets = Secrets(api, owned, server, installation)
        self.credentials, self.apply_credentials = secrets.credentials, secrets.apply_credentials
        self.delete_credentials, self.users = secrets.delete_credentials, secrets.users
        self.signing_keys, self.apply_signing_keys = secrets.signing_keys, secrets.apply_signing_keys
        workloads = Workloads(api, owned, deployment_refs)
        self.workload, self.apply_workload = workloads.seen, workloads.apply
        self.delete_workload, self.delete_autoscaler = workloads.delete, workloads.delete_autoscaler

    async def namespace(self, name: str) -> NamespaceSeen:
        """Reads a namespace."""
        try:
            found = await self._api.get(NAMESPACES, None, name)
        except ApiError as error:
            raise ClusterRefused(f"cannot read the namespace {name}: {error}") from error
        if found is None:
            raise ClusterUnavailable(f"the namespace {name} is gone")
        metadata = found["metadata"]
        adopts = (metadata.get("annotations") or {}).get(ADOPT_ANNOTATION) == "true"
        return NamespaceSeen(metadata["uid"], adopts)

    async def pods(self, group: ConsumerGroup) -> Pods | None:
        """Returns the pods of a group with a template."""
        return Pods(f"{deployment_name(group.metadata.name)}-", frozenset(self._owned.alive(group.key)))

    async def set_deletion_costs(self, group: ConsumerGroup, held: Mapping[str, int]) -> None:
        """Sets the deletion cost of each pod of a group, unless its template sets one."""
        template = group.spec.template
        if template is not None and not has_deletion_cost(template.as_manifest()):
            await set_deletion_costs(self._api, group.metadata.namespace, self._owned.alive(group.key), held)

    async def write_status(self, about: Owner, status: AnyStatus) -> None:
        """Replaces a status, unless the resource is gone or was replaced."""
        key, uid = about
        try:
            await self._api.replace_status(
                RESOURCES[key.kind], key.namespace, key.name, uid, status.as_manifest()
            )
        except ApiError as error:
            if error.code != HTTPStatus.NOT_FOUND and not error.another:
                raise ClusterRefused(f"the API server refused the status of {key}: {error}") from error

    async def delete_replay(self, about: Owner) -> None:
        """Deletes a StreamReplay, unless it is gone or was replaced."""
        key, uid = about
        try:
            await self._api.delete(RESOURCES[key.kind], key.namespace, key.name, uid)
        except ApiError as error:
            if error.code != HTTPStatus.CONFLICT:
                raise ClusterRefused(f"the API server refused to delete {key}: {error}") from error

    async def set_finalizer(self, about: Owner, *, present: bool) -> None:
        """Adds or removes the operator's finalizer, and no other."""
        await set_finalizer(self._api, about, present=present)


async def set_finalizer(api: Api, about: Owner, *, present: bool) -> None:
    """Adds or removes the operator's finalizer, unless the resource is gone or was replaced.

    Raises as `Api.merge`, and `ClusterUnavailable` if every attempt conflicted.
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
        # the API server adds no finalizer to a resource that is being deleted
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
    raise ClusterUnavailable(f"could not change the finalizer of {key}: {_TRIES} conflicts in a row")
