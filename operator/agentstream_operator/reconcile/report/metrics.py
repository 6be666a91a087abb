"""The engine's figures for probes and metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from agentstream_operator.broker.broker import Broker
from agentstream_operator.reconcile.queue import WorkQueue
from agentstream_operator.reconcile.state.state import State
from agentstream_operator.resources.meta import ResourceKey


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
