"""Formats numbers for people: what is not known is a `?`, and never 0."""

from __future__ import annotations

from agentstream_operator.queue_api.documents import Delivered

UNKNOWN, NONE = "?", "-"


def count(number: int | None, *, exact: bool = True) -> str:
    """Formats a number of things: `4,812`, an estimate `~4,812`, `?` if it is not known."""
    return UNKNOWN if number is None else f"{'' if exact else '~'}{number:,}"


def rate(number: float | None) -> str:
    """Formats a rate per second; `-` if there is none."""
    return NONE if number is None else f"{number:,.1f}"


def span(seconds: float | None, unknown: str = NONE) -> str:
    """Formats a length of time by its two largest units: `0.4s`, `12s`, `1m12s`, `3h05m`, `2d04h`."""
    if seconds is None:
        return unknown
    if seconds < 10:  # noqa: PLR2004 - so many seconds have a decimal
        return f"{seconds:.1f}s"
    whole = round(seconds)
    for size, unit, part, sub in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // part:02d}{sub}"
    return f"{whole}s"


def share(delivered: Delivered) -> str:
    """Returns the share of delivered messages for people: cut, never rounded up, so that 100 % is all."""
    if delivered.ratio is None:
        return NONE
    ended = delivered.added - delivered.waiting
    return f"{(delivered.acknowledged + delivered.skipped) * 100_000 // ended / 1000:.3f} %"
