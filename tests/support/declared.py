"""What resources promise, worked out in the plainest way, to compare reconciling with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from agentstream_operator.resources.agentstream import AgentStream
from agentstream_operator.resources.consumergroup import ConsumerGroup
from agentstream_operator.resources.meta import ResourceKey

Resource = AgentStream | ConsumerGroup


@dataclass
class Declared:
    """The resources there are.

    Attributes:
        resources: by key.
    """

    resources: dict[ResourceKey, Resource] = field(default_factory=dict)

    @property
    def streams(self) -> list[AgentStream]:
        return [resource for resource in self.resources.values() if isinstance(resource, AgentStream)]

    @property
    def groups(self) -> list[ConsumerGroup]:
        return [resource for resource in self.resources.values() if isinstance(resource, ConsumerGroup)]

    def has_key(self, stream: AgentStream) -> bool:
        """Whether a stream is the oldest of those that claim its key."""
        return _oldest([other for other in self.streams if other.stream_key == stream.stream_key]) is stream

    def takes_effect(self, stream: Resource | None) -> bool:
        """Whether a stream has to be on the server as it is declared."""
        return (
            isinstance(stream, AgentStream)
            and not stream.deleting
            and not stream.paused
            and stream.spec.management_policy == "Managed"
            and self.has_key(stream)
        )

    def stream_of(self, group: ConsumerGroup) -> Resource | None:
        """The stream that a group names, if there is one."""
        return self.resources.get(
            ResourceKey("AgentStream", group.metadata.namespace, group.spec.stream_ref.name)
        )

    def serves(self, group: ConsumerGroup) -> bool:
        """Whether a group has to be on the server as it is declared."""
        rivals = [
            other
            for other in self.groups
            if (other.metadata.namespace, other.spec.stream_ref, other.group_name)
            == (group.metadata.namespace, group.spec.stream_ref, group.group_name)
        ]
        return (
            not group.deleting
            and not group.paused
            and _oldest(rivals) is group
            and self.takes_effect(self.stream_of(group))
        )

    def naming(self, namespace: str, agent: str) -> list[Resource]:
        """The resources that name an agent."""
        return [
            resource
            for resource in self.resources.values()
            if resource.metadata.namespace == namespace and agent in _agents(resource)
        ]


def _oldest(resources: Sequence[Resource]) -> Resource:
    return min(resources, key=lambda resource: str(resource.metadata.creation_timestamp))


def _agents(resource: Resource) -> tuple[str, ...]:
    return resource.spec.producers if isinstance(resource, AgentStream) else (resource.agent_name,)
