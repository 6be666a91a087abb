"""Decides how a replay goes on: whether it may begin, how far it reaches, its pace, what is said of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import msgspec

from agentstream.printable import printable
from agentstream.protocol.replaying import ReplayProgress
from agentstream_operator.plan.conditions import ConditionUpdate, EventNote, with_ready
from agentstream_operator.plan.conflicts import seniority
from agentstream_operator.plan.observed import StreamSeen
from agentstream_operator.plan.selection import is_dead
from agentstream_operator.resources.status import (
    ConditionReason,
    ConditionType,
    ReplayPhase,
    StreamReplayStatus,
)
from agentstream_operator.resources.streamreplay import ReplayAction, StreamReplay, StreamReplaySpec
from agentstream_operator.resources.times import LAST_SEQUENCE

TICK: Final = 0.1
"""Seconds between two moves of a replay."""

_BURST = 1.0
_ENDED = (ReplayPhase.COMPLETE, ReplayPhase.FAILED)
_SLOWEST, _FOLLOWED_FOR = 60.0, 7 * 86_400


class Allowance(msgspec.Struct, frozen=True):
    """How many messages may be moved: `due` of them at the time `at`, in seconds of a steady clock."""

    at: float
    due: float = 0.0

    def later(self, rate: int, now: float) -> Allowance:
        """Returns the pace at a later time; what was missed for longer than a second is not made up for."""
        due = self.due + max(0.0, now - self.at) * rate
        return Allowance(max(now, self.at), min(due, 1.0 + rate * _BURST))

    def spent(self, moved: int) -> Allowance:
        """Returns the pace after some were moved."""
        return Allowance(self.at, self.due - moved)

    def wait(self, rate: int) -> float:
        """Returns the seconds until the next move."""
        return max(TICK, (1.0 - self.due) / rate)


class IdRange(NamedTuple):
    """The ids between which a replay reads, both included."""

    start: str
    end: str


def span_of(spec: StreamReplaySpec, last: str) -> IdRange:
    """Returns where a replay reads, `last` being the last entry that there was when it began.

    It ends there: a replay chases neither new messages, nor its own that are dead again. What is added later
    has a greater id, whatever becomes of the server's clock.
    """
    origin = spec.from_
    end = last if origin.until is None else min(origin.last_id, last, key=place)
    return IdRange(origin.first_id, end)


def span_of_begun(spec: StreamReplaySpec, status: StreamReplayStatus) -> IdRange | None:
    """Returns where a replay reads that has begun; None if it has not."""
    if status.started_at is None:
        return None
    # an operator before this one noted the time alone
    began = f"{round(status.started_at.timestamp() * 1000)}-{LAST_SEQUENCE}"
    return span_of(spec, status.last or began)


def place(entry_id: str) -> tuple[int, int]:
    """Returns the place of an id in its stream."""
    milliseconds, _, sequence = entry_id.partition("-")
    return int(milliseconds), int(sequence)


class Reach(NamedTuple):
    """A range that begins before the oldest message that there is; `outside`: it ends there, too."""

    outside: bool
    message: str


def reach(spec: StreamReplaySpec, seen: StreamSeen, span: IdRange) -> Reach | None:
    """Returns how a range lies outside of what the stream still has; None if it does not."""
    # what never had more reaches back to its beginning
    if is_dead(spec) or span.start == "-" or seen.added <= seen.length:
        return None
    if seen.first is None or place(span.end) < place(seen.first):
        what = "is empty" if seen.first is None else f"reaches back to {_time(seen.first)} ({seen.first})"
        return Reach(outside=True, message=f"everything in the range was trimmed: the stream {what}")
    if place(span.start) < place(seen.first):
        back = f"the stream reaches back to {_time(seen.first)} ({seen.first})"
        return Reach(outside=False, message=f"the first part of the range was trimmed: {back}")
    return None


def reported_reach(conditions: Iterable[ConditionUpdate]) -> Reach | None:
    """Returns what an earlier operator has said of it."""
    said = (update for update in conditions if update.reason is ConditionReason.OUTSIDE_RETENTION)
    return next((Reach(outside=False, message=update.message) for update in said), None)


def is_ended(status: StreamReplayStatus | None) -> bool:
    """Whether a replay has ended, well or not."""
    return status is not None and status.phase in _ENDED


def is_held(replay: StreamReplay) -> bool:
    """Whether somebody asked that a replay holds where it is."""
    return replay.spec.suspend or replay.paused


def first_in_line(
    replay: StreamReplay, others: Iterable[tuple[StreamReplay, StreamReplayStatus | None]]
) -> StreamReplay:
    """Returns the replay of a group that goes on now: the one at work, one that was, or the oldest.

    Those that have ended, are held or only count do not stand in the line.
    """
    line = [
        (not _is_running(status), not _has_begun(status), seniority(other), other)
        for other, status in others
        if not is_ended(status) and not is_held(other) and not other.spec.dry_run and not other.deleting
    ]
    return min(line, key=lambda each: each[:3])[3] if line else replay


@dataclass(frozen=True, slots=True)
class ReplayGiven:
    """What is known when a replay is planned."""

    replay: StreamReplay
    status: StreamReplayStatus | None  # as written last
    missing: EventNote | None = None  # what it needs and is not there; a warning if it will not come back
    ahead: StreamReplay | None = None  # another one of the group that goes first
    reach: Reach | None = None
    progress: ReplayProgress | None = None  # None if that is not known
    at_end: bool = False  # whether everything in the range was looked at, or the limit is reached
    window_full: bool = False
    problem: str = ""  # why the last move failed
    last: str = ""  # the last entry that there is, where it has not begun


@dataclass(frozen=True, slots=True)
class ReplayPlan:
    """What is reported of a replay; `events` are emitted once that is written."""

    phase: ReplayPhase
    conditions: tuple[ConditionUpdate, ...]
    numbers: dict[str, Any]
    events: tuple[EventNote, ...] = ()


def plan_replay(given: ReplayGiven, now: datetime) -> ReplayPlan:  # noqa: PLR0911 - one per outcome
    """Decides the phase of a replay that has not ended, and what is said of it.

    `now` is the server's time as the beginning or the end of the replay.
    """
    replay, status = given.replay, given.status
    begun = _has_begun(status)
    numbers = progress_numbers(given.progress)
    if given.missing is not None and begun and given.missing.warning:
        return _failed(given, given.missing, numbers, now)
    if given.at_end and begun:
        return _complete(given, numbers, now)
    if is_held(replay):
        return _suspended(replay, numbers, begun=begun)
    if given.missing is not None:
        return _pending(given.missing.reason, given.missing.message, numbers)
    if given.ahead is not None and not replay.spec.dry_run:
        message = f"waits for the replay {given.ahead.metadata.name} of the same group"
        return _pending(ConditionReason.WAITING_FOR_REPLAY, message, numbers)
    if not begun and given.reach is not None and given.reach.outside:
        failure = EventNote(ConditionReason.OUTSIDE_RETENTION, given.reach.message, warning=True)
        return _failed(given, failure, {**numbers, "started_at": now}, now)
    return _running(given, numbers, now, begun=begun)


def follow_again(
    replay: StreamReplay, status: StreamReplayStatus, now: datetime, interval: float
) -> float | None:
    """Returns the seconds until it is looked again how many messages of an ended replay were settled.

    None once all are, or after a week.
    """
    if replay.spec.action is ReplayAction.DROP:
        return None
    unsettled = (status.moved or 0) - (status.handled or 0) - (status.dead or 0)
    if unsettled <= 0 or status.finished_at is None:
        return None
    age = (now - status.finished_at).total_seconds()
    return None if age > _FOLLOWED_FOR else max(interval, min(_SLOWEST, age / 10))


def expires_in(replay: StreamReplay, status: StreamReplayStatus, now: datetime) -> float | None:
    """Returns the seconds until an ended replay is to be deleted; None if it is kept."""
    ttl = replay.spec.ttl_seconds_after_finished
    if ttl is None or status.finished_at is None:
        return None
    return max(0.0, ttl - (now - status.finished_at).total_seconds())


def asked_by(replay: StreamReplay) -> str:
    """Returns who asked for a replay, and why, for events."""
    who = replay.requested_by or "somebody whom the audit log of Kubernetes names"
    return f"asked for by {_who_and_why(who, replay.spec.reason)}"


def changed_by(who: str, fields: Mapping[str, object], why: str | None) -> str:
    """Returns which fields of a replay somebody changed, and why, for events."""
    changed = printable(msgspec.json.encode(fields, order="deterministic").decode(), 256)
    return f"{changed} changed by {_who_and_why(who, why)}"


def deleted_by(who: str, why: str | None) -> str:
    """Returns who deleted a replay, and why, for events."""
    return f"deleted by {_who_and_why(who, why)}"


def _who_and_why(who: str, why: str | None) -> str:
    return f"{printable(who, 256)}: {printable(why or 'no reason given', 256)}"


def summary(spec: StreamReplaySpec, progress: ReplayProgress | None) -> str:
    """Returns how far a replay is, as one says it."""
    done = progress or ReplayProgress()
    verb = "removed" if spec.action is ReplayAction.DROP else "moved"
    if spec.dry_run:
        verb = f"would be {verb}"
    moved = done.matched - sum(done.skipped.values()) if spec.dry_run else done.moved
    parts = [f"{moved:,} of {done.matched:,} matching messages {verb}"]
    if done.handled or done.dead:
        parts.append(f"{done.handled:,} handled, {done.dead:,} dead again")
    if done.skipped:
        left = ", ".join(f"{n:,} {reason}" for reason, n in sorted(done.skipped.items()))
        parts.append(f"left out: {left}")
    return "; ".join(parts)


def _running(given: ReplayGiven, numbers: dict[str, Any], now: datetime, *, begun: bool) -> ReplayPlan:
    spec = given.replay.spec
    reason, message = ConditionReason.REPLAYING, summary(spec, given.progress)
    if given.problem:
        message = f"trying again: {given.problem}; {message}"
    elif given.window_full:
        retries = given.progress.waiting if given.progress is not None else 0
        reason = ConditionReason.WINDOW_FULL
        message = f"holds, as the group has {retries:,} retries, and window is {spec.window:,}; {message}"
    conditions = with_ready(_retention(given), ConditionUpdate(ConditionType.READY, "True", reason, message))
    if begun:
        return ReplayPlan(ReplayPhase.RUNNING, conditions, numbers)
    started = EventNote(ConditionReason.REPLAY_STARTED, asked_by(given.replay))
    numbers = {**numbers, "started_at": now, "last": given.last}
    return ReplayPlan(ReplayPhase.RUNNING, conditions, numbers, (started,))


def _complete(given: ReplayGiven, numbers: dict[str, Any], now: datetime) -> ReplayPlan:
    spec, done = given.replay.spec, given.progress or ReplayProgress()
    message = summary(spec, done)
    if not done.matched:
        reason = ConditionReason.NOTHING_MATCHED
        message = (
            "no message of the range matches `select`; compare it with what `agentstream dlq` or `tail` shows"
        )
    elif spec.dry_run:
        reason = ConditionReason.DRY_RUN_FINISHED
    else:
        reason = ConditionReason.REPLAY_FINISHED
    ended = ConditionUpdate(ConditionType.COMPLETE, "True", reason, message)
    ready = ConditionUpdate(ConditionType.READY, "True", reason, message)
    conditions = with_ready((*_retention(given), ended), ready)
    events: tuple[EventNote, ...] = ()
    if done.matched:
        events = (EventNote(reason, f"{summary(spec, done)}; {asked_by(given.replay)}"),)
    return ReplayPlan(ReplayPhase.COMPLETE, conditions, {**numbers, "finished_at": now}, events)


def _failed(given: ReplayGiven, failure: EventNote, numbers: dict[str, Any], now: datetime) -> ReplayPlan:
    message = f"{failure.message}; {summary(given.replay.spec, given.progress)}"
    conditions = with_ready((ConditionUpdate(ConditionType.FAILED, "True", failure.reason, message),))
    event = EventNote(ConditionReason.REPLAY_FAILED, f"{message}; {asked_by(given.replay)}", warning=True)
    return ReplayPlan(ReplayPhase.FAILED, conditions, {**numbers, "finished_at": now}, (event,))


def _suspended(replay: StreamReplay, numbers: dict[str, Any], *, begun: bool) -> ReplayPlan:
    reason, remedy = ConditionReason.SUSPENDED, "set `suspend: false`"
    if replay.paused:
        reason, remedy = ConditionReason.PAUSED, "remove the annotation `agentstream.dev/paused`"
    message = f"{'holds where it is' if begun else 'has not begun'}: {remedy} to go on"
    held = ConditionUpdate(ConditionType.SUSPENDED, "True", reason, message)
    ready = ConditionUpdate(ConditionType.READY, "False", reason, message)
    return ReplayPlan(ReplayPhase.SUSPENDED, with_ready((held,), ready), numbers)


def _pending(reason: ConditionReason, message: str, numbers: dict[str, Any]) -> ReplayPlan:
    waits = ConditionUpdate(ConditionType.SYNCED, "False", reason, message)
    return ReplayPlan(ReplayPhase.PENDING, with_ready((waits,)), numbers)


def _retention(given: ReplayGiven) -> tuple[ConditionUpdate, ...]:
    if given.reach is None:
        return ()
    kind, reason = ConditionType.RETENTION_HEALTHY, ConditionReason.OUTSIDE_RETENTION
    return (ConditionUpdate(kind, "False", reason, given.reach.message),)


def progress_numbers(progress: ReplayProgress | None) -> dict[str, Any]:
    """Returns the numbers of a status; none if they are not known."""
    if progress is None:
        return {}
    return {
        "matched": progress.matched,
        "moved": progress.moved,
        "handled": progress.handled,
        "dead": progress.dead,
        "skipped": dict(sorted(progress.skipped.items())[:32]),
        "cursor": progress.cursor or None,
    }


def _is_running(status: StreamReplayStatus | None) -> bool:
    return status is not None and status.phase is ReplayPhase.RUNNING


def _has_begun(status: StreamReplayStatus | None) -> bool:
    return status is not None and status.started_at is not None


def _time(entry_id: str) -> str:
    try:
        at = datetime.fromtimestamp(place(entry_id)[0] / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return "a time of the far future"
    return at.isoformat(timespec="seconds").replace("+00:00", "Z")
