"""The start of a new group: `Beginning`, `End`, an entry id or a time."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated

from pydantic import AfterValidator

from .model import Text
from .rules import Rule

_ENTRY_ID = "[0-9]{1,19}-[0-9]{1,19}"
_TIME = (
    "(19[7-9][0-9]|2[0-9]{3})-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"
    r"T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]([.][0-9]{1,9})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_SEQUENCE = 2**64 - 1


def start_id(start_from: str) -> str:
    """Returns the id for XGROUP CREATE; later entries are delivered.

    A time becomes the last possible id before it, so that entries of that very millisecond are included;
    `ValueError` if the time does not exist or is before 1970.
    """
    if start_from == "Beginning":
        return "0"
    if start_from == "End":
        return "$"
    if re.fullmatch(_ENTRY_ID, start_from):
        return start_from
    try:
        since_epoch = datetime.fromisoformat(start_from) - _EPOCH
    except ValueError:
        raise ValueError(f"{start_from!r} is not an existing time") from None
    if since_epoch < timedelta():
        raise ValueError(f"{start_from!r} is before 1970")
    ms = since_epoch // timedelta(milliseconds=1)
    return f"{ms - 1}-{_LAST_SEQUENCE}" if ms else "0"


def _exists(start_from: str) -> str:
    start_id(start_from)
    return start_from


StartFrom = Annotated[
    str,
    Text(
        pattern=f"^(Beginning|End|{_ENTRY_ID}|{_TIME})$",
        max_length=64,
        what="Beginning, End, an entry id (1700000000000-0) or a time (2026-01-31T12:00:00Z)",
    ),
    AfterValidator(_exists),
    # `T` occurs in times only; a date that does not exist makes `timestamp` fail, which refuses the object
    Rule(
        cel="!self.contains('T') || timestamp(self) >= timestamp('1970-01-01T00:00:00Z')",
        message="must be an existing time since 1970",
    ),
]
