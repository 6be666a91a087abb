"""Logs failed attempts: a line each, and of each kind of error one traceback."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable

from agentstream.errors import error_text
from agentstream.printable import printable, traceback_of

_AGAIN = 3600.0
_MOST_KINDS = 256
_LONGEST = 500
_log = logging.getLogger("agentstream")

_Kind = tuple[type[BaseException], str, int]


class Tracebacks:
    """Decides which failures are logged with a traceback: the first of a kind, and again after an hour.

    Errors of one class that were raised at one line are of a kind.

    Args:
        always: every failure.
        clock: returns seconds.
    """

    def __init__(self, *, always: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._always = always
        self._clock = clock
        self._logged: dict[_Kind, float] = {}

    def is_due(self, error: BaseException) -> bool:
        """Tells whether this one is; the next of its kind is not."""
        if self._always:
            return True
        kind, now = _kind(error), self._clock()
        if now - self._logged.get(kind, -_AGAIN) < _AGAIN:
            return False
        # the oldest goes, so that the one that just failed stays known
        self._logged.pop(kind, None)
        if len(self._logged) >= _MOST_KINDS:
            del self._logged[next(iter(self._logged))]
        self._logged[kind] = now
        return True


_tracebacks = Tracebacks(always=os.environ.get("AGENTSTREAM_TRACEBACKS") == "always")


def log_failure(level: int, what: object, error: BaseException) -> None:
    """Logs a line that says what failed, what becomes of it, and the error.

    A record without a traceback has it as the attribute `traceback`, which formatters for JSON write.

    Args:
        level: of the record.
        what: the message, the attempt and what becomes of it.
        error: ended the handler.
    """
    said = printable(error_text(error), _LONGEST)
    if _tracebacks.is_due(error):
        _log.log(level, "%s: %s", what, said, exc_info=error)
    else:
        _log.log(level, "%s: %s", what, said, extra={"traceback": traceback_of(error)})


def _kind(error: BaseException) -> _Kind:
    """The class, and the place where it was raised."""
    place = error.__traceback__
    if place is None:
        return type(error), "", 0
    while place.tb_next is not None:
        place = place.tb_next
    return type(error), place.tb_frame.f_code.co_filename, place.tb_lineno
