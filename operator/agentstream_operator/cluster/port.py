"""What reconciling needs from the place where resources, workloads and secrets live."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from agentstream.protocol.signatures import Keys
from agentstream_operator.resources.consumergroup import ConsumerGroup
from agentstream_operator.resources.meta import ResourceKey
from agentstream_operator.resources.status import AgentStreamStatus, ConditionReason, ConsumerGroupStatus


class ClusterUnavailable(Exception):  # noqa: N818 - named like the SDK's errors, after what is wrong
    """The place where resources live does not answer just now; what was to be done is done again later."""


class ClusterRefused(Exception):  # noqa: N818
    """Something was refused, and will be again until somebody changes something; the message says what.

    Attributes:
        reason: what a condition says of it.
    """

    reason = ConditionReason.TEMPLATE_REFUSED


class ChildNotOurs(ClusterRefused):
    """An object with the name of a child exists and belongs to somebody else."""

    reason = ConditionReason.CHILD_NOT_OURS


class Owner(NamedTuple):
    """A resource that a child belongs to; another one of the same name has another `uid`."""

    key: ResourceKey
    uid: str


@dataclass(frozen=True, slots=True)
class Credentials:
    """How an agent reaches the server: the contents of its Secret.

    Attributes:
        namespace: the agent's namespace.
        agent: its name.
        username: its ACL user.
        password: the user's password; kept out of every representation.
        owners: uids of the resources that it belongs to; empty where nothing collects what has no owner.
        signing: the keys of signed streams, by the streams' names, as text for the SDK.
    """

    namespace: str
    agent: str
    username: str
    password: str = field(repr=False)
    owners: frozenset[str] = frozenset()
    signing: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class SigningKeys:
    """The keys with which the messages of a stream are signed.

    Attributes:
        stream: the AgentStream.
        keys: the newest first.
        owner: uid of the AgentStream that they belong to.
    """

    stream: ResourceKey
    keys: Keys
    owner: str


@dataclass(frozen=True, slots=True)
class AutoscalerSeen:
    """The autoscaler of a group in mode HPA.

    Attributes:
        works: whether it can do its work; None before it first tried.
        message: why it cannot.
    """

    works: bool | None
    message: str = ""


@dataclass(frozen=True, slots=True)
class WorkloadSeen:
    """The consumers of a group as they run.

    Attributes:
        replicas: how many are wanted at present.
        ready: how many run.
        crashing: why the latest one ended or does not start, while it is not started again.
        current: whether nobody changed since what was applied.
        autoscaler: who decides how many there are but for none; None where we do.
    """

    replicas: int
    ready: int
    crashing: str | None = None
    current: bool = True
    autoscaler: AutoscalerSeen | None = None


@dataclass(frozen=True, slots=True)
class Pods:
    """The pods of a group.

    Attributes:
        prefix: what the names of all pods that there ever were begin with.
        alive: names of those that may hold messages.
    """

    prefix: str
    alive: frozenset[str]

    def has_lost(self, pod: str) -> bool:
        """Whether this is the name of a pod of the group that is there no more."""
        # a Deployment's pods are called after it, its ReplicaSet and themselves
        suffix = pod.removeprefix(self.prefix)
        return suffix != pod and suffix.count("-") == 1 and pod not in self.alive


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a resource, once.

    Attributes:
        about: the resource.
        reason: from the closed list.
        message: one sentence for a person.
        warning: whether somebody should look.
        uid: of the resource.
    """

    about: ResourceKey
    reason: ConditionReason
    message: str
    warning: bool = False
    uid: str = ""


class Cluster(Protocol):
    """The port. Every method may be repeated after a crash without harm, and only writes what differs.

    All of them may raise `ClusterUnavailable`, and those that write children `ClusterRefused`.
    """

    async def credentials(self, namespace: str, agent: str) -> Credentials | None:
        """The agent's Secret, if there is one."""
        ...

    async def users(self) -> Collection[str]:
        """Names of the installation's users for whom there is a Secret."""
        ...

    async def apply_credentials(self, credentials: Credentials, owners: tuple[Owner, ...]) -> None:
        """Writes the agent's Secret, unless one is there that differs only in its owners."""
        ...

    async def delete_credentials(self, namespace: str, agent: str) -> None:
        """Removes the agent's Secret."""
        ...

    async def signing_keys(self, stream: ResourceKey) -> SigningKeys | None:
        """The keys of a stream, if there are any."""
        ...

    async def apply_signing_keys(self, keys: SigningKeys, owner: Owner) -> None:
        """Writes the keys of a stream."""
        ...

    async def workload(self, group: ConsumerGroup) -> WorkloadSeen | None:
        """The consumers of a group, if there are any or ever were."""
        ...

    async def apply_workload(self, group: ConsumerGroup, replicas: int) -> None:
        """Makes consumers as the template says, so many; with `deploymentRef` only so many.

        In mode HPA it makes an autoscaler, too, where there are such.
        """
        ...

    async def delete_workload(self, group: ResourceKey) -> None:
        """Stops the consumers of a group."""
        ...

    async def delete_autoscaler(self, group: ResourceKey) -> None:
        """Removes the autoscaler of a group, if there is one."""
        ...

    async def pods(self, group: ConsumerGroup) -> Pods | None:
        """The pods of a group that has a template; None where whoever knows them tells of each that ends."""
        ...

    async def set_deletion_costs(self, group: ConsumerGroup, held: Mapping[str, int]) -> None:
        """Lets pods of a group that hold fewer messages go first when there are to be fewer.

        Args:
            group: the group; without a template nothing of its pods is known, and nothing happens.
            held: how many each pod holds, by name; one that is not named holds none.
        """
        ...

    async def write_status(self, about: Owner, status: AgentStreamStatus | ConsumerGroupStatus) -> None:
        """Writes a status that changed, unless the resource is gone, or another one by now."""
        ...

    async def set_finalizer(self, about: Owner, *, present: bool) -> None:
        """Adds or removes our finalizer, unless the resource is gone, or another one by now."""
        ...

    async def emit(self, event: Event) -> None:
        """Records an event."""
        ...
