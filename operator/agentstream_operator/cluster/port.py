"""What reconciling needs from the place where resources, workloads and secrets live."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from agentstream_operator.resources.consumergroup import ConsumerGroup
from agentstream_operator.resources.meta import ResourceKey
from agentstream_operator.resources.status import AgentStreamStatus, ConsumerGroupStatus, Reason


@dataclass(frozen=True, slots=True)
class Credentials:
    """How an agent reaches the server: the contents of its Secret.

    Attributes:
        namespace: the agent's namespace.
        agent: its name.
        username: its ACL user.
        password: the user's password; kept out of every representation.
    """

    namespace: str
    agent: str
    username: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class WorkloadSeen:
    """The consumers of a group as they run.

    Attributes:
        replicas: how many are wanted at present.
        ready: how many run.
        crashing: why the latest one ended, while restarts are being held back.
    """

    replicas: int
    ready: int
    crashing: str | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a resource, once.

    Attributes:
        about: the resource.
        reason: from the closed list.
        message: one sentence for a person.
        warning: whether somebody should look.
    """

    about: ResourceKey
    reason: Reason
    message: str
    warning: bool = False


class Cluster(Protocol):
    """The port. Every method may be repeated after a crash without harm."""

    async def credentials(self, namespace: str, agent: str) -> Credentials | None:
        """The agent's Secret, if there is one."""
        ...

    async def apply_credentials(self, credentials: Credentials, owners: tuple[ResourceKey, ...]) -> None:
        """Writes the agent's Secret."""
        ...

    async def delete_credentials(self, namespace: str, agent: str) -> None:
        """Removes the agent's Secret."""
        ...

    async def workload(self, group: ResourceKey) -> WorkloadSeen | None:
        """The consumers of a group, if they were ever applied."""
        ...

    async def apply_workload(self, group: ConsumerGroup, replicas: int) -> None:
        """Makes the consumers of a group as its template says, that many."""
        ...

    async def delete_workload(self, group: ResourceKey) -> None:
        """Stops the consumers of a group."""
        ...

    async def write_status(self, key: ResourceKey, status: AgentStreamStatus | ConsumerGroupStatus) -> None:
        """Writes a status that changed."""
        ...

    async def set_finalizer(self, key: ResourceKey, *, present: bool) -> None:
        """Adds or removes the finalizer of this project."""
        ...

    async def emit(self, event: Event) -> None:
        """Records an event."""
        ...
