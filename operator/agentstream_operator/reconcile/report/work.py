"""What every group's consumers have to do, as numbers for dashboards and alerts."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from agentstream_operator.plan.signal import Signal
from agentstream_operator.reconcile.context import Context
from agentstream_operator.reconcile.resources.consumers import signal_of


class GroupWork(msgspec.Struct, frozen=True):
    """The work of a ConsumerGroup.

    Attributes:
        namespace: its namespace.
        stream: name of its AgentStream.
        group: its name.
        signal: the work, as it was measured last.
        pace: entries that a busy consumer settles in a second, if that is known.
        desired: how many consumers it should have, if it has any of its own.
    """

    namespace: str
    stream: str
    group: str
    signal: Signal
    pace: float | None
    desired: int | None


def work(context: Context) -> Iterator[GroupWork]:
    """The work of every group that has its place on its stream."""
    for key, group in context.store.groups.items():
        if context.store.group_winner(group) is not group:
            continue
        memory = context.memory.groups[key]
        yield GroupWork(
            namespace=key.namespace,
            stream=group.spec.stream_ref.name,
            group=key.name,
            signal=signal_of(context, group),
            pace=memory.pace.value if memory.pace is not None else None,
            desired=memory.decision.replicas if memory.decision is not None else None,
        )
