"""How long to wait before something is tried again."""

from __future__ import annotations

import random
from collections.abc import Callable

from agentstream.routes import Consumes


def unit() -> float:
    """A random number from 0 to 1, for spreading what would otherwise happen at the same time."""
    return random.random()  # noqa: S311 - guards no secret


def retry_delay(policy: Consumes, attempt: int, jitter: float) -> int:
    """The delay in ms after a failed attempt, by the group's policy.

    Args:
        policy: the group's.
        attempt: the attempt that failed, counted from 1.
        jitter: from 0 to 1; adds up to a quarter, so that what failed together does not return together.
    """
    # a power of hundreds of attempts is too large for a float
    exponent = min(attempt - 1, 64)
    delay = min(policy.backoff_initial * policy.backoff_factor**exponent, policy.backoff_max)
    return int(delay * (1 + jitter / 4))


class Pause:
    """Delays that double from `first` to `longest` seconds until it works, each cut by half at most."""

    def __init__(self, first: float, longest: float, random_unit: Callable[[], float] = unit) -> None:
        self._first = first
        self._longest = longest
        self._random_unit = random_unit
        self._next = first

    def reset(self) -> None:
        """It succeeded: the next delay is short again."""
        self._next = self._first

    def next(self) -> float:
        """The delay in seconds before the next try."""
        delay, self._next = self._next, min(self._next * 2, self._longest)
        return delay * (0.5 + self._random_unit() / 2)
