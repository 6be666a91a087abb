"""The commands that read streams by id, for replays and for who looks at messages; see `commands`."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from agentstream.protocol.commands import Command

FIRST, LAST = "-", "+"
"""Bounds of a range of ids: the first and the last of all."""


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
