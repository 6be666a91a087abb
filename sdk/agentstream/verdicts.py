"""What a handler raises to say what is to become of its message."""

from __future__ import annotations

import math


class Retry(Exception):  # noqa: N818 - says what is to happen, not that something is wrong
    """Raised in a handler: try the message again later.

    Args:
        reason: why, for whoever reads the dead letter.
        after: seconds from now; by the group's policy if None.

    Raises:
        ValueError: `after` is no time.
    """

    def __init__(self, reason: str = "", *, after: float | None = None) -> None:
        check_delay(after)
        super().__init__(reason)
        self.reason = reason
        self.after = after


class Reject(Exception):  # noqa: N818 - as above
    """Raised in a handler: trying the message again is of no use, it becomes a dead letter.

    Args:
        reason: why, for whoever reads the dead letter.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def check_delay(after: float | None) -> None:
    """What is no time must be found out before it is decided what becomes of a message."""
    if after is not None and not math.isfinite(after * 1000):
        raise ValueError(f"after= is a number of seconds, not {after}")
