"""Entries of a stream: what they carry, and how the server's replies with entries are read."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import Any

import msgspec

from agentstream.protocol.keys import parse_replay

NOTHING = "0-0"
"""The predecessor of an entry that has none."""

_NAME_AND_VALUE = 2
_MILLISECONDS = re.compile(r"[0-9]{1,15}")
_INEXACT = 10**15
_ID = re.compile(r"([0-9]{1,19})-([0-9]{1,19})")


class Source(msgspec.Struct, frozen=True):
    """One of the two streams that a group reads: the main stream or its retry stream."""

    key: str
    retry: bool


class Header(msgspec.Struct, frozen=True):
    """Field `x` of an entry of a retry stream, which agents of the group may make up."""

    origin: Any = None
    attempts: Any = None
    fence: Any = None
    replay: Any = None


class _Keyed(msgspec.Struct):
    key: str = ""


_keyed_decoder = msgspec.json.Decoder(_Keyed)


class Entry(msgspec.Struct, frozen=True, gc=False):
    """An entry of a stream.

    Attributes:
        id: its id on the stream that it was read from.
        origin: its id on the main stream, the same for every attempt.
        trace: the trace context of the sender, if the sender is traced.
        after: the entry that was added before it with the same ordering key, `NOTHING` for the first; None
            without an ordering key.
        earlier, earlier_fence: attempts on, and deliveries of, earlier entries of the same message.
        replay: name of the StreamReplay by which the group gets the message once more; None for all others.
        withheld: its size in bytes, if it is so large that the functions hand over none of it; else 0.
    """

    source: Source
    id: str
    origin: str
    body: bytes | None
    signature: bytes | None = None
    trace: bytes | None = None
    after: str | None = None
    earlier: int = 0
    earlier_fence: int = 0
    withheld: int = 0
    replay: str | None = None

    @property
    def size(self) -> int:
        """Bytes of the message."""
        return self.withheld or len(self.body or b"")

    @property
    def added(self) -> float:
        """When the server added the message to the main stream, in seconds since 1970; 0 if unknown."""
        milliseconds = self.origin.partition("-")[0]
        return int(milliseconds) / 1000 if _MILLISECONDS.fullmatch(milliseconds) else 0.0

    @property
    def digest(self) -> bytes:
        """Tells the message from others, but not from copies: a sender that repeats a call signs again."""
        return hashlib.sha256(self.body or b"").digest()[:16]

    @property
    def key(self) -> str:
        """The ordering key, read without the rest of the message; empty if it cannot be read."""
        try:
            return _keyed_decoder.decode(self.body or b"{}").key
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return ""


def parse_entry(source: Source, entry_id: str, fields: list[bytes]) -> Entry:
    """Reads the fields of an entry, as `[name, value, ...]`. Fields that are damaged count as missing."""
    if len(fields) == _NAME_AND_VALUE and fields[0] == b"m":
        return Entry(source, entry_id, entry_id, fields[1])
    header = _header(_field(fields, b"x")) if source.retry else Header()
    attempts = _counted(header.attempts) or 0
    fence = _counted(header.fence)
    return Entry(
        source,
        entry_id,
        header.origin if position(header.origin) > (0, 0) else entry_id,
        _field(fields, b"m"),
        _field(fields, b"s"),
        _field(fields, b"t"),
        _predecessor(_field(fields, b"p"), entry_id),
        attempts,
        attempts if fence is None else fence,
        replay=parse_replay(header.replay),
    )


def position(entry_id: object) -> tuple[int, int]:
    """The place of an id in its stream, for sorting; what is no id comes first."""
    found = _ID.fullmatch(entry_id) if isinstance(entry_id, str) else None
    return (int(found[1]), int(found[2])) if found else (0, 0)


def read_entries(reply: Any, sources: tuple[Source, ...]) -> Iterator[Entry]:
    """Yields the entries in a reply of XREADGROUP for new entries: each is delivered for the first time."""
    by_key = {source.key.encode(): source for source in sources}
    for key, entries in reply or ():
        source = by_key[key]
        for entry_id, fields in entries:
            yield parse_entry(source, entry_id.decode(), fields)


def claimed_entries(reply: Any, source: Source) -> Iterator[tuple[Entry, int]]:
    """Yields the entries in a reply of the take or sweep function, each with its delivery counter."""
    for entry_id, counter, fields in reply:
        if isinstance(fields, int):
            known = entry_id.decode()
            yield Entry(source, known, known, None, withheld=fields), counter
        else:
            yield parse_entry(source, entry_id.decode(), fields), counter


def consumer_names(reply: Any) -> list[str]:
    """Returns the names in a reply of XINFO CONSUMERS."""
    return [name.decode(errors="replace") for fields in reply if (name := _field(fields, b"name"))]


def _field(fields: list[bytes], name: bytes) -> bytes | None:
    for i in range(0, len(fields), 2):
        if fields[i] == name:
            return fields[i + 1]
    return None


def _predecessor(data: bytes | None, entry_id: str) -> str | None:
    if data is None:
        return None
    after = data.decode(errors="replace")
    # a producer may have made it up; entries that wait only for earlier ones cannot wait in a circle
    return after if (0, 0) < position(after) < position(entry_id) else NOTHING


def _header(data: bytes | None) -> Header:
    try:
        return msgspec.json.decode(data or b"{}", type=Header)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return Header()


def _counted(number: object) -> int | None:
    """A number that a function wrote: whole, and small enough to be exact there; else None."""
    is_number = isinstance(number, int | float) and not isinstance(number, bool)
    return int(number) if is_number and 0 <= number < _INEXACT else None  # type: ignore[call-overload,operator]
