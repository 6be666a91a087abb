"""Dead letters: what they say, and which of them died of the same.

Agents of a group may add letters of their own making: what cannot be read counts as missing, and every text
is bounded.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import msgspec

from agentstream.printable import printable
from agentstream.protocol.entry import Entry, Source, parse_entry, position

LONGEST_REASON: Final = 100
"""Characters of a reason that are kept."""

LONGEST_ERROR: Final = 2_000
"""Characters of an error that are kept."""

LONGEST_NORMALISED: Final = 200
"""Characters of a normalised error."""

MOST_GROUPS: Final = 1_000
"""How many groups of letters are told apart."""

UNREADABLE: Final = "Unreadable"
"""The reason of a letter that gives none: nobody but an agent itself can have written it."""

_MOST_DIGITS = 15
_LONGEST_ID = 64
_DURATION_UNITS = "ns|us|µs|ms|s|m|h|d|milliseconds?|microseconds?|seconds?|secs?|minutes?|mins?|hours?|days?"
_NUMBER = r"\d+(?:[.,:]\d+)*(?:[eE][-+]?\d+)?"
_STATUS = r"(?:(?<=HTTP )|(?<=[Ee]rror )|(?<=[Ee]rror: )|(?<=[Ss]tatus )|(?<=[Cc]ode )|(?<=[Cc]ode: ))"
_DATE = r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:[.,]\d+)?)?(?:Z|[-+]\d\d:?\d\d)?)?"
_VALUES: Final = {
    # the status of an HTTP answer is the error: it stays
    "status": rf"{_STATUS}[45]\d\d(?![\w.,:]*\d)",
    # a quote within a word is an apostrophe
    "text": "|".join(
        rf"(?<![\w>]){mark}(?:[^{mark}]|(?<=\w){mark}(?=\w))*{mark}(?![\w<])" for mark in ("'", '"', "`")
    ),
    "id": (
        r"\b[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b"
        r"|\b0[xX][0-9a-fA-F]+\b|\b\d{10,}-\d+\b|\b(?=[a-fA-F]*\d)(?=\d*[a-fA-F])[0-9a-fA-F]{8,}\b"
    ),
    "time": rf"\b{_DATE}(?!\w)",
    "duration": (
        rf"(?:(?<![\w>\-+])[-+]|(?<![\w>])){_NUMBER} ?(?:{_DURATION_UNITS})\b"
        r"|(?<![\w>])(?:\d+[dhm])+\d+(?:\.\d+)?m?s\b"
    ),
    "n": rf"(?:(?<![\w>\-+])[-+])?{_NUMBER}",
}
_VALUE = re.compile("|".join(f"(?P<{name}>{pattern})" for name, pattern in _VALUES.items()))


class _Named(msgspec.Struct):
    id: str = ""


_named_decoder = msgspec.json.Decoder(_Named)


class Letter(msgspec.Struct, frozen=True):
    """A dead letter of a group.

    Attributes:
        entry: the message; its `id` is the letter's own, on the stream of dead letters.
        origin: the id that the message had on the main stream; None if the letter does not say so.
        attempts: how often it was tried; None if unknown.
        fence: the number of its last delivery; None if unknown.
        reason: why it is dead, one word of the library or a handler's own; `UNREADABLE` if unknown.
        error: what the last attempt ended with, as one line; may be empty.
    """

    entry: Entry
    origin: str | None
    attempts: int | None
    fence: int | None
    reason: str
    error: str

    @property
    def id(self) -> str:
        """Its id on the stream of dead letters: when the message died."""
        return self.entry.id

    @property
    def message(self) -> str | None:
        """The id that its sender gave the message, read without the rest; None if that cannot be read."""
        return message_id(self.entry.body)


class LetterGroup(msgspec.Struct, frozen=True):
    """Letters with the same reason, whose errors differ in values at most.

    Attributes:
        reason: of all of them.
        error: the error without its values; see `normalised`.
        count: how many there are.
        first: id of the oldest letter.
        last: id of the newest letter, which serves as the sample.
        message: the id that its sender gave the message in it; None if it cannot be read.
    """

    reason: str
    error: str
    count: int
    first: str
    last: str
    message: str | None


class LetterGroups:
    """Groups letters as they are read, in any order."""

    def __init__(self) -> None:
        self._groups: dict[tuple[str, str], LetterGroup] = {}
        self.others = 0
        """How many letters were in none of the `MOST_GROUPS` groups that are told apart."""

    def add(self, letter: Letter) -> None:
        """Adds a letter to its group."""
        kind = letter.reason, normalised(letter.error)
        group = self._groups.get(kind)
        if group is not None:
            is_newer = position(letter.id) > position(group.last)
            self._groups[kind] = LetterGroup(
                *kind,
                group.count + 1,
                min(group.first, letter.id, key=position),
                letter.id if is_newer else group.last,
                letter.message if is_newer else group.message,
            )
        elif len(self._groups) < MOST_GROUPS:
            self._groups[kind] = LetterGroup(*kind, 1, letter.id, letter.id, letter.message)
        else:
            self.others += 1

    def largest_first(self) -> list[LetterGroup]:
        """Returns the groups, the largest first, then the one with the newest letter."""
        return sorted(
            self._groups.values(), key=lambda group: (group.count, position(group.last)), reverse=True
        )


def read_letter(key: str, letter_id: str, fields: Sequence[bytes] | int) -> Letter:
    """Reads an entry of a stream of dead letters.

    Args:
        key: of the stream.
        letter_id: id of the entry.
        fields: names and values in turn; of an entry that is too large to be handed over its size in bytes.
    """
    source = Source(key, retry=False)
    if isinstance(fields, int):
        return Letter(
            Entry(source, letter_id, letter_id, None, withheld=fields), None, None, None, UNREADABLE, ""
        )
    named: dict[bytes, bytes] = {}
    for name, value in zip(fields[::2], fields[1::2], strict=True):
        named.setdefault(name, value)
    origin = named.get(b"origin", b"")[:_LONGEST_ID].decode(errors="replace")
    return Letter(
        parse_entry(source, letter_id, list(fields)),
        origin if position(origin) > (0, 0) else None,
        _counted(named.get(b"attempts")),
        _counted(named.get(b"fence")),
        _text(named.get(b"reason"), LONGEST_REASON) or UNREADABLE,
        _text(named.get(b"error"), LONGEST_ERROR),
    )


def message_id(body: bytes | None) -> str | None:
    """The id in an envelope, read without the rest of it and bounded; None if it cannot be read."""
    try:
        found = _named_decoder.decode(body or b"{}").id
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    return printable(found, _LONGEST_ID) if found else None


@lru_cache(maxsize=1_000)
def normalised(error: str) -> str:
    """Returns an error with placeholders for values: the same for errors that differ in nothing else.

    Values are numbers (`<n>`), UUIDs, entry ids and hexadecimal digits (`<id>`), what is in quotes
    (`<text>`), dates (`<time>`) and durations (`<duration>`). The status of an HTTP answer stays.

    Returns at most `LONGEST_NORMALISED` characters.
    """
    before, text = None, printable(error, LONGEST_ERROR)
    # what is cut off may turn the rest into a value
    while text != before:
        before, text = text, printable(_VALUE.sub(_placeholder, text), LONGEST_NORMALISED)
    return text


def _placeholder(found: re.Match[str]) -> str:
    return found[0] if found.lastgroup == "status" else f"<{found.lastgroup}>"


def _text(data: bytes | None, longest: int) -> str:
    # a character has up to four bytes
    return printable((data or b"")[: 4 * longest].decode(errors="replace"), longest)


def _counted(data: bytes | None) -> int | None:
    """The number that a function wrote: digits, few enough to be exact there."""
    return int(data) if data and data.isdigit() and len(data) <= _MOST_DIGITS else None
