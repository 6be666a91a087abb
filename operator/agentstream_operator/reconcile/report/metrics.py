"""The engine's figures for probes and metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import msgspec

from agentstream_operator.broker.broker import Broker
from agentstream_operator.plan.signal import Signal
from agentstream_operator.reconcile.queue import WorkQueue
from agentstream_operator.reconcile.resources.consumers import group_signal
from agentstream_operator.reconcile.state.state import State
from agentstream_operator.resources.meta import ResourceKey
from agentstream_operator.resources.parse import AnyResource

ConditionCount = tuple[str, str, str]
"""Kind of the resources, type of the condition, its status."""


@dataclass(frozen=True, slots=True)
class OperatorHealth:
    """The health of an engine."""

    outage: str | None  # why the server is unreachable
    complete: bool  # whether every resource has been listed
    waiting: int  # the number of queued keys
    oldest: float  # seconds since the oldest of them was queued
    round_trips: int  # to the server since the start
    janitor: Mapping[str, int] = field(default_factory=dict)  # its actions since the start, by name
    failures: Mapping[str, int] = field(
        default_factory=dict
    )  # failures of single items since the start, by loop
    standing: str | None = None  # which loop has not completed a round for long, and why


def health(state: State, broker: Broker, queue: WorkQueue[ResourceKey]) -> OperatorHealth:
    """Returns the present health of an engine."""
    return OperatorHealth(
        outage=state.backend.outage,
        complete=state.resources.complete,
        waiting=len(queue),
        oldest=queue.oldest(),
        round_trips=broker.round_trips,
        janitor=state.memory.janitor,
        failures=state.failures.counts,
        standing=state.failures.standing(),
    )


def count_conditions(state: State) -> Counter[ConditionCount]:
    """Counts resources by kind, condition and status."""
    counted: Counter[ConditionCount] = Counter()
    known = state.resources
    resources: list[AnyResource] = [*known.streams.values(), *known.groups.values(), *known.replays.values()]
    for resource in resources:
        status = state.memory.reported(resource).status
        for condition in status.conditions if status is not None else ():
            counted[resource.kind, condition.type, condition.status] += 1
    return counted


class GroupWork(msgspec.Struct, frozen=True):
    """The work of a ConsumerGroup."""

    namespace: str
    stream: str
    group: str
    signal: Signal  # as of the latest observation
    pace: float | None  # entries per second of a busy consumer, if known
    desired: int | None  # the desired replicas, if the group has a workload
    taken: int = 0  # messages that others took from it, neither delivered again nor written off


def work(state: State) -> Iterator[GroupWork]:
    """Yields the work of every group that no older resource claims."""
    for key, group in state.resources.groups.items():
        if state.resources.group_winner(group) is not group:
            continue
        memory = state.memory.groups[key]
        yield GroupWork(
            namespace=key.namespace,
            stream=group.spec.stream_ref.name,
            group=key.name,
            signal=group_signal(state, group),
            pace=memory.pace.value if memory.pace is not None else None,
            desired=memory.decision.replicas if memory.decision is not None else None,
            taken=memory.counters.taken if memory.counters is not None else 0,
        )
