"""The cluster port in memory: keeps what a cluster would keep, and counts what is written to it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from agentstream_operator.cluster.port import (
    AutoscalerSeen,
    Credentials,
    Event,
    Owner,
    Pods,
    SigningKeys,
    WorkloadSeen,
)
from agentstream_operator.resources.consumergroup import ConsumerGroup
from agentstream_operator.resources.meta import FINALIZER, NamespaceSeen, ResourceKey
from agentstream_operator.resources.parse import AnyResource as Resource
from agentstream_operator.resources.status import (
    AnyStatus,
    Condition,
    ConditionReason,
    ConditionType,
    find_condition,
)


@dataclass
class MemoryCluster:
    """Implements `Cluster`. A workload is whatever was applied, and runs at once.

    Attributes:
        namespaces: those that are not as any other.
        secrets: credentials by namespace and agent.
        owners: the owners of each of them.
        signing: the keys of signed streams.
        workloads: consumers by group.
        running: pods by group; without any, nothing is known of them.
        autoscales: whether there are autoscalers here.
        autoscalers: those of groups in mode HPA.
        ranked: what pods were said to hold by group, when there came to be fewer.
        templates: the groups as they were when their consumers were applied.
        statuses: the statuses that were written.
        finalizers: resources that carry the finalizer.
        events: what was emitted, in order.
        deleted_replays: replays whose time was over, in order.
        writes: how many calls changed something, by the method's name.
    """

    namespaces: dict[str, NamespaceSeen] = field(default_factory=dict)
    secrets: dict[tuple[str, str], Credentials] = field(default_factory=dict)
    owners: dict[tuple[str, str], tuple[ResourceKey, ...]] = field(default_factory=dict)
    signing: dict[ResourceKey, SigningKeys] = field(default_factory=dict)
    workloads: dict[ResourceKey, WorkloadSeen] = field(default_factory=dict)
    running: dict[ResourceKey, Pods] = field(default_factory=dict)
    autoscales: bool = True
    autoscalers: dict[ResourceKey, AutoscalerSeen] = field(default_factory=dict)
    ranked: dict[ResourceKey, dict[str, int]] = field(default_factory=dict)
    templates: dict[ResourceKey, ConsumerGroup] = field(default_factory=dict)
    statuses: dict[ResourceKey, AnyStatus] = field(default_factory=dict)
    finalizers: set[ResourceKey] = field(default_factory=set)
    events: list[Event] = field(default_factory=list)
    deleted_replays: list[Owner] = field(default_factory=list)
    writes: dict[str, int] = field(default_factory=dict)

    async def namespace(self, name: str) -> NamespaceSeen:
        return self.namespaces.get(name, NamespaceSeen(f"uid-of-{name}"))

    async def credentials(self, namespace: str, agent: str) -> Credentials | None:
        return self.secrets.get((namespace, agent))

    async def users(self) -> Collection[str]:
        return {credentials.username for credentials in self.secrets.values()}

    async def apply_credentials(self, credentials: Credentials, owners: tuple[Owner, ...]) -> None:
        self._count("apply_credentials")
        self.secrets[credentials.namespace, credentials.agent] = credentials
        self.owners[credentials.namespace, credentials.agent] = tuple(owner.key for owner in owners)

    async def delete_credentials(self, namespace: str, agent: str) -> None:
        if self.secrets.pop((namespace, agent), None) is not None:
            self._count("delete_credentials")

    async def signing_keys(self, stream: ResourceKey) -> SigningKeys | None:
        return self.signing.get(stream)

    async def apply_signing_keys(self, keys: SigningKeys, owner: Owner) -> None:
        assert owner == (keys.stream, keys.owner)
        self._count("apply_signing_keys")
        self.signing[keys.stream] = keys

    async def workload(self, group: ConsumerGroup) -> WorkloadSeen | None:
        found = self.workloads.get(group.key)
        if found is None or not group.leaves_replicas:
            return found
        known = self.autoscalers.get(group.key)
        return replace(found, current=known is not None or not self.autoscales, autoscaler=known)

    async def pods(self, group: ConsumerGroup) -> Pods | None:
        return self.running.get(group.key)

    async def set_deletion_costs(self, group: ConsumerGroup, held: Mapping[str, int]) -> None:
        self._count("set_deletion_costs")
        self.ranked[group.key] = dict(held)

    async def apply_workload(self, group: ConsumerGroup, replicas: int) -> None:
        self._count("apply_workload")
        if group.leaves_replicas and self.autoscales:
            self.autoscalers.setdefault(group.key, AutoscalerSeen(works=None))
        self.workloads[group.key] = WorkloadSeen(replicas, replicas)
        self.templates[group.key] = group

    async def delete_workload(self, group: ResourceKey) -> None:
        if self.workloads.pop(group, None) is not None:
            self._count("delete_workload")

    async def delete_autoscaler(self, group: ResourceKey) -> None:
        if group in self.autoscalers:
            del self.autoscalers[group]
            self._count("delete_autoscaler")

    async def write_status(self, about: Owner, status: AnyStatus) -> None:
        self._count("write_status")
        self.statuses[about.key] = status

    async def delete_replay(self, about: Owner) -> None:
        self._count("delete_replay")
        self.deleted_replays.append(about)

    async def set_finalizer(self, about: Owner, *, present: bool) -> None:
        self._count("set_finalizer")
        if present:
            self.finalizers.add(about.key)
        else:
            self.finalizers.discard(about.key)

    async def emit(self, event: Event) -> None:
        self._count("emit")
        self.events.append(event)

    def condition(self, key: ResourceKey, kind: ConditionType) -> Condition | None:
        """A condition of a resource as it was written."""
        status = self.statuses.get(key)
        return find_condition(status.conditions, kind) if status is not None else None

    def says(self, key: ResourceKey, kind: ConditionType) -> tuple[str, str, str]:
        """Status, reason and message of a condition that is there."""
        condition = self.condition(key, kind)
        assert condition is not None
        return condition.status, condition.reason, condition.message

    def ready(self, key: ResourceKey) -> bool:
        """Whether a resource was said to be in effect."""
        condition = self.condition(key, ConditionType.READY)
        return condition is not None and condition.status == "True"

    def reasons(self, key: ResourceKey) -> list[ConditionReason]:
        """The reasons of a resource's events, in order."""
        return [event.reason for event in self.events if event.about == key]

    def as_stored(self, resource: Resource) -> Resource:
        """A resource as a list would return it: with the finalizer and the status that were written."""
        finalizers = (FINALIZER,) if resource.key in self.finalizers else ()
        metadata = resource.metadata.model_copy(update={"finalizers": finalizers})
        return resource.model_copy(update={"metadata": metadata, "status": self.statuses.get(resource.key)})

    def forget(self, key: ResourceKey) -> None:
        """Removes a resource as the API server would: with its status, finalizer, and what only it owns."""
        self.statuses.pop(key, None)
        self.finalizers.discard(key)
        self.signing.pop(key, None)
        for agent, owners in tuple(self.owners.items()):
            self.owners[agent] = tuple(owner for owner in owners if owner != key)
            if not self.owners[agent]:
                del self.owners[agent]
                self.secrets.pop(agent, None)

    def _count(self, method: str) -> None:
        self.writes[method] = self.writes.get(method, 0) + 1
