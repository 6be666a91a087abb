"""What the engine remembers of each resource between two rounds. None of it has to survive the process."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from agentstream.protocol.signatures import Keys
from agentstream_operator.cluster.port import WorkloadSeen
from agentstream_operator.plan.accounting import Account, GroupTotals
from agentstream_operator.plan.agents import AgentName, Written
from agentstream_operator.plan.conditions import ALL_WRITTEN, AgentsState, ConditionUpdate, Failure
from agentstream_operator.plan.observed import JanitorReport, StreamSeen
from agentstream_operator.plan.retention import JanitorSpec, RetentionHistory, janitor_actions
from agentstream_operator.plan.scaling import Decision, Replicas
from agentstream_operator.plan.signal import Pace, Progress, Rate
from agentstream_operator.resources.agentstream import AgentStream
from agentstream_operator.resources.consumergroup import ConsumerGroupSpec
from agentstream_operator.resources.meta import ResourceKey
from agentstream_operator.resources.parse import AnyResource
from agentstream_operator.resources.status import (
    AgentStreamStatus,
    ConditionReason,
    ConditionType,
    ConsumerGroupStatus,
    find_condition,
)

Status = AgentStreamStatus | ConsumerGroupStatus
_MOVES = (ConditionReason.SCALED_UP, ConditionReason.SCALED_DOWN)


@dataclass(slots=True)
class StatusMemory:
    """The latest written status.

    Attributes:
        status: the status, if there is one.
        conditions: the source of its conditions.
        written_at: when it was written, on the loop's clock.
        transient_since: since when the state to write is a transient one.
        finalizer: the finalizer as set since the resource changed last.
        rounds: consecutive rounds with actions.
    """

    status: Status | None = None
    conditions: tuple[ConditionUpdate, ...] = ()
    written_at: float = float("-inf")
    transient_since: float | None = None
    finalizer: bool | None = None
    rounds: int = 0


class JanitorPass(NamedTuple):
    """A pass of the janitor: time on the loop's clock, arguments, and the observation before it."""

    at: float
    spec: JanitorSpec
    seen: StreamSeen | None


@dataclass(slots=True)
class StreamMemory:
    """An AgentStream.

    Attributes:
        reported: its status.
        seen: the latest observation, unless the stream was written to since.
        seen_at: when it was requested, on the loop's clock.
        now: the server's clock then, in ms.
        shown: the latest observation, regardless of writes.
        added: `seen.added` at the latest plan; None if the stream never existed.
        usable: whether agents may use it; None before the first plan.
        contracts: the digest of its contracts on the server; empty if it has none.
        history: reports of the janitor.
        cleaned: the latest pass of the janitor.
        arrivals: the rate of new entries.
        keys: its signing keys, as its agents have them or are about to get them.
        keys_failure: why they could not be written.
    """

    reported: StatusMemory = field(default_factory=StatusMemory)
    seen: StreamSeen | None = None
    seen_at: float = float("-inf")
    now: int = 0
    shown: StreamSeen | None = None
    added: int | None = None
    usable: bool | None = None
    contracts: str = ""
    history: RetentionHistory | None = None
    cleaned: JanitorPass | None = None
    arrivals: Rate | None = None
    keys: Keys = ()
    keys_failure: Failure | None = None


@dataclass(slots=True)
class GroupMemory:
    """A ConsumerGroup.

    Attributes:
        reported: its status.
        serves: whether its agent may use it; None before the first plan.
        established: whether the group was seen on its stream, or created there.
        stream_lost: whether the stream lost entries since.
        progress: its progress.
        stalled: whether it makes none.
        counters: the counters at the latest update of the account.
        account: what became of its messages since the engine started.
        replicas: the state of its consumers at the latest decision.
        pace: the rate of one busy consumer.
        decision: the latest scaling decision.
        idle_inputs: the inputs of that decision, if the group was idle.
        applied: the applied replicas and spec.
        refused: why the workload could not be applied.
        missing: whether the Deployment of deploymentRef does not exist.
        workload: the observed workload.
        moved: the direction of the latest scaling.
    """

    reported: StatusMemory = field(default_factory=StatusMemory)
    serves: bool | None = None
    established: bool = False
    stream_lost: bool = False
    progress: Progress | None = None
    stalled: bool = False
    counters: GroupTotals | None = None
    account: Account = field(default_factory=Account)
    replicas: Replicas | None = None
    pace: Pace | None = None
    decision: Decision | None = None
    idle_inputs: tuple[object, ...] | None = None
    applied: tuple[int, ConsumerGroupSpec] | None = None
    refused: Failure | None = None
    missing: bool = False
    workload: WorkloadSeen | None = None
    moved: ConditionReason = ConditionReason.SCALE_HELD


@dataclass(slots=True)
class AgentMemory:
    """An agent.

    Attributes:
        changes: counts changes that concern it.
        followed: the count as of the latest write.
        failed: the failure of the latest write.
        written: what was written.
    """

    changes: int = 1
    followed: int = 0
    failed: Failure | None = None
    written: Written | None = None

    @property
    def waiting(self) -> bool:
        """Whether something is to be written."""
        return self.changes != self.followed


class Memory:
    """Everything that is remembered; a look-up of an unknown key creates its memory.

    Attributes:
        streams: of each AgentStream.
        groups: of each ConsumerGroup.
        agents: of each agent.
        janitor: actions of the janitor since the start, counted by name.
    """

    def __init__(self) -> None:
        self.streams: defaultdict[ResourceKey, StreamMemory] = defaultdict(StreamMemory)
        self.groups: defaultdict[ResourceKey, GroupMemory] = defaultdict(GroupMemory)
        self.agents: defaultdict[AgentName, AgentMemory] = defaultdict(AgentMemory)
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

    def forget(self, key: ResourceKey) -> None:
        """Drops the memory of a resource."""
        self.streams.pop(key, None)
        self.groups.pop(key, None)

    def reported(self, resource: AnyResource) -> StatusMemory:
        """Returns what is remembered of a resource's status."""
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


def _reported(status: Status | None) -> StatusMemory:
    if status is None:
        return StatusMemory()
    conditions = tuple(ConditionUpdate(c.type, c.status, c.reason, c.message) for c in status.conditions)
    # the status of an earlier process counts as recent, so that mere numbers wait
    return StatusMemory(status, conditions, written_at=time.monotonic())


def _was_in_sync(status: Status) -> bool:
    synced = find_condition(status.conditions, ConditionType.SYNCED)
    return synced is not None and synced.status == "True"
