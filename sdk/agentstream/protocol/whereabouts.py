"""The commands that tell where a message is in a group, for who looks at messages; see `commands`."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import msgspec

from agentstream.protocol.commands import Command
from agentstream.protocol.keys import StreamKeys

_LATEST = 10**15
_HELD = 3
_REPLAYED = slice(4, 5)


class Holder(NamedTuple):
    """Who holds an entry.

    Attributes:
        consumer: its name.
        idle: ms since the lease was renewed.
        deliveries: how often the server gave the entry to a consumer.
    """

    consumer: str
    idle: int
    deliveries: int


class RetryHeader(msgspec.Struct, frozen=True):
    """What field `x` says of a retry, which agents of the group may make up.

    Attributes:
        attempts: how often the message was tried before.
        reason, error: what the last attempt ended with.
        replay: the replay by which the group has it again.
    """

    attempts: Any = None
    reason: Any = None
    error: Any = None
    replay: Any = None


class RetryAt(NamedTuple):
    """A retry of a message.

    Attributes:
        header: what it says of itself.
        id: its entry on the retry stream; None while it is delayed.
        due: when it is due, in ms since 1970; None on the retry stream.
        holder: who holds it, if anybody does.
    """

    header: RetryHeader
    id: str | None = None
    due: int | None = None
    holder: Holder | None = None


class Whereabouts(NamedTuple):
    """Where a message is in a group.

    Attributes:
        last: id of the last entry that was delivered to the group; None without the group.
        is_there: whether the entry is on the stream.
        noted: what the group notes of entries that order or receipts need, such as `dead`; may be made up.
        holder: who holds the entry, if anybody does.
        retry: the retry of it that was found.
        rank, before: from where to look on for retries; None if there are no more to look at.
        moves: another text after each retry of the group.
    """

    last: str | None
    is_there: bool
    noted: str
    holder: Holder | None
    retry: RetryAt | None
    rank: int | None
    before: str | None
    moves: str

    @property
    def is_complete(self) -> bool:
        """Whether all retries were looked at."""
        return self.rank is None and self.before is None

    @property
    def replayed(self) -> list[str]:
        """Another one after each replay that gave the group messages once more."""
        return self.moves.split()[_REPLAYED]


def whereabouts(
    key: str, group: str, entry_id: str, rank: int | None = 0, before: str | None = "+"
) -> Command:
    """Asks where a message is in a group. Replies for `parse_whereabouts`.

    Args:
        key: of the stream.
        group: name of the group.
        entry_id: of the message on the stream, the same at every attempt.
        rank: from where to look through delayed retries, the one that is due last first; None: not at all.
        before: from where to look through the retry stream, the newest first; None: not at all.
    """
    onward = ("" if rank is None else rank, before or "")
    return ("FCALL_RO", "as1_whereabouts", 1, key, StreamKeys(key).base, group, entry_id, *onward)


def parse_whereabouts(reply: Any) -> Whereabouts:
    """Reads the reply to `whereabouts`."""
    last, is_there, noted, held, delayed, retried, rank, before, moves = reply
    retry = None
    if delayed:
        retry = RetryAt(_header(delayed[1]), due=_due(delayed[0]))
    elif retried:
        retry = RetryAt(_header(retried[1]), id=retried[0].decode(), holder=_holder(retried[2:]))
    return Whereabouts(
        last.decode() or None,
        bool(is_there),
        noted.decode(errors="replace"),
        _holder(held),
        retry,
        int(rank) if rank else None,
        before.decode() or None,
        moves.decode(),
    )


def _holder(parts: list[Any]) -> Holder | None:
    if len(parts) != _HELD:
        return None
    consumer, idle, deliveries = parts
    return Holder(consumer.decode(errors="replace"), max(idle, 0), max(deliveries, 0))


def _header(data: bytes) -> RetryHeader:
    try:
        return msgspec.json.decode(data or b"{}", type=RetryHeader)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return RetryHeader()


def _due(score: bytes) -> int | None:
    due = float(score)
    return int(due) if math.isfinite(due) and 0 <= due < _LATEST else None
