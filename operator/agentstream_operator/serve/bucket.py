"""Bounds how often something is done: at a rate, and some times at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class Bucket:
    """A token bucket: `rate` a second, `burst` at once; `now` is a monotonic clock in seconds."""

    rate: float
    burst: int
    now: Callable[[], float]
    _left: float = field(init=False)
    _at: float = field(init=False)

    def __post_init__(self) -> None:
        self._left, self._at = float(self.burst), self.now()

    def take(self) -> bool:
        """Returns whether it may be done once more, and counts it if so."""
        at = self.now()
        self._left = min(self.burst, self._left + (at - self._at) * self.rate)
        self._at = at
        if self._left < 1:
            return False
        self._left -= 1
        return True
