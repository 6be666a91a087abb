"""An index of all resources and their relations."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple, TypeVar

from agentstream_operator.cluster.port import Owner, Unreadable
from agentstream_operator.plan.agents import AgentName, agents_of
from agentstream_operator.plan.conflicts import claim_of, may_claim, oldest, seniority
from agentstream_operator.resources.agentstream import AgentStream
from agentstream_operator.resources.consumergroup import ConsumerGroup
from agentstream_operator.resources.meta import ResourceKey
from agentstream_operator.resources.parse import AnyResource, StreamOrGroup
from agentstream_operator.resources.streamreplay import StreamReplay

AGENT = "Agent"
"""Kind of the keys under which agents are reconciled; there is no such resource."""

T = TypeVar("T")


def agent_key(name: AgentName) -> ResourceKey:
    """Returns the key under which an agent is reconciled."""
    return ResourceKey(AGENT, name.namespace, name.agent)


def owner_of(resource: AnyResource) -> Owner:
    """Returns a resource as an owner."""
    return Owner(resource.key, resource.metadata.uid)


def stream_of(group: ConsumerGroup) -> ResourceKey:
    """Returns the key of a group's AgentStream."""
    return ResourceKey("AgentStream", group.metadata.namespace, group.spec.stream_ref.name)


def group_of(replay: StreamReplay) -> ResourceKey:
    """Returns the key of a replay's ConsumerGroup."""
    return ResourceKey("ConsumerGroup", replay.metadata.namespace, replay.spec.group_ref.name)


class ServedGroup(NamedTuple):
    """A group that no older resource claims."""

    key: ResourceKey
    group: ConsumerGroup
    name: str


