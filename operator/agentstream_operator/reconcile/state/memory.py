"""What the engine remembers of each resource between two rounds. None of it has to survive the process."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from agentstream.protocol.replaying import ReplayProgress
from agentstream.protocol.signatures import Keys
from agentstream_operator.cluster.port import WorkloadSeen
from agentstream_operator.plan.accounting import Account, GroupTotals
from agentstream_operator.plan.agents import AgentName, Passwords, Written
from agentstream_operator.plan.conditions import ALL_WRITTEN, AgentsState, ConditionUpdate, Failure
from agentstream_operator.plan.observed import JanitorReport, StreamSeen
from agentstream_operator.plan.replay import Reach
from agentstream_operator.plan.retention import JanitorSpec, RetentionHistory, janitor_actions
from agentstream_operator.plan.scaling import Decision, Replicas
from agentstream_operator.plan.signal import Activity, Pace, Progress, Rate
from agentstream_operator.resources.agentstream import AgentStream
from agentstream_operator.resources.consumergroup import ConsumerGroupSpec
from agentstream_operator.resources.meta import NamespaceSeen, ResourceKey
from agentstream_operator.resources.parse import AnyResource
from agentstream_operator.resources.status import (
    AgentStreamStatus,
    AnyStatus,
    ConditionReason,
    ConditionType,
    ConsumerGroupStatus,
    StreamReplayStatus,
    find_condition,
)
from agentstream_operator.resources.streamreplay import StreamReplay

_MOVES = (ConditionReason.SCALED_UP, ConditionReason.SCALED_DOWN)


@dataclass(slots=True)
class StatusMemory:
    """The latest written status."""

    status: AnyStatus | None = None
    conditions: tuple[ConditionUpdate, ...] = ()  # the source of the written ones
    written_at: float = float("-inf")  # on the loop's clock
    transient_since: float | None = None  # since when the state to write is a transient one
    finalizer: bool | None = None  # as set since the resource changed last
    rounds: int = 0  # consecutive rounds with actions


class JanitorPass(NamedTuple):
    """A pass of the janitor: time on the loop's clock, arguments, and the observation before it."""

    at: float
    spec: JanitorSpec
    seen: StreamSeen | None


@dataclass(slots=True)
class StreamMemory:
    """What is remembered of an AgentStream."""

    reported: StatusMemory = field(default_factory=StatusMemory)
    seen: StreamSeen | None = None  # the latest observation, unless the stream was written to since
    seen_at: float = float("-inf")  # when it was requested, on the loop's clock
    now: int = 0  # the server's clock then, in ms
    shown: StreamSeen | None = None  # the latest observation, regardless of writes
    added: int | None = None  # `seen.added` at the latest plan; None if the stream never existed
    usable: bool | None = None  # whether agents may use it; None before the first plan
    contracts: str = ""  # their digest on the server; empty if it has none
    history: RetentionHistory | None = None
    cleaned: JanitorPass | None = None  # the latest pass of the janitor
    arrivals: Rate | None = None  # of new entries
    keys: Keys = ()  # as its agents have them or are about to get them
    keys_failure: Failure | None = None  # why they could not be written


@dataclass(slots=True)
class GroupMemory:
    """What is remembered of a ConsumerGroup."""

    reported: StatusMemory = field(default_factory=StatusMemory)
    serves: bool | None = None  # whether its agent may use it; None before the first plan
    established: bool = False  # whether the group was seen on its stream, or created there
    stream_lost: bool = False  # whether the stream lost entries since
    progress: Progress | None = None
    work: Activity = Activity.SETTLING
    asked: int = 0  # when its consumers' leases were looked at, in ms of the server's clock
    misread: str = ""  # what of its keys could not be read, at the latest such observation
    misread_at: int = 0  # when that was, in ms of the server's clock
    counters: GroupTotals | None = None  # at the latest update of the account
    account: Account = field(default_factory=Account)  # since the engine started
    replicas: Replicas | None = None  # at the latest decision
    pace: Pace | None = None
    decision: Decision | None = None
    idle_inputs: tuple[object, ...] | None = None  # of the latest decision, if the group was idle
    applied: tuple[int, ConsumerGroupSpec] | None = None  # replicas and spec
    refused: Failure | None = None  # why the workload could not be applied
    missing: bool = False  # whether the Deployment of deploymentRef does not exist
    workload: WorkloadSeen | None = None
    moved: ConditionReason = ConditionReason.SCALE_HELD  # the direction of the latest scaling


