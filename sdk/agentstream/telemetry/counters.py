"""Counters and histograms of an agent's process; `metrics` exports them."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from typing import Final

# what is counted; `metrics.FAMILIES` has the labels and the meaning of each
REFUSED: Final = "send_refused"
FAILED: Final = "send_failed"
SHED: Final = "shed"
REPEATED: Final = "send_repeated"
SENDING: Final = "send_seconds"
RECEIVED: Final = "received"
SETTLED: Final = "settled"
HANDLING: Final = "handler_seconds"
LEASES_LOST: Final = "leases_lost"
VERIFIED: Final = "verified"
UNVERIFIED: Final = "unverified"
ANSWERS_UNVERIFIED: Final = "answers_unverified"
IN_DOUBT: Final = "once_in_doubt"
NOTIFICATIONS_DROPPED: Final = "notifications_dropped"
RECONNECTS: Final = "reconnects"

BOUNDS: Final = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0),
)
"""Upper bounds of the buckets of all histograms, in seconds; one more bucket is unbounded."""


def is_worth_saying(count: int) -> bool:
    """Whether to log the n-th event of a kind that senders can cause at will: the 1st, 10th, 100th, ..."""
    return str(count).rstrip("0") == "1"


class Histogram:
    """A histogram of durations.

    Attributes:
        counts: of each bucket.
        total: sum of the durations, in seconds.
    """

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts: list[int] = [0] * (len(BOUNDS) + 1)
        self.total: float = 0.0

    def observe(self, seconds: float) -> None:
        """Counts a duration."""
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.total += seconds

    def absorb(self, other: Histogram) -> None:
        """Adds the counts of another histogram."""
        self.counts = [mine + its for mine, its in zip(self.counts, other.counts, strict=True)]
        self.total += other.total


class Counters:
    """Counts by name and labels. One thread counts; others may read."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, ...]] = Counter()
        self._histograms: dict[tuple[str, ...], Histogram] = {}

    def add(self, name: str, *labels: str, count: int = 1) -> int:
        """Adds to a count. Returns the new count."""
        self._counts[name, *labels] += count
        return self._counts[name, *labels]

    def of(self, name: str, *labels: str) -> int:
        """The count of this name and these labels."""
        return self._counts[name, *labels]

    def histogram(self, name: str, *labels: str) -> Histogram:
        """The histogram of this name and these labels."""
        return self._histograms.setdefault((name, *labels), Histogram())

    def group(self, stream: str, group: str) -> GroupCounters:
        """The counters of one group."""
        return GroupCounters(self, stream, group)

    def absorb(self, other: Counters) -> None:
        """Adds the counts of other counters."""
        self._counts.update(dict(other))
        for key, histogram in other.histograms():
            self.histogram(*key).absorb(histogram)

    def histograms(self) -> Iterator[tuple[tuple[str, ...], Histogram]]:
        """Iterates over histograms: name and labels, and the histogram."""
        return iter(tuple(self._histograms.items()))

    def __iter__(self) -> Iterator[tuple[tuple[str, ...], int]]:
        """Iterates over counts: name and labels, and the count."""
        return iter(tuple(self._counts.items()))


class GroupCounters:
    """Counters of one group.

    Args:
        counters: of the agent.
        stream: name of the AgentStream.
        group: name of the group.

    Attributes:
        handling: for how long handlers had messages.
    """

    def __init__(self, counters: Counters, stream: str, group: str) -> None:
        self._counters = counters
        self._labels = (stream, group)
        self.handling: Histogram = counters.histogram(HANDLING, stream, group)

    def add(self, name: str, *labels: str, count: int = 1) -> int:
        """Adds to a count of the group. Returns the new count."""
        return self._counters.add(name, *self._labels, *labels, count=count)

    def settled(self, outcome: str, reason: str = "", *, held: int = 1, lost: int = 0) -> None:
        """Counts deliveries that were settled, and others that were lost before."""
        if held:
            self.add(SETTLED, outcome, reason, count=held)
        if lost:
            self.add(SETTLED, "lost", "", count=lost)
