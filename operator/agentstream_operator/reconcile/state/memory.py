"""What the engine remembers of each resource between two looks at it. Nothing has to survive the process."""

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
    """What was written last.

    Attributes:
        status: the status, if there is one.
        conditions: what its conditions were made of.
        written_at: when, on the loop's clock.
        transient_since: since when it would say what is about to change by itself.
        finalizer: what `set_finalizer` was called with since the resource changed last.
        rounds: how often in a row there was something to do.
    """

    status: Status | None = None
    conditions: tuple[ConditionUpdate, ...] = ()
    written_at: float = float("-inf")
    transient_since: float | None = None
    finalizer: bool | None = None
    rounds: int = 0


class JanitorPass(NamedTuple):
    """A pass of the janitor: when, on the loop's clock, what for, and what was seen of the stream before."""

    at: float
    spec: JanitorSpec
    seen: StreamSeen | None


@dataclass(slots=True)
class StreamMemory:
    """An AgentStream.

    Attributes:
        reported: its status.
        seen: the latest observation, unless something was written since.
        seen_at: when that was asked for, on the loop's clock.
        now: the server's clock then, in ms.
        shown: the latest observation, whatever was written since.
        added: `seen.added` when a plan was made last; None if the stream was never there.
        usable: whether agents may use it; None before the first plan.
        contracts: the digest of its contracts on the server; empty if it has none.
        history: what the janitor said.
        cleaned: the janitor's latest pass.
        arrivals: how many entries are added per second.
        keys: those with which its messages are signed, as its agents have them or are about to.
        keys_failure: why they could not be kept.
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
        established: whether the group was seen on its stream, or made there.
        stream_lost: whether the stream lost entries since.
        progress: how far it is.
        stalled: whether it does not get on.
        counters: what its account was brought up to.
        account: what became of its messages since the engine began to look.
        replicas: how its consumers were when that was decided last.
        pace: how much one of them settles.
        decision: how many consumers it should have.
        rest: what that was decided on, if there was nothing to do and nothing to wait for.
        applied: how many were applied, as which spec said.
        refused: why its consumers could not be made as they should be.
        missing: whether the Deployment that it names is not there.
        workload: how its consumers run.
        moved: which way their number went last.
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
        changes: how often something changed that concerns it.
        followed: how many of these changes its Secret, user and route show.
        failed: why the latest try to write them failed.
        written: what was written.
    """

    changes: int = 1
    followed: int = 0
    failed: Failure | None = None
    written: Written | None = None

    @property
    def waiting(self) -> bool:
        """Whether something is still to be written."""
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
        """Takes over what an earlier process wrote: the stream was there if it was in sync."""
        memory = self.streams[key] = StreamMemory(reported=_reported(status))
        if status is not None and _was_in_sync(status):
            memory.added = status.length or 0

    def recall_group(self, key: ResourceKey, status: ConsumerGroupStatus | None) -> None:
        """Takes over what an earlier process wrote: the group was there if it was in sync."""
        memory = self.groups[key] = GroupMemory(reported=_reported(status))
        if status is None:
            return
        memory.established = _was_in_sync(status)
        scaling = find_condition(status.conditions, ConditionType.SCALING_ACTIVE)
        if scaling is not None and scaling.reason in _MOVES:
            memory.moved = scaling.reason

    def forget(self, key: ResourceKey) -> None:
        """Drops a resource that is gone."""
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
        """How far the users of these agents are."""
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
    # what an earlier process wrote is recent: mere numbers wait as if this one had written it
    return StatusMemory(status, conditions, written_at=time.monotonic())


def _was_in_sync(status: Status) -> bool:
    synced = find_condition(status.conditions, ConditionType.SYNCED)
    return synced is not None and synced.status == "True"
