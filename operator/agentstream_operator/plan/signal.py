"""What is known of the work that a group's consumers have, and of how fast they do it.

Rates come from counters that the server keeps, so that a measurement that is missed or late loses nothing.
They are taken by a steady clock of ours, since the server's may jump.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum

import msgspec
from msgspec.structs import replace

from agentstream_operator.plan.observed import GroupSeen, StreamSeen

MEMORY = 30.0
"""Seconds after which what was counted has lost most of its weight in a rate."""

PACE_MEMORY = 120.0
"""The same for how fast a busy consumer is: that changes with its code, not with the hour."""

_SATURATED = 0.25
"""Once an entry has waited for so many seconds, no consumer had time for it."""

_LONG, _MANY = 5.0, 3
"""Seconds that consumers must have been busy, and entries that they settled, before their pace is known."""

PATIENCE = 60_000
"""The shortest time in ms without progress that counts as a stall."""


class Knowledge(StrEnum):
    """How well a group's work is known."""

    EXACT = "exact"
    BOUNDED = "bounded"
    UNKNOWN = "unknown"


class Signal(msgspec.Struct, frozen=True):
    """The work of a group, or of several together.

    Attributes:
        undelivered: entries that no consumer was given, retries included.
        pending: entries that a consumer was given and has not settled.
        due: retries that are due and that nobody has moved to the retry stream yet.
        oldest: seconds since the oldest undelivered entry of the stream was added; 0 without one.
        oldest_pending: the same of the oldest pending one.
        arrival: entries added per second, lately; 0 before that is known.
        settled: entries that were settled since the server began to count.
        knowledge: whether `undelivered` is exact, an estimate, or nothing is known and all of this is 0.
    """

    undelivered: int = 0
    pending: int = 0
    due: int = 0
    oldest: float = 0.0
    oldest_pending: float = 0.0
    arrival: float = 0.0
    settled: int = 0
    knowledge: Knowledge = Knowledge.EXACT

    @property
    def backlog(self) -> int:
        """Everything that waits or runs."""
        return self.waiting + self.pending

    @property
    def waiting(self) -> int:
        """What no consumer has yet."""
        return self.undelivered + self.due

    @property
    def known(self) -> bool:
        """Whether anything is."""
        return self.knowledge is not Knowledge.UNKNOWN


UNKNOWN = Signal(knowledge=Knowledge.UNKNOWN)


class Rate(msgspec.Struct, frozen=True):
    """How fast a counter grows: what was counted and how long that took, both of which fade.

    Attributes:
        at: when the counter was read last, in seconds.
        count: what it was.
        events: what was counted.
        seconds: how long that took.
    """

    at: float
    count: int
    events: float = 0.0
    seconds: float = 0.0

    @property
    def value(self) -> float | None:
        """Counted per second; None before that is known."""
        return self.events / self.seconds if self.seconds > 0 else None


def follow_rate(
    before: Rate | None, count: int, at: float, *, times: float = 1.0, memory: float = MEMORY
) -> Rate:
    """A rate after one more reading.

    Args:
        before: the rate so far; None if there is none.
        count: what the counter is now. If it is below what it was, it began again: that says nothing.
        at: when it was read, in seconds of a steady clock.
        times: how many each second counts for: that many worked at once. With 0, it says nothing.
        memory: seconds after which what was counted fades.
    """
    if before is None:
        return Rate(at, count)
    if at <= before.at:
        return before
    if count < before.count or times == 0:
        return replace(before, at=at, count=count)
    seconds = at - before.at
    fade = math.exp(-seconds / memory)
    return Rate(
        at, count, before.events * fade + count - before.count, before.seconds * fade + seconds * times
    )


