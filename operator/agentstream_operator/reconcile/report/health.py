"""How the engine is just now, for probes and metrics."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from agentstream_operator.reconcile.context import Context

ConditionCount = tuple[str, str, str]
"""Kind of the resources, type of the condition, its status."""


@dataclass(frozen=True, slots=True)
class OperatorHealth:
    """How the engine is.

    Attributes:
        trouble: what the server's silence looks like; None while it answers.
        complete: whether every resource has been listed.
        waiting: keys that wait to be worked on now.
        oldest: seconds for which the first of them has waited.
        round_trips: how often commands were sent to the server and answered.
    """

    trouble: str | None
    complete: bool
    waiting: int
    oldest: float
    round_trips: int


def health(context: Context) -> OperatorHealth:
    """How the engine is just now."""
    return OperatorHealth(
        trouble=context.backend.trouble,
        complete=context.complete,
        waiting=len(context.queue),
        oldest=context.queue.oldest(),
        round_trips=context.broker.round_trips,
    )


def conditions(context: Context) -> Counter[ConditionCount]:
    """How many resources say what in their conditions."""
    counted: Counter[ConditionCount] = Counter()
    for keys in (context.store.streams, context.store.groups):
        for resource in keys.values():
            status = context.reported(resource).status
            for condition in status.conditions if status is not None else ():
                counted[resource.kind, condition.type, condition.status] += 1
    return counted
