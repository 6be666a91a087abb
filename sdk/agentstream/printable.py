"""Makes texts that others may have written fit for one line of a log, a terminal or a status."""

from __future__ import annotations

import logging
import re
import traceback
from typing import Final

_LONGEST: Final = 2_000
_LONGEST_PIECE: Final = 100_000
_PIECE = re.compile(r"(\x1b\[[0-9;]*m)|[^\x1b]+|\x1b")
# control characters but for the tab, line ends, what turns the direction of writing, halves of characters
_UNFIT = re.compile(
    "[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_HARMLESS = (int, float, type(None))


def printable(value: object, longest: int = _LONGEST) -> str:
    """`str` of a value as one line: what ends lines, moves the cursor or is no Unicode becomes an escape.

    Args:
        value: anything; whatever its methods do, this raises nothing.
        longest: the most characters; more are cut, and it ends with an ellipsis.
    """
    return _line(text_of(value), longest)


def coloured(text: str) -> str:
    """A line of a process as it may go to a terminal: only colours stay, and end with the line."""
    shown = "".join(piece[1] or _line(piece[0], _LONGEST_PIECE) for piece in _PIECE.finditer(text))
    return f"{shown}\x1b[0m" if "\x1b" in shown else shown


def traceback_of(error: BaseException) -> str:
    """The traceback of an error, in which the text of an error is one line: others may have written it."""
    try:
        parts = traceback.TracebackException.from_exception(error).format()
        lines = [
            "\n".join(_line(line, _LONGEST) for line in part.rstrip("\n").split("\n"))
            if part.startswith((" ", "\n"))
            else _line(part.rstrip("\n"), _LONGEST)
            for part in parts
        ]
    except Exception:  # noqa: BLE001 - of a stranger's error
        return f"{type(error).__name__}: (it cannot be printed)"
    return "\n".join(lines)


def text_of(value: object) -> str:
    """`str` of a stranger's object, whatever its methods do."""
    try:
        return str(value)
    except BaseException:  # noqa: BLE001 - it says nothing about what happens here
        return "(it cannot be printed)"


def _line(text: str, longest: int) -> str:
    shown = _UNFIT.sub(lambda found: ascii(found[0])[1:-1], text[: longest + 1])
    return shown if len(shown) <= longest else f"{shown[: longest - 1]}…"


class _Printable:
    """An argument of a log record, whose texts are fit for a line."""

    __slots__ = ("_value",)

    def __init__(self, value: object) -> None:
        self._value = value

    def __str__(self) -> str:
        return printable(self._value)

    def __repr__(self) -> str:
        try:
            return _line(repr(self._value), _LONGEST)
        except BaseException:  # noqa: BLE001 - it says nothing about what happens here
            return "(it cannot be printed)"


class PrintableRecords(logging.Filter):
    """Makes the text, the arguments and the traceback of a record fit for the lines of a log; drops none.

    It belongs on a logger, not on a handler: the program decides where its records go.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Changes the record. Returns True."""
        if not record.args:
            # libraries put texts together before they log them
            record.msg = printable(record.msg)
        elif isinstance(record.args, tuple):
            record.args = tuple(arg if isinstance(arg, _HARMLESS) else _Printable(arg) for arg in record.args)
        if record.exc_info and record.exc_info[1] is not None and not record.exc_text:
            record.exc_text = traceback_of(record.exc_info[1])
        return True


_OWN: Final = PrintableRecords()
logging.getLogger("agentstream").addFilter(_OWN)