class ResourceIndex:
    """All resources by key, with their relations.

    Any namespace may claim keys that match the shell patterns `allowed`.
    """

    def __init__(self, allowed: Sequence[str] = ()) -> None:
        self._allowed = tuple(allowed)
        self.complete = False  # whether every resource has been listed
        self.changes = 0  # counts puts and removals
        self.streams: dict[ResourceKey, AgentStream] = {}
        self.groups: dict[ResourceKey, ConsumerGroup] = {}
        self.replays: dict[ResourceKey, StreamReplay] = {}
        self._unreadable: dict[ResourceKey, Unreadable] = {}
        self._claims: defaultdict[str, set[ResourceKey]] = defaultdict(set)
        self._readers: defaultdict[ResourceKey, set[ResourceKey]] = defaultdict(set)
        self._replays_of: defaultdict[ResourceKey, set[ResourceKey]] = defaultdict(set)
        self._named_by: defaultdict[AgentName, set[ResourceKey]] = defaultdict(set)
        self._declared: dict[ResourceKey, tuple[ServedGroup, ...]] = {}
        self._scaling: defaultdict[tuple[str, str], set[ResourceKey]] = defaultdict(set)
        self._served: dict[ResourceKey, tuple[ConsumerGroup, ...]] = {}

    def get(self, key: ResourceKey) -> AnyResource | None:
        """Returns a resource, if it is known."""
        return self.streams.get(key) or self.groups.get(key) or self.replays.get(key)

    def put(self, resource: AnyResource) -> set[ResourceKey]:
        """Stores a resource. Returns the keys of all others whose plans may change."""
        key = resource.key
        self.changes += 1
        self.readable(key)
        if isinstance(resource, StreamReplay):
            return self._put_replay(resource)
        self._served.clear()
        affected = self._retold(self.groups.get(key), resource) | self._unlink(key)
        if isinstance(resource, AgentStream):
            self.streams[key] = resource
            self._claims[claim_of(resource)].add(key)
        else:
            self.groups[key] = resource
            self._readers[stream_of(resource)].add(key)
            if resource.spec.deployment_ref is not None:
                self._scaling[key.namespace, resource.spec.deployment_ref.name].add(key)
            self._declared.pop(stream_of(resource), None)
        for name in agents_of(resource):
            self._named_by[name].add(key)
        return (affected | self._related(resource)) - {key}

    def _put_replay(self, replay: StreamReplay) -> set[ResourceKey]:
        self._unlink_replay(replay.key)
        self.replays[replay.key] = replay
        self._replays_of[group_of(replay)].add(replay.key)
        return set(self._replays_of[group_of(replay)]) - {replay.key}

    def remove(self, key: ResourceKey) -> set[ResourceKey]:
        """Removes a resource. Returns the keys of all whose plans may change."""
        self.changes += 1
        self.readable(key)
        if key in self.replays:
            return self._unlink_replay(key)
        self._served.clear()
        affected = self._retold(self.groups.get(key), None) | self._unlink(key)
        self.streams.pop(key, None)
        self.groups.pop(key, None)
        return affected - {key}

    def unreadable(self, found: Unreadable) -> bool:
        """Notes a resource that cannot be parsed; its last version stays. Returns whether that is new."""
        known = self._unreadable.get(found.owner.key)
        self._unreadable[found.owner.key] = found
        return found != known

    def why_unreadable(self, key: ResourceKey) -> Unreadable | None:
        """Returns why a resource cannot be parsed; None if it can, or is not known."""
        return self._unreadable.get(key)

    def readable(self, key: ResourceKey) -> None:
        """Notes that a resource can be parsed, or is gone."""
        self._unreadable.pop(key, None)

    @property
    def unreadable_namespaces(self) -> Collection[str]:
        """Namespaces with an invalid resource, in which not every use of an agent is known."""
        # a replay names no agent
        return {key.namespace for key in self._unreadable if key.kind != "StreamReplay"}

    @property
    def agents(self) -> Collection[AgentName]:
        """All agents that resources name."""
        return self._named_by.keys()

    def keys(self) -> Iterator[ResourceKey]:
        """Yields the keys of everything that is reconciled."""
        yield from self.streams
        yield from self.groups
        yield from self.replays
        for name in self._named_by:
            yield agent_key(name)

    def named_by(self, name: AgentName) -> list[StreamOrGroup]:
        """Returns the resources that name an agent, the oldest first."""
        found = (self.streams.get(key) or self.groups.get(key) for key in self._named_by.get(name, ()))
        return sorted((resource for resource in found if resource is not None), key=seniority)

    def winner(self, stream: AgentStream) -> AgentStream | None:
        """Returns the oldest AgentStream that claims the same key and may have it; itself if it is gone."""
        if stream.key not in self.streams:
            return stream
        claims = self._claims[claim_of(stream)]
        return oldest(other for key in claims if may_claim(other := self.streams[key], self._allowed))

    def group_winner(self, group: ConsumerGroup) -> ConsumerGroup:
        """Returns the oldest ConsumerGroup that claims the same group; itself if it is gone."""
        name = group.group_name
        return next((d.group for d in self.declared(stream_of(group)) if d.name == name), group)

    def declared(self, stream: ResourceKey) -> tuple[ServedGroup, ...]:
        """Returns the groups of a stream that no older resource claims, by name."""
        found = self._declared.get(stream)
        if found is None:
            oldest_first = sorted((self.groups[key] for key in self._readers.get(stream, ())), key=seniority)
            by_name = {group.group_name: group for group in reversed(oldest_first)}
            found = tuple(ServedGroup(group.key, group, name) for name, group in sorted(by_name.items()))
            self._declared[stream] = found
        return found

    def readers_of(self, stream: ResourceKey) -> Collection[ResourceKey]:
        """Returns the keys of all groups that name a stream."""
        return self._readers.get(stream, ())

    def replays_of(self, group: ResourceKey) -> list[StreamReplay]:
        """Returns the replays of a group, the oldest first; with statuses that may be of an earlier time."""
        return sorted((self.replays[key] for key in self._replays_of.get(group, ())), key=seniority)

    def groups_of_agent(self, group: ConsumerGroup) -> list[ConsumerGroup]:
        """Returns all groups with the agent of a group, the oldest first."""
        return [other for other in self.named_by(agents_of(group)[0]) if isinstance(other, ConsumerGroup)]

    def served_by(self, group: ConsumerGroup) -> tuple[ConsumerGroup, ...]:
        """Returns the groups that a group's consumers serve: itself, and its agent's without a workload."""
        served = self._served.get(group.key)
        if served is None or served[0] is not group:
            own = self.groups_of_agent(group)
            first = next((other for other in own if other.has_workload), None)
            others = (other for other in own if not other.has_workload) if first is group else ()
            served = self._served[group.key] = (group, *others)
        return served

    def agents_on(self, stream: AgentStream) -> list[AgentName]:
        """Returns the agents that produce to a stream or consume it."""
        readers = (agents_of(self.groups[key])[0] for key in self.readers_of(stream.key))
        return list(dict.fromkeys((*agents_of(stream), *readers)))

    def scales_deployment(self, group: ConsumerGroup) -> ConsumerGroup | None:
        """Returns the oldest group with the same deploymentRef; None without one."""
        if group.spec.deployment_ref is None:
            return None
        rivals = self._scaling[group.metadata.namespace, group.spec.deployment_ref.name]
        return oldest(self.groups[key] for key in rivals)

    def _unlink(self, key: ResourceKey) -> set[ResourceKey]:
        """Removes a stream or group from the relations. Returns the keys of all related ones."""
        resource = self.streams.get(key) or self.groups.get(key)
        if resource is None:
            return set()
        affected = self._related(resource)
        if isinstance(resource, AgentStream):
            _discard(self._claims, claim_of(resource), key)
        else:
            _discard(self._readers, stream_of(resource), key)
            if resource.spec.deployment_ref is not None:
                _discard(self._scaling, (key.namespace, resource.spec.deployment_ref.name), key)
            self._declared.pop(stream_of(resource), None)
        for name in agents_of(resource):
            _discard(self._named_by, name, key)
        return affected

    def _unlink_replay(self, key: ResourceKey) -> set[ResourceKey]:
        """Removes a replay. Returns the keys of the others of its group, which may wait for it."""
        replay = self.replays.pop(key, None)
        if replay is None:
            return set()
        others = self._replays_of[group_of(replay)] - {key}
        _discard(self._replays_of, group_of(replay), key)
        return others

    def _retold(self, before: ConsumerGroup | None, after: StreamOrGroup | None) -> set[ResourceKey]:
        """Returns the producers of broadcast streams that gain or lose a group: their routes list it."""
        changed = {
            (stream_of(group), group.group_name)
            for group in (before, after)
            if isinstance(group, ConsumerGroup)
        }
        if before is not None and after is not None and len(changed) == 1:
            return set()
        streams = (self.streams.get(stream) for stream, _ in changed)
        found = (stream for stream in streams if stream is not None and stream.spec.broadcast)
        return {agent_key(name) for stream in found for name in agents_of(stream)}

    def _related(self, resource: StreamOrGroup) -> set[ResourceKey]:
        """Returns the keys of all whose plans depend on a resource."""
        agents = set(agents_of(resource))
        if isinstance(resource, AgentStream):
            readers = self._readers.get(resource.key, set())
            related = self._claims.get(claim_of(resource), set()) | readers
            agents.update(agents_of(self.groups[key])[0] for key in readers)
        else:
            stream, name = stream_of(resource), resource.group_name
            rivals = (key for key in self._readers[stream] if self.groups[key].group_name == name)
            related = {stream, *rivals} if stream in self.streams else set(rivals)
            related.update(other.key for other in self.groups_of_agent(resource))
            related |= self._replays_of.get(resource.key, set())
            if resource.spec.deployment_ref is not None:
                related |= self._scaling.get((stream.namespace, resource.spec.deployment_ref.name), set())
        return related | {agent_key(name) for name in agents}


def _discard(index: defaultdict[T, set[ResourceKey]], of: T, key: ResourceKey) -> None:
    keys = index[of]
    keys.discard(key)
    if not keys:
        del index[of]
