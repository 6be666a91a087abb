"""A cache of the objects that the operator created, from one list and the events since. Does no I/O."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from agentstream_operator.cluster.autoscaler import AutoscalerObject
from agentstream_operator.cluster.autoscaler import read as read_autoscaler
from agentstream_operator.cluster.deployment import REVISION
from agentstream_operator.cluster.kinds import AUTOSCALERS, DEPLOYMENTS, PODS, SECRETS
from agentstream_operator.cluster.labels import (
    AGENT_LABEL,
    FIELD_MANAGER,
    GROUP_LABEL,
    SCALE_MANAGER,
    STREAM_LABEL,
    deployment_name,
    is_ours,
)
from agentstream_operator.cluster.pods import PodSeen, read_pod
from agentstream_operator.cluster.port import Credentials, SigningKeys, WorkloadSeen
from agentstream_operator.cluster.secret_contents import address_in, credentials_in, signing_keys_in
from agentstream_operator.plan.observed import Gone
from agentstream_operator.resources.meta import ResourceKey

_log = logging.getLogger(__name__)

Json = Mapping[str, Any]
Place = tuple[str, str]
"""Namespace and name."""

_MANAGERS = (FIELD_MANAGER, SCALE_MANAGER)
_MESSAGE = 300
_LONGEST_REVISION = 64
_ENDS = 10_000


@dataclass(frozen=True, slots=True)
class SecretSeen:
    """A Secret of an agent or a stream."""

    version: int
    credentials: Credentials | None
    address: str  # the digest of the server's address and CA certificate
    keys: SigningKeys | None = None


@dataclass(frozen=True, slots=True)
class DeploymentSeen:
    """A group's Deployment."""

    version: int
    uid: str
    generation: int
    revision: str | None  # the digest of the applied spec
    replicas: int
    ready: int
    failure: str | None  # why pods cannot be created
    edited: bool  # another manager owns fields of its spec
    ours: bool  # the operator's own manager owns the replicas


@dataclass(frozen=True, slots=True)
class Change:
    """The resource or agent that a changed object belongs to."""

    group: ResourceKey | None = None  # its consumers changed
    agent: Place | None = None  # its Secret changed
    stream: ResourceKey | None = None  # its signing keys changed
    gone: Gone | None = None  # processes of the group that ended
    deleted: bool = False  # their pod was deleted


