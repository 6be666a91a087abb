"""What the engine holds of every resource at one moment, for metrics; numbers are computed when asked for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from agentstream_operator.plan.accounting import Account
from agentstream_operator.plan.lag import GroupLag, StreamLag, group_lag, stream_lag
from agentstream_operator.plan.ledger import Ledger, ledger_of
from agentstream_operator.plan.observed import StreamSeen
from agentstream_operator.plan.retention import RetentionHistory
from agentstream_operator.plan.signal import UNKNOWN, Rate, Signal, read_signal
from agentstream_operator.reconcile.state.index import stream_of
from agentstream_operator.reconcile.state.memory import GroupMemory, StreamMemory
from agentstream_operator.reconcile.state.state import State
from agentstream_operator.resources.agentstream import AgentStream
from agentstream_operator.resources.consumergroup import ConsumerGroup
from agentstream_operator.resources.meta import ResourceKey
from agentstream_operator.resources.parse import AnyResource
from agentstream_operator.resources.status import AnyStatus, StreamReplayStatus
from agentstream_operator.resources.streamreplay import StreamReplay

_CURRENT = 15.0
"""Seconds for which an observation counts as the present: three of the longest rounds of measuring."""

_TURN = 200
"""Resources that are looked at in a row: some ms."""

T = TypeVar("T")


class GroupWork(msgspec.Struct, frozen=True):
    """What is held of a ConsumerGroup."""

    resource: ConsumerGroup
    seen: StreamSeen | None  # its stream as of the latest observation, if that is recent
    arrivals: Rate | None  # of the stream's entries
    pace: float | None = None  # entries per second of a busy consumer, if known
    desired: int | None = None  # the desired replicas, if the group has a workload
    ready: int | None = None  # the ready ones, if they are known
    taken: int = 0  # messages that others took from it, neither delivered again nor written off
    account: Account | None = None  # since the engine started; None before the first observation

    @property
    def signal(self) -> Signal:
        """The work; unknown if the group was not seen lately."""
        return read_signal(self.seen, self.resource.group_name, self.arrivals) if self.seen else UNKNOWN

    @property
    def lag(self) -> GroupLag | None:
        """The numbers as people read them; None if they are not known."""
        return group_lag(self.seen, self.resource.group_name) if self.seen else None

    @property
    def ledger(self) -> Ledger | None:
        """What became of its messages since it began; None if that is not known."""
        return ledger_of(self.seen, self.resource.group_name) if self.seen else None

    @property
    def members(self) -> int | None:
        """The consumers that the server lists; None if that is not known."""
        found = self.seen.groups.get(self.resource.group_name) if self.seen else None
        return found.consumers if found is not None and found.exists else None


class StreamWork(msgspec.Struct, frozen=True):
    """What is held of an AgentStream."""

    resource: AgentStream
    groups: tuple[str, ...]  # names of its declared groups
    seen: StreamSeen | None
    history: RetentionHistory | None  # recent reports of the janitor

    @property
    def lag(self) -> StreamLag | None:
        """The numbers as people read them; None if they are not known."""
        limit = self.resource.spec.retention.max_length
        return stream_lag(self.seen, self.groups, limit) if self.seen else None


@dataclass(frozen=True, slots=True)
class Figures:
    """What is held of all resources; streams and groups are those that no older resource claims."""

    groups: tuple[GroupWork, ...] = ()
    streams: tuple[StreamWork, ...] = ()
    replays: tuple[tuple[StreamReplay, StreamReplayStatus], ...] = ()
    statuses: tuple[tuple[ResourceKey, AnyStatus], ...] = ()  # of all resources that have one


async def figures(state: State) -> Figures:
    """Returns what is held now: references only, and the event loop goes on after every few hundred."""
    clock, memory, known = asyncio.get_running_loop().time, state.memory, state.resources
    groups: list[GroupWork] = []
    async for key, group in _in_turns(known.groups):
        if known.group_winner(group) is group:
            groups.append(_group(state, memory.groups[key], group, clock()))
    streams: list[StreamWork] = []
    async for key, stream in _in_turns(known.streams):
        if known.winner(stream) is stream:
            of, names = memory.streams[key], tuple(declared.name for declared in known.declared(key))
            streams.append(StreamWork(stream, names, _seen(state, of, clock()), of.history))
    replays: list[tuple[StreamReplay, StreamReplayStatus]] = []
    async for key, replay in _in_turns(known.replays):
        if (of_replay := memory.replays[key].status) is not None:
            replays.append((replay, of_replay))
    statuses: list[tuple[ResourceKey, AnyStatus]] = []
    everything: dict[ResourceKey, AnyResource] = {**known.streams, **known.groups, **known.replays}
    async for key, resource in _in_turns(everything):
        if known.get(key) is not None and (status := memory.reported(resource).status) is not None:
            statuses.append((key, status))
    return Figures(tuple(groups), tuple(streams), tuple(replays), tuple(statuses))


async def _in_turns(resources: Mapping[ResourceKey, T]) -> AsyncIterator[tuple[ResourceKey, T]]:
    """Yields those that are still there, and lets others run now and then."""
    for number, key in enumerate(tuple(resources)):
        if number % _TURN == _TURN - 1:
            await asyncio.sleep(0)
        if (resource := resources.get(key)) is not None:
            yield key, resource


def _group(state: State, memory: GroupMemory, group: ConsumerGroup, now: float) -> GroupWork:
    stream = state.memory.streams[stream_of(group)]
    return GroupWork(
        group,
        _seen(state, stream, now),
        stream.arrivals,
        memory.pace.value if memory.pace is not None else None,
        memory.decision.replicas if memory.decision is not None else None,
        memory.workload.ready if memory.workload is not None else None,
        memory.counters.taken if memory.counters is not None else 0,
        memory.account if memory.counters is not None else None,
    )


def _seen(state: State, memory: StreamMemory, now: float) -> StreamSeen | None:
    """Returns the latest observation, although the stream may have been written to since."""
    current = state.backend.outage is None and now - memory.seen_at <= _CURRENT
    return memory.shown if current else None
