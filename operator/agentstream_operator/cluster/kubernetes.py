"""The port to where resources live, on Kubernetes."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from agentstream.protocol.keys import user_name
from agentstream.protocol.signatures import entry_name
from agentstream_operator.cluster.api import Api, ApiError
from agentstream_operator.cluster.children import OwnedObjects
from agentstream_operator.cluster.deployment_refs import DeploymentRefs
from agentstream_operator.cluster.finalizers import set_finalizer
from agentstream_operator.cluster.kinds import EVENTS, RESOURCES, SECRETS
from agentstream_operator.cluster.labels import (
    deployment_name,
    is_ours,
    secret_name,
    signing_secret_name,
)
from agentstream_operator.cluster.pods import rank, says_cost
from agentstream_operator.cluster.port import (
    ChildNotOurs,
    ClusterRefused,
    ClusterUnavailable,
    Credentials,
    Event,
    Owner,
    Pods,
    SigningKeys,
    WorkloadSeen,
)
from agentstream_operator.cluster.secrets import (
    AUTHORITY,
    ServerAddress,
    encoded_address,
    secret,
    signing_secret,
)
from agentstream_operator.cluster.workloads import Workloads, refused
from agentstream_operator.resources.consumergroup import ConsumerGroup
from agentstream_operator.resources.meta import API_VERSION, ResourceKey
from agentstream_operator.resources.status import AgentStreamStatus, ConditionReason, ConsumerGroupStatus

_log = logging.getLogger(__name__)
_COMPONENT = "agentstream"
_MESSAGE = 1024
_NOT_FOUND, _CONFLICT = 404, 409

_ORDINARY = frozenset({ConditionReason.STREAM_CREATED, ConditionReason.GROUP_CREATED})
"""What everybody expects, and the status says anyway: no event is written for it."""


class KubernetesCluster:
    """Secrets, Deployments, statuses, finalizers and events through the API server.

    Args:
        api: the API server.
        children: what is known of Secrets, Deployments and pods.
        references: Deployments that are somebody else's.
        server: where agents find Redis or Valkey.
        installation: name of the installation.
        identity: who reports events: the operator's pod.
    """

    def __init__(
        self,
        api: Api,
        children: OwnedObjects,
        references: DeploymentRefs,
        *,
        server: ServerAddress,
        installation: str,
        identity: str,
    ) -> None:
        self._api = api
        self._children = children
        self._workloads = Workloads(api, children, references)
        self._server = server
        self._address = encoded_address(server)
        self._installation = installation
        self._identity = identity

    async def credentials(self, namespace: str, agent: str) -> Credentials | None:
        """The agent's Secret, if there is one. One that names another server seems to have no owner."""
        seen = self._children.secrets.get((namespace, secret_name(agent)))
        if seen is None or seen.credentials is None or seen.address == self._address:
            return seen.credentials if seen is not None else None
        return replace(seen.credentials, owners=frozenset())

    async def users(self) -> Collection[str]:
        """Names of the installation's users for whom there is a Secret."""
        found = [seen.credentials for seen in self._children.secrets.values() if seen.credentials is not None]
        # one that says another name is another installation's, or was edited
        return {
            each.username
            for each in found
            if each.username == user_name(self._installation, each.namespace, each.agent)
        }

    async def apply_credentials(self, credentials: Credentials, owners: tuple[Owner, ...]) -> None:
        """Makes the agent's Secret, or changes one of ours; nothing else of a change of others is lost."""
        known = self._children.secrets.get((credentials.namespace, secret_name(credentials.agent)))
        before = known.credentials.signing if known is not None and known.credentials is not None else ()
        # who vouched for another server says nothing of this one
        gone = (AUTHORITY, *(entry_name(stream) for stream in before))
        await self._write_secret(secret(credentials, owners, self._server, self._installation), gone)

    async def delete_credentials(self, namespace: str, agent: str) -> None:
        """Removes the agent's Secret, if it is ours."""
        if (namespace, secret_name(agent)) in self._children.secrets:
            await self._api.delete(SECRETS, namespace, secret_name(agent))

    async def signing_keys(self, stream: ResourceKey) -> SigningKeys | None:
        """The keys of a stream, if there are any."""
        seen = self._children.secrets.get((stream.namespace, signing_secret_name(stream.name)))
        return seen.keys if seen is not None else None

    async def apply_signing_keys(self, keys: SigningKeys, owner: Owner) -> None:
        """Makes the Secret with the keys of a stream, or changes one of ours."""
        await self._write_secret(signing_secret(keys, owner))

    async def workload(self, group: ConsumerGroup) -> WorkloadSeen | None:
        """The Deployment of a group, or the one that it names, and who decides its replicas."""
        return await self._workloads.seen(group)

    async def apply_workload(self, group: ConsumerGroup, replicas: int) -> None:
        """Applies the Deployment of a group, or scales the one that it names, and its autoscaler."""
        await self._workloads.apply(group, replicas)

    async def delete_workload(self, group: ResourceKey) -> None:
        """Deletes the Deployment of a group, if there is one of ours."""
        await self._workloads.delete(group)

    async def delete_autoscaler(self, group: ResourceKey) -> None:
        """Deletes the autoscaler of a group, if there is one of ours."""
        await self._workloads.delete_autoscaler(group)

    async def pods(self, group: ConsumerGroup) -> Pods | None:
        """The pods of a group that has a template."""
        return Pods(f"{deployment_name(group.metadata.name)}-", frozenset(self._children.alive(group.key)))

    async def rank_pods(self, group: ConsumerGroup, held: Mapping[str, int]) -> None:
        """Says what deleting each pod of a group costs, unless its template does."""
        template = group.spec.template
        if template is not None and not says_cost(template.as_manifest()):
            await rank(self._api, group.metadata.namespace, self._children.alive(group.key), held)

    async def write_status(self, about: Owner, status: AgentStreamStatus | ConsumerGroupStatus) -> None:
        """Replaces a status, unless the resource is gone or another one."""
        key, uid = about
        try:
            await self._api.replace_status(
                RESOURCES[key.kind], key.namespace, key.name, uid, status.as_manifest()
            )
        except ApiError as error:
            if error.code != _NOT_FOUND and not error.another:
                raise ClusterRefused(f"the status of {key} is refused: {error}") from error

    async def set_finalizer(self, about: Owner, *, present: bool) -> None:
        """Changes our entry of the finalizers, and no other."""
        await set_finalizer(self._api, about, present=present)

    async def emit(self, event: Event) -> None:
        """Writes an event, unless it is ordinary; one that cannot be written is only logged."""
        _log.log(
            logging.WARNING if event.warning else logging.INFO,
            "%s: %s: %s",
            event.about,
            event.reason,
            event.message,
        )
        if event.reason in _ORDINARY:
            return
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        about = event.about
        body = {
            "metadata": {"name": f"{about.name}.{uuid.uuid4().hex[:16]}", "namespace": about.namespace},
            "involvedObject": {
                "apiVersion": API_VERSION,
                "kind": about.kind,
                "namespace": about.namespace,
                "name": about.name,
                "uid": event.uid,
            },
            "reason": event.reason,
            "message": event.message[:_MESSAGE],
            "type": "Warning" if event.warning else "Normal",
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
            "source": {"component": _COMPONENT},
            "reportingComponent": _COMPONENT,
            "reportingInstance": self._identity,
        }
        try:
            await self._api.create(EVENTS, about.namespace, body)
        except (ApiError, ClusterUnavailable) as error:
            _log.info("the event was not written: %s", error)

    async def _write_secret(self, body: dict[str, Any], gone: Iterable[str] = ()) -> None:
        """Makes a Secret, or changes the one that is known, without the entries that have gone.

        Raises:
            ClusterRefused: it is refused.
            ClusterUnavailable: another one is there than was known.
        """
        namespace, name = body["metadata"]["namespace"], body["metadata"]["name"]
        known = self._children.secrets.get((namespace, name))
        try:
            if known is None:
                made = await self._api.create(SECRETS, namespace, body)
            else:
                body["metadata"]["resourceVersion"] = str(known.version)
                body["data"] = {**dict.fromkeys(gone), **body["data"]}
                made = await self._api.merge(SECRETS, namespace, name, body)
        except ApiError as error:
            if error.code in (_NOT_FOUND, _CONFLICT):
                await self._look_at_secret(namespace, name)
            refused(error, f"the Secret {name}")
            return
        self._children.put(made)

    async def _look_at_secret(self, namespace: str, name: str) -> None:
        """Finds out what is there in place of the Secret that was expected, to be taken into account next.

        Raises:
            ChildNotOurs: somebody else's Secret.
            ClusterUnavailable: it is known now; what failed is to be done again.
        """
        found = await self._api.get(SECRETS, namespace, name)
        if found is None:
            self._children.secrets.pop((namespace, name), None)
        elif not is_ours(found["metadata"]):
            raise ChildNotOurs(
                f"the Secret {name} belongs to somebody else: rename or delete it, or rename the agent or"
                " stream"
            )
        else:
            self._children.put(found)
        raise ClusterUnavailable(f"the Secret {namespace}/{name} changed meanwhile")
