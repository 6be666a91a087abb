"""Writes statuses: only changes, with rounded numbers at long intervals; and emits events of failures."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from agentstream.printable import printable
from agentstream_operator.cluster.port import Cluster, Event, Unreadable
from agentstream_operator.plan.conditions import ConditionUpdate, with_ready
from agentstream_operator.reconcile.state.index import owner_of
from agentstream_operator.reconcile.state.memory import StatusMemory
from agentstream_operator.reconcile.state.state import StatusIntervals
from agentstream_operator.resources.parse import AnyResource
from agentstream_operator.resources.status import (
    AgentStreamStatus,
    AnyStatus,
    Condition,
    ConditionReason,
    ConditionType,
    ConsumerGroupStatus,
    StreamReplayStatus,
    find_condition,
    set_condition,
)
from agentstream_operator.resources.streamreplay import StreamReplay

_STATUSES: Mapping[str, type[AnyStatus]] = {
    "AgentStream": AgentStreamStatus,
    "ConsumerGroup": ConsumerGroupStatus,
    "StreamReplay": StreamReplayStatus,
}
_ALARMS = frozenset(
    {
        ConditionReason.WRONG_TYPE,
        ConditionReason.KEY_CLAIMED,
        ConditionReason.KEY_OF_FORMER_NAMESPACE,
        ConditionReason.GROUP_CLAIMED,
        ConditionReason.KEY_NOT_ALLOWED,
        ConditionReason.CREDENTIALS_FAILED,
        ConditionReason.CHILD_NOT_OURS,
        ConditionReason.TEMPLATE_REFUSED,
        ConditionReason.DEPLOYMENT_MISSING,
        ConditionReason.DEPLOYMENT_CLAIMED,
        ConditionReason.AUTOSCALER_FAILING,
        ConditionReason.EVICTION_POLICY_WRONG,
        ConditionReason.HISTORY_SHORTENED,
        ConditionReason.HELD_BY_GROUP,
        ConditionReason.ADMISSION_CLOSED,
        ConditionReason.TRIMMED_UNSETTLED,
        ConditionReason.STATS_UNREADABLE,
        ConditionReason.JANITOR_FAILED,
        ConditionReason.TOO_MANY_CONSUMERS,
        ConditionReason.NO_PROGRESS,
        ConditionReason.NO_CONSUMERS,
        ConditionReason.CRASH_LOOP,
        ConditionReason.DEAD_LETTERS,
        ConditionReason.IDS_IN_THE_FUTURE,
        ConditionReason.IDS_EXHAUSTED,
        ConditionReason.MESSAGES_VANISHED,
        ConditionReason.GROUP_MOVED_AHEAD,
        ConditionReason.GROUP_NOT_FOUND,
        ConditionReason.OUTSIDE_RETENTION,
        ConditionReason.NOTHING_MATCHED,
    }
)
# another condition has the cause, or an event of its own tells of it
_NO_ALARM = frozenset({ConditionType.READY, ConditionType.STALLED, ConditionType.FAILED})
_SIGNIFICANT = 100
_PROMPT = ("replicas", "desired_replicas")
"""Numbers that clients act on, such as `kubectl rollout` and autoscalers."""

_SOON = 1.0
_DERIVED = frozenset({"conditions", "observed_generation"})
_TRANSIENT = frozenset({ConditionReason.RECONCILING})
_TRANSIENT_AT_FIRST = _TRANSIENT | {ConditionReason.STREAM_MISSING, ConditionReason.GROUP_NOT_FOUND}


def rounded(number: int) -> int:
    """Rounds a number down to two significant digits, for a status."""
    if number < _SIGNIFICANT:
        return number
    unit: int = 10 ** (len(str(number)) - 2)
    return number // unit * unit


@dataclass(slots=True)
class StatusWriter:
    """Writes statuses through the port.

    `now` returns the present time, with a time zone; `busy` whether so much is queued that
    transient states last longer.
    """

    cluster: Cluster
    now: Callable[[], datetime]
    intervals: StatusIntervals
    busy: Callable[[], bool] = lambda: False

    async def write(
        self,
        resource: AnyResource,
        reported: StatusMemory,
        updates: tuple[ConditionUpdate, ...],
        numbers: dict[str, Any],
    ) -> float | None:
        """Writes the status if it changed: conditions, and numbers as the other fields.

        Returns:
            The seconds until a delayed write is due, or None.
        """
        updates = _fit(updates)
        status, clock = reported.status, asyncio.get_running_loop().time()
        generation = resource.metadata.generation
        wait = self._until_settled(reported, updates, clock)
        if wait > 0:
            return wait
        same = (
            status is not None and status.observed_generation == generation and updates == reported.conditions
        )
        if same and all(getattr(status, name) == value for name, value in numbers.items()):
            return None
        if status is not None and status.observed_generation == generation:
            replay = isinstance(resource, StreamReplay)
            rarely, told = (self.intervals.progress, 2) if replay else (self.intervals.numbers, 3)
            moved = [f[:told] for f in updates] != [f[:told] for f in reported.conditions]
            scaled = any(numbers[name] != getattr(status, name) for name in _PROMPT if name in numbers)
            wait = reported.written_at + (min(rarely, _SOON) if scaled else rarely) - clock
            if not moved and wait > 0:
                return wait
        await self._alarm(resource, status, updates)
        conditions = self._conditions(status, updates, generation)
        numbers = {**_numbers(status), **numbers}
        kind = _STATUSES[resource.kind]
        new = kind(observed_generation=generation, conditions=conditions, **numbers)
        if new != status:
            await self.cluster.write_status(owner_of(resource), new)
        reported.status, reported.conditions, reported.written_at = new, updates, clock
        return None

    async def write_unreadable(self, found: Unreadable) -> None:
        """Writes why a resource cannot be parsed, of which no earlier version is in effect."""
        refused = ConditionUpdate(ConditionType.SYNCED, "False", ConditionReason.INVALID, found.problem)
        conditions = self._conditions(None, with_ready(_fit((refused,))), found.generation)
        status = _STATUSES[found.owner.key.kind](observed_generation=found.generation, conditions=conditions)
        await self.cluster.write_status(found.owner, status)

    def is_due(self, reported: StatusMemory, numbers: dict[str, Any]) -> bool:
        """Returns whether the numbers differ from the written ones, and the interval has elapsed."""
        status = reported.status
        return (
            status is not None
            and asyncio.get_running_loop().time() - reported.written_at >= self.intervals.numbers
            and any(getattr(status, name) != value for name, value in numbers.items())
        )

    def _until_settled(
        self, reported: StatusMemory, updates: tuple[ConditionUpdate, ...], clock: float
    ) -> float:
        """Returns the seconds to wait before a transient state is written."""
        transient = _TRANSIENT if reported.status is not None else _TRANSIENT_AT_FIRST
        if updates[0].kind is not ConditionType.READY or updates[0].reason not in transient:
            reported.transient_since = None
            return 0.0
        if reported.transient_since is None or self.busy():
            reported.transient_since = clock
        return reported.transient_since + self.intervals.transient - clock

    async def _alarm(
        self, resource: AnyResource, status: AnyStatus | None, updates: tuple[ConditionUpdate, ...]
    ) -> None:
        known = {(c.type, c.reason) for c in status.conditions} if status is not None else set()
        for update in updates:
            if (
                update.reason in _ALARMS
                and update.kind not in _NO_ALARM
                and (update.kind, update.reason) not in known
            ):
                message = update.message or str(update.kind)
                uid = resource.metadata.uid
                await self.cluster.emit(Event(resource.key, update.reason, message, warning=True, uid=uid))

    def _conditions(
        self, status: AnyStatus | None, updates: tuple[ConditionUpdate, ...], generation: int
    ) -> tuple[Condition, ...]:
        before = status.conditions if status is not None else ()
        if any(f.kind is ConditionType.BACKEND_REACHABLE and f.status == "False" for f in updates):
            # the other conditions stay as they were, but for what was said of an earlier generation
            conditions = tuple(c for c in before if c.type is not ConditionType.STALLED)
        else:
            named = {update.kind for update in updates}
            conditions = tuple(condition for condition in before if condition.type in named)
        now = self.now()
        for update in updates:
            present = find_condition(conditions, update.kind)
            if present is None or not _says(present, update, generation):
                conditions = set_condition(conditions, *update, generation, now)
        return conditions


def _fit(updates: tuple[ConditionUpdate, ...]) -> tuple[ConditionUpdate, ...]:
    """The same, with messages of one line: servers, agents and tenants may have written parts of them."""
    return tuple(update._replace(message=printable(update.message)) for update in updates)


def _numbers(status: AnyStatus | None) -> dict[str, Any]:
    if status is None:
        return {}
    return {name: getattr(status, name) for name in type(status).model_fields if name not in _DERIVED}


def _says(condition: Condition, update: ConditionUpdate, generation: int) -> bool:
    said = (condition.type, condition.status, condition.reason, condition.message)
    return said == update and condition.observed_generation == generation