class Pace(msgspec.Struct, frozen=True):
    """How much one consumer settles while it has all that it can do.

    Attributes:
        rate: halves of entries that were handled, and the seconds of consumers that took.
        saturated: whether there was more than they could do.
        ready: how many consumers there were.
    """

    rate: Rate
    saturated: bool
    ready: int

    @property
    def value(self) -> float | None:
        """Entries per second of one consumer; None before that is known."""
        halves, known = self.rate.value, self.rate.seconds >= _LONG and self.rate.events >= 2 * _MANY
        return halves / 2 if known and halves is not None else None


def follow_pace(before: Pace | None, signal: Signal, ready: int, at: float) -> Pace | None:
    """The pace after one more measurement: only while work waits does a consumer show what it can do.

    Args:
        before: the pace so far.
        signal: the work as it is now.
        ready: how many consumers run.
        at: when that was measured, in seconds of a steady clock.
    """
    if not signal.known:
        # what happens until it is known again is nobody's pace
        return replace(before, saturated=False, ready=0) if before is not None else None
    saturated = signal.oldest >= _SATURATED
    # those that run are half done, more or less: handlers that take minutes show their pace before they end
    halves = 2 * signal.settled + signal.pending
    if before is None:
        return Pace(Rate(at, halves), saturated, ready)
    # those that came to run meanwhile did so for half of the time
    ran = (before.ready + ready) / 2 if saturated and before.saturated else 0
    rate = follow_rate(before.rate, halves, at, times=ran, memory=PACE_MEMORY)
    return Pace(rate, saturated, ready)


def read_signal(stream: StreamSeen, name: str, arrivals: Rate | None) -> Signal:
    """The work of a group of a stream; unknown where it is not on the stream.

    Args:
        stream: what was seen.
        name: the group.
        arrivals: the stream's.
    """
    group = stream.groups.get(name)
    if group is None or not group.exists:
        return UNKNOWN
    return Signal(
        undelivered=group.undelivered + max(0, group.retry_length - group.retry_pending),
        pending=group.pending + min(group.retry_pending, group.retry_length),
        due=group.due,
        oldest=_age(group.oldest_undelivered, stream.now),
        oldest_pending=_age(group.oldest_pending, stream.now),
        arrival=arrivals.value or 0.0 if arrivals is not None else 0.0,
        settled=group.settled,
        knowledge=Knowledge.EXACT if group.exact else Knowledge.BOUNDED,
    )


def combine(signals: Sequence[Signal]) -> Signal:
    """The work of several groups that the same consumers do; unknown if that of one of them is."""
    if len(signals) == 1:
        return signals[0]
    total = Signal()
    for signal in signals:
        if not signal.known:
            return UNKNOWN
        total = Signal(
            total.undelivered + signal.undelivered,
            total.pending + signal.pending,
            total.due + signal.due,
            max(total.oldest, signal.oldest),
            max(total.oldest_pending, signal.oldest_pending),
            total.arrival + signal.arrival,
            total.settled + signal.settled,
            Knowledge.EXACT if total.knowledge is signal.knowledge else Knowledge.BOUNDED,
        )
    return total


class Progress(msgspec.Struct, frozen=True):
    """How far a group is.

    Attributes:
        settled: entries it has settled.
        since: when it settled the latest one, or had nothing to do, in ms of the server's clock.
    """

    settled: int
    since: int


def follow_progress(before: Progress | None, group: GroupSeen, now: int) -> Progress:
    """The progress after one more observation at `now`, in ms of the server's clock."""
    settled = group.settled
    if before is not None and settled == before.settled and group.backlog > 0:
        return before
    return Progress(settled, now)


def stalled(progress: Progress, group: GroupSeen, lease: int, now: int) -> bool:
    """Whether messages wait and none was settled for three leases (ms), or a minute if that is longer."""
    return group.backlog > 0 and now - progress.since > max(3 * lease, PATIENCE)


def _age(entry: str | None, now: int) -> float:
    """Seconds since an entry was added; the server's clock may have been set back since."""
    return max(0, now - int(entry.partition("-")[0])) / 1000 if entry is not None else 0.0
