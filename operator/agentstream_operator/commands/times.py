"""Reads times of the command line: `09:00`, `10m`, RFC 3339, or an entry id."""

from __future__ import annotations

import re
from datetime import UTC, datetime, time, timedelta

from agentstream_operator.commands.failure import BAD_INPUT, CommandFailed

_ENTRY = re.compile(r"\d{1,20}-\d{1,20}")
_CLOCK = re.compile(r"([01]\d|2[0-3]):[0-5]\d(:[0-5]\d)?")
_AGO = re.compile(r"(?:(\d{1,5})d)?(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,8})s)?")


def bound(option: str, text: str, now: datetime) -> str:
    """Returns a bound of a range as the API takes it: a time in UTC, or an entry id as it is.

    A time of day is the last one before `now`, in the time zone of `now`; `10m` is so long before it.

    Raises:
        CommandFailed: it is none of these.
    """
    if _ENTRY.fullmatch(text):
        return text
    found = _time(text, now)
    if found is None:
        raise CommandFailed(
            f"{option}: {text!r} is no time: use 09:00, 10m, 2026-01-31T12:00:00Z or an entry id",
            code=BAD_INPUT,
        )
    return found.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _time(text: str, now: datetime) -> datetime | None:
    if _CLOCK.fullmatch(text):
        today = datetime.combine(now.date(), time.fromisoformat(text), now.tzinfo)
        return today if today <= now else today - timedelta(days=1)
    ago = _AGO.fullmatch(text)
    try:
        if ago is not None and text:
            days, hours, minutes, seconds = (int(part or 0) for part in ago.groups())
            return now - timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
        found = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        return None
    # a date alone is a whole day, and which end of it is meant would be a guess
    return (found if found.tzinfo is not None else found.replace(tzinfo=now.tzinfo)) if "T" in text else None