@dataclass(slots=True)
class ReplayMemory:
    """What is remembered of a StreamReplay."""

    reported: StatusMemory = field(default_factory=StatusMemory)
    reach: Reach | None = None  # how its range lies outside of what the stream had at its beginning
    progress: ReplayProgress | None = None  # as of the latest look
    at_end: bool = False  # whether nothing is left to be looked at
    window_full: bool = False  # whether it holds as the group has too many retries
    problem: str = ""  # why it could not go on, at the latest try

    @property
    def status(self) -> StreamReplayStatus | None:
        """The latest written status; that of the resource itself may be an earlier one."""
        status = self.reported.status
        return status if isinstance(status, StreamReplayStatus) else None


@dataclass(slots=True)
class AgentMemory:
    """What is remembered of an agent."""

    changes: int = 1  # counts changes that concern it
    followed: int = 0  # the count as of the latest write
    failed: Failure | None = None  # of the latest write
    written: Written | None = None
    placed: bytes | None = None  # the route that was in place on the server after it
    passwords: Passwords | None = None
    unclosed: bool = False  # whether connections of an earlier password have still to be closed

    @property
    def waiting(self) -> bool:
        """Whether something is to be written."""
        return self.changes != self.followed


class Memory:
    """Everything that is remembered; a look-up of an unknown key creates its memory."""

    def __init__(self) -> None:
        self.streams: defaultdict[ResourceKey, StreamMemory] = defaultdict(StreamMemory)
        self.groups: defaultdict[ResourceKey, GroupMemory] = defaultdict(GroupMemory)
        self.replays: defaultdict[ResourceKey, ReplayMemory] = defaultdict(ReplayMemory)
        self.agents: defaultdict[AgentName, AgentMemory] = defaultdict(AgentMemory)
        self.namespaces: dict[str, NamespaceSeen] = {}
        # replays that are gone, by name, until what they left on the server is removed
        self.removed_replays: defaultdict[ResourceKey, list[StreamReplay]] = defaultdict(list)
        self.running_replays: set[ResourceKey] = set()  # those that are to be carried out now
        # actions of the janitor since the start, by name
        self.janitor = Counter(janitor_actions(JanitorReport("none")))

    def recall_stream(self, key: ResourceKey, status: AgentStreamStatus | None) -> None:
        """Restores the memory of an earlier process: a stream in sync existed."""
        memory = self.streams[key] = StreamMemory(reported=_reported(status))
        if status is not None and _was_in_sync(status):
            memory.added = status.length or 0

    def recall_group(self, key: ResourceKey, status: ConsumerGroupStatus | None) -> None:
        """Restores the memory of an earlier process: a group in sync existed."""
        memory = self.groups[key] = GroupMemory(reported=_reported(status))
        if status is None:
            return
        memory.established = _was_in_sync(status)
        scaling = find_condition(status.conditions, ConditionType.SCALING_ACTIVE)
        if scaling is not None and scaling.reason in _MOVES:
            memory.moved = scaling.reason

    def recall_replay(self, key: ResourceKey, status: StreamReplayStatus | None) -> None:
        """Restores the memory of an earlier process: how far a replay had come."""
        self.replays[key] = ReplayMemory(_reported(status))

    def forget(self, key: ResourceKey) -> None:
        """Drops the memory of a resource, and of its namespace: another one may get that name."""
        self.namespaces.pop(key.namespace, None)
        self.streams.pop(key, None)
        self.groups.pop(key, None)
        self.replays.pop(key, None)
        self.running_replays.discard(key)

    def reported(self, resource: AnyResource) -> StatusMemory:
        """Returns what is remembered of a resource's status."""
        if isinstance(resource, StreamReplay):
            return self.replays[resource.key].reported
        memories = self.streams if isinstance(resource, AgentStream) else self.groups
        return memories[resource.key].reported

    def invalidate(self, stream: ResourceKey) -> None:
        """Drops the observation of a stream that was written to."""
        memory = self.streams[stream]
        memory.seen, memory.seen_at = None, asyncio.get_running_loop().time()

    def state_of(self, names: Iterable[AgentName]) -> AgentsState:
        """Returns the progress of writing the users of agents."""
        waiting, failed = [], None
        for name in names:
            memory = self.agents[name]
            if memory.waiting:
                waiting.append(name.agent)
            failed = failed or memory.failed
        return AgentsState(tuple(waiting), failed) if waiting or failed else ALL_WRITTEN


def _reported(status: AnyStatus | None) -> StatusMemory:
    if status is None:
        return StatusMemory()
    conditions = tuple(ConditionUpdate(c.type, c.status, c.reason, c.message) for c in status.conditions)
    # the status of an earlier process counts as recent, so that mere numbers wait
    return StatusMemory(status, conditions, written_at=time.monotonic())


def _was_in_sync(status: AnyStatus) -> bool:
    synced = find_condition(status.conditions, ConditionType.SYNCED)
    return synced is not None and synced.status == "True"
