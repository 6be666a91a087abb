"""The numbers of a stream and its groups as people read them: what is not known is None, and never 0."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

import msgspec

from agentstream_operator.plan.observed import GroupSeen, StreamSeen
from agentstream_operator.plan.signal import Rate, follow_rate

_LONG = 30_000


class GroupLag(msgspec.Struct, frozen=True):
    """The work of a group, in messages and seconds."""

    undelivered: int  # of the stream, without retries
    pending: int  # a consumer holds them, retries among them
    retrying: int  # due for another attempt, and no consumer has them yet
    delayed: int  # not due yet
    next_due: datetime | None  # when the first of these is
    dead: int
    exact: bool  # whether `undelivered` is
    oldest: float | None  # age of the oldest unsettled message; None without one

    @property
    def backlog(self) -> int:
        """Unsettled messages that are due."""
        return self.undelivered + self.pending + self.retrying


class StreamLag(msgspec.Struct, frozen=True):
    """A stream, in messages and seconds."""

    length: int
    oldest: str | None  # entry id
    history: float | None  # age of the oldest message; None without one
    unsettled: int  # of the slowest of the declared groups
    refuses: bool  # whether adding is refused just now


class Readings(msgspec.Struct, frozen=True):
    """Counters over time: of a stream's entries, and of what its groups settled."""

    added: Rate | None = None
    settled: dict[str, Rate] = {}


def follow(before: Readings, seen: StreamSeen, at: float) -> Readings:
    """Returns the readings after another observation, at a time in seconds of a steady clock."""
    settled = {
        name: follow_rate(before.settled.get(name), group.settled, at)
        for name, group in seen.groups.items()
        if group.exists
    }
    return Readings(follow_rate(before.added, seen.added, at), settled)


def group_lag(seen: StreamSeen, name: str) -> GroupLag | None:
    """Returns the work of a group; None if it is not on the stream, or its keys cannot be read."""
    group = seen.groups.get(name)
    if group is None or not group.exists or group.unreadable:
        return None
    held = min(group.retry_pending, group.retry_length)
    return GroupLag(
        undelivered=group.undelivered,
        pending=group.pending + held,
        retrying=group.retry_length - held + group.due,
        delayed=max(group.delayed - group.due, 0),
        next_due=_next_due(group, seen.now),
        dead=group.dead,
        exact=group.exact,
        oldest=_oldest((group.oldest_undelivered, group.oldest_pending), seen.now),
    )


def stream_lag(seen: StreamSeen, groups: Iterable[str], limit: int) -> StreamLag | None:
    """Returns the numbers of a stream with these declared groups; None if it does not exist.

    Args:
        seen: the stream.
        groups: the names of its declared groups.
        limit: how many unsettled messages it takes.
    """
    if seen.type != "stream":
        return None
    found = [seen.groups[name] for name in groups if name in seen.groups and seen.groups[name].exists]
    unsettled = max((group.undelivered + group.pending for group in found), default=0)
    return StreamLag(
        length=seen.length,
        oldest=seen.first,
        history=_oldest((seen.first,), seen.now),
        unsettled=unsettled,
        refuses=_refuses(seen, unsettled, limit),
    )


def drain(backlog: int, arrival: float | None, service: float | None) -> float | None:
    """Returns the seconds until a backlog is gone at these rates; None if that is unknown, or it grows."""
    if backlog == 0:
        return 0.0
    if arrival is None or service is None or service <= arrival:
        return None
    return backlog / (service - arrival)


def _refuses(seen: StreamSeen, unsettled: int, limit: int) -> bool:
    """Whether adding is refused: at the gate's length, or where it counts by groups, at so many unsettled."""
    length, _, groups = (seen.gate or "").partition(" ")
    if not length.isdecimal() or seen.length < int(length):
        return False
    return unsettled >= limit if groups else True


def _next_due(group: GroupSeen, now: int) -> datetime | None:
    if group.delayed <= group.due or group.next_due is None or group.next_due <= now:
        return None
    return datetime.fromtimestamp(group.next_due / 1000, UTC)


def since(group: GroupSeen, now: int) -> datetime | None:
    """Returns when the oldest unsettled message was added; None without one that is half a minute old.

    A group that keeps up would change it with every look.
    """
    found = (group.oldest_undelivered, group.oldest_pending)
    added = min((int(entry.partition("-")[0]) for entry in found if entry is not None), default=now)
    return datetime.fromtimestamp(added // 1000, UTC) if now - added >= _LONG else None


def _oldest(entries: Iterable[str | None], now: int) -> float | None:
    ages = [max(0, now - int(entry.partition("-")[0])) / 1000 for entry in entries if entry is not None]
    return max(ages, default=None)