class OwnedObjects:
    """The Secrets, Deployments, autoscalers and pods with the operator's label."""

    def __init__(self) -> None:
        self.secrets: dict[Place, SecretSeen] = {}
        self.deployments: dict[Place, DeploymentSeen] = {}
        self.pods: dict[Place, PodSeen] = {}
        self.autoscalers: dict[Place, AutoscalerObject] = {}
        self._pods_of: defaultdict[ResourceKey, set[Place]] = defaultdict(set)
        self._ends: dict[tuple[str, Place], int] = {}

    def deployment(self, group: ResourceKey) -> DeploymentSeen | None:
        """Returns the Deployment of a group."""
        return self.deployments.get((group.namespace, deployment_name(group.name)))

    def autoscaler(self, group: ResourceKey) -> AutoscalerObject | None:
        """Returns the autoscaler of a group."""
        return self.autoscalers.get((group.namespace, deployment_name(group.name)))

    def workload(self, group: ResourceKey, *, current: bool) -> WorkloadSeen | None:
        """Returns the workload of a group; `current` is whether its Deployment is as applied."""
        found = self.deployment(group)
        if found is None:
            return None
        stuck = (self.pods[pod].stuck for pod in sorted(self._pods_of.get(group, ())))
        crashing = found.failure or next((why for why in stuck if why is not None), None)
        return WorkloadSeen(found.replicas, found.ready, crashing, current)

    def alive(self, group: ResourceKey) -> Mapping[str, PodSeen]:
        """Returns the pods of a group in which a process may run, by name."""
        found = {place[1]: self.pods[place] for place in self._pods_of.get(group, ())}
        return {name: pod for name, pod in found.items() if not pod.down}

    def put(self, found: Json) -> Change | None:
        """Stores an object that was listed, written or watched. Returns what it concerns, if anything."""
        kind, place = found["kind"], _place(found)
        if not is_ours(found["metadata"]):
            return self.remove(found)
        known = self._of(kind).get(place)
        latest = max(self._ends.get((kind, place), 0), known.version if known is not None else 0)
        if latest >= _version(found):
            # the answer to a write, after a later event
            return None
        try:
            return self._take(kind, place, found)
        except Exception as error:  # noqa: BLE001 - whatever one has, the others are read
            # without the error's text, which may quote a Secret
            _log.warning("cannot read %s %s/%s: %s", kind, *place, type(error).__name__)
            return self.remove(found)

    def _take(self, kind: str, place: Place, found: Json) -> Change | None:
        if kind == SECRETS.kind:
            return self._put_secret(place, found)
        if kind == DEPLOYMENTS.kind:
            return self._put_deployment(place, found)
        if kind == AUTOSCALERS.kind:
            return self._put_autoscaler(place, found)
        return self._put_pod(place, found)

    def remove(self, found: Json) -> Change | None:
        """Removes a deleted object. Returns what it concerns, if anything."""
        kind, place, version = found["kind"], _place(found), _version(found)
        known = self._of(kind)
        present = known.get(place)
        if present is not None and present.version > version:
            # a new object of that name exists
            return None
        # remember the latest deletions: the answer to an earlier write may arrive after the event
        self._ends.pop((kind, place), None)
        self._ends[kind, place] = version
        if len(self._ends) > _ENDS:
            del self._ends[next(iter(self._ends))]
        if kind == SECRETS.kind:
            self.secrets.pop(place, None)
            return _change_of_secret(place, found)
        if kind in (DEPLOYMENTS.kind, AUTOSCALERS.kind):
            known.pop(place, None)
            return _change_of_group(found)
        pod = self._forget_pod(place)
        return Change(group=pod.group, gone=Gone(place[1]), deleted=True) if pod is not None else None

    def versions(self, kind: str) -> dict[Place, int]:
        """Returns the resource versions of the known objects of a kind."""
        return {place: found.version for place, found in self._of(kind).items()}

    def _of(self, kind: str) -> dict[Place, Any]:
        known: dict[str, dict[Place, Any]] = {
            SECRETS.kind: self.secrets,
            DEPLOYMENTS.kind: self.deployments,
            AUTOSCALERS.kind: self.autoscalers,
            PODS.kind: self.pods,
        }
        return known[kind]

    def _put_secret(self, place: Place, found: Json) -> Change | None:
        seen = SecretSeen(_version(found), credentials_in(found), address_in(found), signing_keys_in(found))
        known = self.secrets.get(place)
        self.secrets[place] = seen
        if known is not None and replace(known, version=seen.version) == seen:
            return None
        return _change_of_secret(place, found)

    def _put_deployment(self, place: Place, found: Json) -> Change | None:
        spec, status, metadata = found["spec"], found.get("status") or {}, found["metadata"]
        self.deployments[place] = DeploymentSeen(
            version=_version(found),
            uid=metadata["uid"],
            generation=metadata.get("generation", 0),
            revision=(metadata.get("annotations") or {}).get(REVISION, "")[:_LONGEST_REVISION] or None,
            replicas=spec.get("replicas", 1),
            ready=status.get("readyReplicas", 0),
            failure=_failure(status),
            edited=_is_edited(metadata),
            ours=_replicas_are_ours(metadata),
        )
        return _change_of_group(found)

    def _put_autoscaler(self, place: Place, found: Json) -> Change | None:
        made, known = read_autoscaler(found), self.autoscalers.get(place)
        self.autoscalers[place] = made
        if known is not None and replace(known, version=made.version) == made:
            # only its current metrics changed
            return None
        return _change_of_group(found)

    def _put_pod(self, place: Place, found: Json) -> Change | None:
        group = _group_of(found)
        known = self.pods.get(place)
        if group is None:
            return None
        seen = read_pod(found, group)
        self._forget_pod(place)
        self.pods[place] = seen
        self._pods_of[group].add(place)
        gone = seen.ended(place[1], known)
        return Change(group=group, gone=gone) if gone is not None or seen.tells(known) else None

    def _forget_pod(self, place: Place) -> PodSeen | None:
        """Removes a pod. Returns what was known of it."""
        pod = self.pods.pop(place, None)
        if pod is not None:
            self._pods_of[pod.group].discard(place)
            if not self._pods_of[pod.group]:
                del self._pods_of[pod.group]
        return pod


def _place(found: Json) -> Place:
    return found["metadata"].get("namespace", ""), found["metadata"]["name"]


def _version(found: Json) -> int:
    # https://github.com/kubernetes/enhancements/tree/master/keps/sig-api-machinery/5504-comparable-resource-version
    return int(found["metadata"]["resourceVersion"])


def _group_of(found: Json) -> ResourceKey | None:
    name = (found["metadata"].get("labels") or {}).get(GROUP_LABEL)
    return ResourceKey("ConsumerGroup", _place(found)[0], name) if name else None


def _change_of_group(found: Json) -> Change | None:
    group = _group_of(found)
    return Change(group=group) if group is not None else None


def _change_of_secret(place: Place, found: Json) -> Change | None:
    labels = found["metadata"].get("labels") or {}
    if agent := labels.get(AGENT_LABEL):
        return Change(agent=(place[0], agent))
    if stream := labels.get(STREAM_LABEL):
        return Change(stream=ResourceKey("AgentStream", place[0], stream))
    return None


def _failure(status: Json) -> str | None:
    """Returns why a Deployment's pods cannot be created: a quota, a policy."""
    for condition in status.get("conditions") or ():
        if condition.get("type") == "ReplicaFailure" and condition.get("status") == "True":
            return str(condition.get("message", "cannot create pods"))[:_MESSAGE]
    return None


def _is_edited(metadata: Json) -> bool:
    """Returns whether another manager owns fields of the spec; subresources do not count."""
    return any(
        entry.get("manager") not in _MANAGERS and "f:spec" in (entry.get("fieldsV1") or {})
        for entry in metadata.get("managedFields") or ()
        if not entry.get("subresource")
    )


def _replicas_are_ours(metadata: Json) -> bool:
    return any(
        "f:replicas" in ((entry.get("fieldsV1") or {}).get("f:spec") or {})
        for entry in metadata.get("managedFields") or ()
        if entry.get("manager") == FIELD_MANAGER and not entry.get("subresource")
    )
