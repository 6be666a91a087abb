"""The port to the place where resources, workloads and Secrets live."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from agentstream.protocol.signatures import Keys
from agentstream_operator.resources.consumergroup import ConsumerGroup
from agentstream_operator.resources.meta import NamespaceSeen, ResourceKey
from agentstream_operator.resources.status import AnyStatus, ConditionReason


class ClusterUnavailable(Exception):  # noqa: N818 - named like the SDK's errors, after what is wrong
    """The cluster does not answer; the operation is retried later."""


class ClusterRefused(Exception):  # noqa: N818
    """The cluster refuses a change until the cause that the message names is removed."""

    reason = ConditionReason.TEMPLATE_REFUSED


class ChildNotOurs(ClusterRefused):
    """An object of the required name exists and was not created by the operator."""

    reason = ConditionReason.CHILD_NOT_OURS


class Owner(NamedTuple):
    """The resource that an object belongs to; a new resource of the same name has another `uid`."""

    key: ResourceKey
    uid: str


class Unreadable(NamedTuple):
    """A resource that cannot be parsed, at a generation, and why."""

    owner: Owner
    generation: int
    problem: str


@dataclass(frozen=True, slots=True)
class Credentials:
    """The contents of an agent's Secret; `signing` has entries about signatures by names of streams."""

    namespace: str
    agent: str
    username: str
    password: str = field(repr=False)
    owners: frozenset[str] = frozenset()  # uids of the resources that name the agent
    signing: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class SigningKeys:
    """The signing keys of a stream, the newest first; `owner` is the uid of the AgentStream."""

    stream: ResourceKey
    keys: Keys
    owner: str


@dataclass(frozen=True, slots=True)
class AutoscalerSeen:
    """The autoscaler of a group in mode HPA: whether it can scale, and why it cannot."""

    works: bool | None  # None before its first evaluation
    message: str = ""


@dataclass(frozen=True, slots=True)
class WorkloadSeen:
    """The consumers of a group: the numbers of desired and of ready replicas, and their state."""

    replicas: int
    ready: int
    crashing: str | None = None  # why the latest one ended or does not start, while its restart is delayed
    current: bool = True  # the applied spec is unchanged
    autoscaler: AutoscalerSeen | None = None


@dataclass(frozen=True, slots=True)
class Pods:
    """The pods of a group: the prefix of all their names, and the names of those that may hold messages."""

    prefix: str
    alive: frozenset[str]

    def has_lost(self, pod: str) -> bool:
        """Returns whether a pod of this name belonged to the group and is gone."""
        # a Deployment's pods are called after it, its ReplicaSet and themselves
        suffix = pod.removeprefix(self.prefix)
        return suffix != pod and suffix.count("-") == 1 and pod not in self.alive


@dataclass(frozen=True, slots=True)
class Event:
    """An event of a resource with this `uid`."""

    about: ResourceKey
    reason: ConditionReason
    message: str
    warning: bool = False
    uid: str = ""


class Cluster(Protocol):
    """The port. Every method may be repeated after a crash, and writes only differences.

    All of them may raise `ClusterUnavailable`; those that write objects also `ClusterRefused`.
    """

    async def namespace(self, name: str) -> NamespaceSeen:
        """Returns a namespace as it is now."""

    async def credentials(self, namespace: str, agent: str) -> Credentials | None:
        """Returns the agent's Secret, if it exists."""

    async def users(self) -> Collection[str]:
        """Returns the names of the installation's users that have a Secret."""

    async def apply_credentials(self, credentials: Credentials, owners: tuple[Owner, ...]) -> None:
        """Writes the agent's Secret."""

    async def delete_credentials(self, namespace: str, agent: str) -> None:
        """Deletes the agent's Secret."""

    async def signing_keys(self, stream: ResourceKey) -> SigningKeys | None:
        """Returns the signing keys of a stream, if there are any."""

    async def apply_signing_keys(self, keys: SigningKeys, owner: Owner) -> None:
        """Writes the signing keys of a stream."""

    async def workload(self, group: ConsumerGroup) -> WorkloadSeen | None:
        """Returns the workload of a group, if it exists."""

    async def apply_workload(self, group: ConsumerGroup, replicas: int) -> None:
        """Applies the template or scales the Deployment of deploymentRef; in mode HPA also the autoscaler."""

    async def delete_workload(self, group: ResourceKey) -> None:
        """Deletes the workload of a group."""

    async def delete_autoscaler(self, group: ResourceKey) -> None:
        """Deletes the autoscaler of a group, if it exists."""

    async def pods(self, group: ConsumerGroup) -> Pods | None:
        """Returns the pods of a group with a template; None where every end of a process is reported."""

    async def set_deletion_costs(self, group: ConsumerGroup, held: Mapping[str, int]) -> None:
        """Makes pods that hold fewer messages (by name; default 0) the first to be removed at a scale-in."""

    async def write_status(self, about: Owner, status: AnyStatus) -> None:
        """Writes a changed status, unless the resource is gone or was replaced."""

    async def delete_replay(self, about: Owner) -> None:
        """Deletes a StreamReplay that ended long enough ago, unless it is gone or was replaced."""

    async def set_finalizer(self, about: Owner, *, present: bool) -> None:
        """Adds or removes the operator's finalizer, unless the resource is gone or was replaced."""

    async def emit(self, event: Event) -> None:
        """Records an event."""
