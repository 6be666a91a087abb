"""Times (RFC 3339) and entry ids in fields of resources."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from .rules import Rule

TIME = (
    "(19[7-9][0-9]|2[0-9]{3})-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"
    r"T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]([.][0-9]{1,9})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
)
"""A pattern of times."""

LAST_SEQUENCE = 2**64 - 1
"""The second part of the last possible entry id of a millisecond."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FRACTION = re.compile("[.]([0-9]+)")

# `T` occurs in times only; a date that does not exist makes `timestamp` fail, which refuses the object
EXISTS = Rule(
    cel="!self.contains('T') || timestamp(self) >= timestamp('1970-01-01T00:00:00Z')",
    message="must be an existing time since 1970",
)
"""The rule for a field that has a time or something without the letter T; Python asks `nanoseconds`."""


def nanoseconds(time: str) -> int:
    """Returns the nanoseconds from 1970 to a time that matches `TIME`.

    `ValueError` if the time does not exist or is before 1970.
    """
    fraction = _FRACTION.search(time)
    whole = _FRACTION.sub("", time)
    try:
        since_epoch = datetime.fromisoformat(whole) - _EPOCH
    except ValueError:
        raise ValueError(f"{time!r} is not an existing time") from None
    if since_epoch < timedelta():
        raise ValueError(f"{time!r} is before 1970")
    return since_epoch // timedelta(seconds=1) * 10**9 + int((fraction[1] if fraction else "0").ljust(9, "0"))


def milliseconds(time: str) -> int:
    """Returns the whole milliseconds from 1970 to a time, as `nanoseconds` does."""
    return nanoseconds(time) // 1_000_000
