"""The commands of replays, and the one that reads streams by id; see `commands`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal, NamedTuple

from agentstream.protocol.commands import Command
from agentstream.protocol.keys import StreamKeys

FIRST, LAST = "-", "+"
"""Bounds of a range of ids: the first and the last of all."""

_SKIPPED = "skipped:"


class PageEntry(NamedTuple):
    """An entry as the server has it.

    Attributes:
        id: its id on the stream that was read.
        fields: `[name, value, ...]`, anything that an agent may have written.
        withheld: its size in bytes, if it is so large that the functions hand over no fields of it; else 0.
    """

    id: str
    fields: list[bytes]
    withheld: int = 0


class EntryPage(NamedTuple):
    """A part of a stream.

    Attributes:
        entries: in the order in which they were read.
        next: the bound from which the next page goes on, in place of the start, or of the end where entries
            are read backward; None if nothing is left.
    """

    entries: tuple[PageEntry, ...]
    next: str | None


def after(entry_id: str) -> str:
    """Returns the bound that leaves out an id itself: a start after it, or an end before it."""
    return f"({entry_id}"


def page(
    key: str, start: str, end: str, count: int, order: Literal["forward", "backward"] = "forward"
) -> Command:
    """Reads entries between two ids, by their ids; writes nothing. Replies with what `parse_page` reads.

    Args:
        key: of the stream, or of dead letters; without the key, nothing is found.
        start: the lower bound: an id, `FIRST`, or what `after` returns.
        end: the upper bound: an id, `LAST`, or what `after` returns.
        count: how many entries at most; a page holds at most `PAGE` of them, or 1 MiB and an entry.
        order: whether it begins at the start, or at the end.
    """
    return ("FCALL_RO", "as1_page", 1, key, start, end, count, order)


def parse_page(reply: Any) -> EntryPage:
    """Reads the reply to `page`."""
    following, entries = reply
    return EntryPage(
        tuple(
            PageEntry(entry_id.decode(), [], fields)
            if isinstance(fields, int)
            else PageEntry(entry_id.decode(), fields)
            for entry_id, fields in entries
        ),
        following.decode() or None,
    )


class ReplayOf(NamedTuple):
    """A replay, as the server knows it.

    Attributes:
        key: of the stream.
        group: name of the group that gets messages once more.
        id: the result of `keys.replay_id`.
    """

    key: str
    group: str
    id: str

    @property
    def where(self) -> tuple[str, str, str]:
        """The arguments that name it."""
        return StreamKeys(self.key).base, self.group, self.id


class Selected(NamedTuple):
    """An entry that a replay selects.

    Attributes:
        id: its id on the stream, or among the dead letters.
        skip: why it is not moved, as one word of letters; empty if it is.
        key: the ordering key of its message; empty without one.
    """

    id: str
    skip: str = ""
    key: str = ""


MOVED, ELSEWHERE, NO_ROOM = 1, 0, -1
"""Codes of `PageMoved`."""


class PageMoved(NamedTuple):
    """What became of a page of a replay.

    Attributes:
        code: `MOVED`, maybe only the first ones; `ELSEWHERE` if the replay is at another cursor, so that
            nothing was; `NO_ROOM` if nothing was, as the retry stream is as long as the window.
        cursor: the last entry that the replay has passed; empty at its start.
        moved: how many entries were moved, or removed.
        waiting: the length of the group's retry stream.
    """

    code: int
    cursor: str
    moved: int
    waiting: int


def replay(
    of: ReplayOf,
    source: Literal["stream", "dead"],
    cursors: tuple[str, str],
    window: int,
    selected: Iterable[Selected],
) -> Command:
    """Moves the selected entries of a page to the group's retry stream.

    Replies with what `parse_moved` reads. Repeated, it moves nothing twice. A server that is out of memory
    refuses it.

    Args:
        of: the replay.
        source: whether ids are those of entries of the stream, which are copied, or of dead letters.
        cursors: what was looked at: the entries after the first id, up to the second one; the first is empty
            at the start.
        window: how long the retry stream may become.
        selected: those of the page that are selected, in the order of their ids; at most `PAGE`, of which one
            call moves about fifty.
    """
    where = (*of.where, source, *cursors, window)
    return ("FCALL", "as1_replay", 1, of.key, *where, *chain.from_iterable(selected))


def drop(of: ReplayOf, cursors: tuple[str, str], letters: Iterable[str]) -> Command:
    """Removes selected dead letters, as `replay` moves them. Replies with what `parse_moved` reads."""
    return ("FCALL", "as1_drop", 1, of.key, *of.where, *cursors, *letters)


def parse_moved(reply: Any) -> PageMoved:
    """Reads the reply to `replay` and to `drop`."""
    code, cursor, moved, waiting = reply
    return PageMoved(code, cursor.decode(), moved, waiting)


@dataclass(frozen=True, slots=True)
class ReplayProgress:
    """How far a replay is, in messages.

    Attributes:
        cursor: the last entry that it has passed; empty before its first page.
        matched: those that it selected so far.
        moved: those of them that the group got once more, or that were removed.
        skipped: the others, by reason.
        handled: those of the moved ones that the group has acknowledged.
        dead: those of the moved ones that became dead letters again.
        waiting: the length of the group's retry stream.
    """

    cursor: str = ""
    matched: int = 0
    moved: int = 0
    skipped: Mapping[str, int] = field(default_factory=dict)
    handled: int = 0
    dead: int = 0
    waiting: int = 0


def progress(of: ReplayOf) -> Command:
    """Asks how far a replay is; writes nothing. Replies with what `parse_progress` reads."""
    return ("FCALL_RO", "as1_replay_state", 1, of.key, *of.where)


def parse_progress(reply: Any) -> ReplayProgress:
    """Reads the reply to `progress`: zeros for a replay of which the server knows nothing."""
    fields, handled, dead, waiting = reply
    known = {name.decode(): value.decode() for name, value in zip(fields[::2], fields[1::2], strict=True)}
    counts = {name: int(value) for name, value in known.items() if name != "cursor"}
    return ReplayProgress(
        known.get("cursor", ""),
        counts.get("matched", 0),
        counts.get("moved", 0),
        {name.removeprefix(_SKIPPED): n for name, n in counts.items() if name.startswith(_SKIPPED)},
        handled,
        dead,
        waiting,
    )


def end(of: ReplayOf) -> Command:
    """Forgets a replay; what it has moved stays. Replies with 1 if anything was known of it, else 0."""
    return ("FCALL", "as1_end_replay", 1, of.key, *of.where)
