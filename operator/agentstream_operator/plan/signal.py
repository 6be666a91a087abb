"""The work of a group's consumers: backlog, age and rates, from counters that the server keeps.

Late or missed measurements lose nothing. Rates use a steady local clock, since the server's may jump.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum

import msgspec
from msgspec.structs import replace

from agentstream_operator.plan.observed import GroupSeen, StreamSeen

MEMORY = 30.0
"""Time constant of arrival rates, in seconds."""

PACE_MEMORY = 120.0
"""Time constant of the pace, in seconds: it changes with the code, not with the hour."""

_SATURATED = 0.25
"""Seconds of waiting from which on the consumers count as saturated."""

_LONG, _MANY = 5.0, 3
"""Busy seconds of consumers, and settled entries, before their pace is known."""

PATIENCE = 60_000
"""The shortest time in ms without progress after which a group counts as not consuming."""


class Knowledge(StrEnum):
    """How well the work of a group is known."""

    EXACT = "exact"
    BOUNDED = "bounded"
    UNKNOWN = "unknown"


class Signal(msgspec.Struct, frozen=True):
    """The work of a group, or of several together."""

    undelivered: int = 0  # retries included
    pending: int = 0  # delivered and not settled
    due: int = 0  # retries that are not on the retry stream yet
    oldest: float = 0.0  # age in seconds of the oldest undelivered entry; 0 without one
    oldest_pending: float = 0.0  # the same of pending ones
    arrival: float = 0.0  # entries added per second, lately; 0 before that is known
    settled: int = 0  # entries since the server began to count
    knowledge: Knowledge = Knowledge.EXACT  # how well `undelivered` is known; if not at all, all is 0

    @property
    def backlog(self) -> int:
        """Unsettled entries."""
        return self.waiting + self.pending

    @property
    def waiting(self) -> int:
        """Entries that no consumer has yet."""
        return self.undelivered + self.due

    @property
    def known(self) -> bool:
        """Whether the work is known."""
        return self.knowledge is not Knowledge.UNKNOWN


UNKNOWN = Signal(knowledge=Knowledge.UNKNOWN)


class Rate(msgspec.Struct, frozen=True):
    """The growth of a counter per second, fading exponentially."""

    at: float  # time of the last reading, in seconds
    count: int  # its value
    events: float = 0.0  # the weighted growth
    seconds: float = 0.0  # the weighted time

    @property
    def value(self) -> float | None:
        """Events per second; None before that is known."""
        return self.events / self.seconds if self.seconds > 0 else None


def follow_rate(
    before: Rate | None, count: int, at: float, *, times: float = 1.0, memory: float = MEMORY
) -> Rate:
    """Returns a rate after one more reading, at a time in seconds of a steady clock.

    A counter below its last value was reset, and adds nothing. `times` is the weight of each second: the
    number of parallel workers; with 0 the reading adds nothing. `memory` is the time constant in seconds.
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
    """The rate of one busy consumer."""

    rate: Rate  # halves of settled entries per second of a consumer
    saturated: bool  # whether there was more work than the consumers could do
    ready: int  # the number of consumers

    @property
    def value(self) -> float | None:
        """Entries per second of one consumer; None before that is known."""
        halves, known = self.rate.value, self.rate.seconds >= _LONG and self.rate.events >= 2 * _MANY
        return halves / 2 if known and halves is not None else None


def follow_pace(before: Pace | None, signal: Signal, ready: int, at: float) -> Pace | None:
    """Returns the pace after one more measurement; only consumers with waiting work show their rate.

    `ready` is the number of ready consumers, `at` the time in seconds of a steady clock.
    """
    if not signal.known:
        # what is settled until it is known again does not count
        return replace(before, saturated=False, ready=0) if before is not None else None
    saturated = signal.oldest >= _SATURATED
    # pending entries count as half done, so that handlers of minutes show a pace before they end
    halves = 2 * signal.settled + signal.pending
    if before is None:
        return Pace(Rate(at, halves), saturated, ready)
    # consumers that started meanwhile ran for half of the time on average
    ran = (before.ready + ready) / 2 if saturated and before.saturated else 0
    rate = follow_rate(before.rate, halves, at, times=ran, memory=PACE_MEMORY)
    return Pace(rate, saturated, ready)


def read_signal(stream: StreamSeen, name: str, arrivals: Rate | None) -> Signal:
    """Returns the work of a group; unknown if it is not on the stream. `arrivals` is the stream's rate."""
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
    """Returns the work of several groups with the same consumers; unknown if one of them is."""
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
    """The progress of a group; times are in ms of the server's clock."""

    settled: int  # entries settled so far
    since: int  # when the latest one was, or the backlog was empty
    renewed: int = 0  # when a consumer was last known to renew what it holds


class Activity(StrEnum):
    """What becomes of the messages of a group."""

    SETTLING = "settling"  # or there are none
    RUNNING = "running"  # none was settled for long, but consumers renew the leases of what they handle
    STANDING = "standing"  # nothing was settled or renewed for long


def follow_progress(before: Progress | None, group: GroupSeen, now: int) -> Progress:
    """Returns the progress after an observation at `now`, in ms of the server's clock."""
    settled = group.settled
    if before is not None and settled == before.settled and group.backlog > 0:
        return before
    return Progress(settled, now, before.renewed if before is not None else 0)


def work_of(progress: Progress, group: GroupSeen, lease: int, now: int) -> Activity:
    """Returns what becomes of the messages: for three leases (ms), at least a minute, they may do nothing."""
    patience = max(3 * lease, PATIENCE)
    if group.backlog == 0 or now - progress.since <= patience:
        return Activity.SETTLING
    return Activity.RUNNING if now - progress.renewed <= patience else Activity.STANDING


def _age(entry: str | None, now: int) -> float:
    """Returns the age of an entry in seconds; at least 0, as the server's clock may be set back."""
    return max(0, now - int(entry.partition("-")[0])) / 1000 if entry is not None else 0.0
