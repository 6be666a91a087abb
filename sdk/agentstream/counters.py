"""What happened in an agent's process, counted: numbers that only grow, for whoever exports them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

UNVERIFIED: Final = "unverified"
"""Messages without a valid signature; labels: stream, group, reason."""

SHED: Final = "shed"
"""Events that were dropped because their stream was full; labels: stream."""


class Counters:
    """Counts by name and labels."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, ...]] = Counter()

    def add(self, name: str, *labels: str) -> int:
        """Counts one more. Returns how many there are now."""
        self._counts[name, *labels] += 1
        return self._counts[name, *labels]

    def of(self, name: str, *labels: str) -> int:
        """How many there are."""
        return self._counts[name, *labels]

    def __iter__(self) -> Iterator[tuple[tuple[str, ...], int]]:
        """Name and labels, with how many there are."""
        return iter(tuple(self._counts.items()))
