"""Reads streams in pages, for a bounded time, and says what was looked at."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, Literal, NamedTuple

import msgspec

from agentstream.protocol.replaying import FIRST, LAST, PageEntry, after, page, parse_page

Call = Callable[..., Awaitable[Any]]
"""Sends a command and returns its reply, as `Client.call`."""

PAGE_OF: Final = 200
"""Entries that are read at a time."""

_FEW = 20
_ID = re.compile(r"[0-9]{1,20}(-[0-9]{1,20})?")
_HIGHEST = 2**64
_FIRST_OF_ALL, _LAST_OF_ALL = "0-0", f"{_HIGHEST - 1}-{_HIGHEST - 1}"


class InvalidEntryId(ValueError):  # noqa: N818 - named after what is wrong
    """A text that is not the id of an entry; the message begins with the name of what it was given as."""


class Work(NamedTuple):
    """How much one call may look at; it ends with the first of these limits, after a page at least.

    Attributes:
        entries: so many entries.
        size: so many bytes of them.
        seconds: for so long.
    """

    entries: int = 100_000
    size: int = 32 << 20
    seconds: float = 0.5


class Scanned(msgspec.Struct, frozen=True):
    """What was looked at: a search that finds nothing has not always looked at everything.

    Attributes:
        scanned: how many entries.
        first, last: ids of the first and the last of them, in the order in which they were read.
        more: whether there are more to look at.
        cursor: id of the last one, from which the next call goes on; None at the end.
    """

    scanned: int = 0
    first: str | None = None
    last: str | None = None
    more: bool = False
    cursor: str | None = None


class Span(NamedTuple):
    """The entries from one id to another, and in which order they are read.

    Attributes:
        start, end: ids, with the entries of these ids; or `FIRST` and `LAST`.
        order: `forward` or `backward`.
        cursor: id of the last entry that was looked at; None at the beginning.
    """

    start: str = FIRST
    end: str = LAST
    order: Literal["forward", "backward"] = "backward"
    cursor: str | None = None


class Scan:
    """Reads a part of a stream, up to the bounds of its work.

    Args:
        call: sends a command.
        key: of the stream; without the key there is nothing.
        span: the part; its ids are checked.
        work: how much it may look at.
        clock: monotonic seconds.

    Raises:
        InvalidEntryId: an id of the span is none.
    """

    def __init__(
        self,
        call: Call,
        key: str,
        span: Span,
        work: Work = Work(),  # noqa: B008 - it is immutable
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        for name, bound, either in (("since", span.start, FIRST), ("until", span.end, LAST)):
            if bound != either:
                check_entry_id(name, bound)
        if span.cursor is not None:
            check_entry_id("cursor", span.cursor)
        self._call = call
        self._key = key
        self._span = span
        self._work = work
        self._clock = clock
        self._looked = Scanned(cursor=span.cursor)
        self._all = False

    @property
    def looked(self) -> Scanned:
        """What it has looked at so far."""
        return msgspec.structs.replace(self._looked, more=False, cursor=None) if self._all else self._looked

    async def entries(self) -> AsyncIterator[PageEntry]:
        """Yields entries; whoever stops has looked at the last one that it got.

        Raises:
            AgentStreamError: as `Client.call`.
        """
        start, end, order, cursor = self._whole()
        left, began = self._work.size, self._clock()
        self._looked = msgspec.structs.replace(self._looked, more=True)
        if cursor == (_LAST_OF_ALL if order == "forward" else _FIRST_OF_ALL):
            # the server takes no range beyond the ends
            self._all = True
            return
        if cursor is not None and order == "forward":
            start = after(cursor)
        elif cursor is not None:
            end = after(cursor)
        # what is large is noticed at the first page
        count = _FEW
        while True:
            found = parse_page(await self._call(*page(self._key, start, end, count, order)))
            for at, entry in enumerate(found.entries, 1):
                self._look_at(entry.id)
                self._all = found.next is None and at == len(found.entries)
                yield entry
                left -= entry.withheld or sum(map(len, entry.fields))
            if found.next is None:
                self._all = True
                return
            is_over = self._looked.scanned >= self._work.entries or left <= 0
            if is_over or self._clock() - began >= self._work.seconds:
                return
            if order == "forward":
                start = found.next
            else:
                end = found.next
            count = PAGE_OF

    def _whole(self) -> Span:
        """The span with ids of two parts, with which the function library reads."""
        span = self._span
        return span._replace(
            start=span.start if span.start == FIRST else _with_second_part(span.start, 0),
            end=span.end if span.end == LAST else _with_second_part(span.end, _HIGHEST - 1),
            cursor=None if span.cursor is None else _with_second_part(span.cursor, 0),
        )

    def _look_at(self, entry_id: str) -> None:
        looked = self._looked
        self._looked = Scanned(
            looked.scanned + 1, looked.first or entry_id, entry_id, more=True, cursor=entry_id
        )


def check_entry_id(name: str, text: str) -> None:
    """Returns for the id of an entry, also one without its second part.

    Raises:
        InvalidEntryId: it is none.
    """
    if not _ID.fullmatch(text) or any(int(part) >= _HIGHEST for part in text.split("-")):
        raise InvalidEntryId(f"{name} is the id of an entry, such as 1700000000000-0, or its first part")


def _with_second_part(entry_id: str, second: int) -> str:
    first, _, given = entry_id.partition("-")
    return f"{int(first)}-{int(given) if given else second}"
