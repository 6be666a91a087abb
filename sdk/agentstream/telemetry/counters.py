"""What happened in an agent's process, counted: numbers that only grow, for whoever exports them."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from typing import Final

REFUSED: Final = "send_refused"
"""How often the server did not take a message, though it answered; labels: stream, reason."""

FAILED: Final = "send_failed"
"""Messages whose sending ended with an error; labels: error."""

SHED: Final = "shed"
"""Events that were dropped because their stream was full; labels: stream."""

REPEATED: Final = "send_repeated"
"""Batches that were sent again, as nothing was heard of them; labels: stream."""

SENDING: Final = "send_seconds"
"""How long sending took, of messages that were sent; labels: stream."""

RECEIVED: Final = "received"
"""Deliveries that came in; labels: stream, group."""

SETTLED: Final = "settled"
"""Deliveries that were settled; labels: stream, group, outcome, reason."""

HANDLING: Final = "handler_seconds"
"""How long handlers had messages before they settled them; labels: stream, group."""

LEASES_LOST: Final = "leases_lost"
"""Deliveries that another consumer may have had before they were settled; labels: stream, group."""

VERIFIED: Final = "verified"
"""Messages with a valid signature, on streams with signatures; labels: stream, group."""

UNVERIFIED: Final = "unverified"
"""Messages without a valid signature; labels: stream, group, reason."""

ANSWERS_UNVERIFIED: Final = "answers_unverified"
"""Answers to requests without a valid signature, on streams with signatures; labels: stream, reason."""

IN_DOUBT: Final = "once_in_doubt"
"""How often it was not known whether an effect came about; labels: stream, group."""

NOTIFICATIONS_DROPPED: Final = "notifications_dropped"
"""Notifications that a slow listener missed; no labels."""

RECONNECTS: Final = "reconnects"
"""How often a connection was made again after it broke; labels: connection."""

BOUNDS: Final = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0),
)
"""Upper bounds of the buckets of all histograms, in seconds; one more bucket is unbounded."""


def is_worth_saying(count: int) -> bool:
    """Whether it is the first, the tenth, the hundredth: of what one sender can cause any number of."""
    return str(count).rstrip("0") == "1"


class Histogram:
    """How often something took how long.

    Attributes:
        counts: how often, for each bucket.
        total: how long altogether, in seconds.
    """

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts: list[int] = [0] * (len(BOUNDS) + 1)
        self.total: float = 0.0

    def observe(self, seconds: float) -> None:
        """Counts one more."""
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.total += seconds

    def absorb(self, other: Histogram) -> None:
        """Counts what another one has counted."""
        self.counts = [mine + its for mine, its in zip(self.counts, other.counts, strict=True)]
        self.total += other.total


class Counters:
    """Counts by name and labels. One thread counts; others may read."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, ...]] = Counter()
        self._histograms: dict[tuple[str, ...], Histogram] = {}

    def add(self, name: str, *labels: str, count: int = 1) -> int:
        """Counts one more, or several. Returns how many there are now."""
        self._counts[name, *labels] += count
        return self._counts[name, *labels]

    def of(self, name: str, *labels: str) -> int:
        """How many there are."""
        return self._counts[name, *labels]

    def histogram(self, name: str, *labels: str) -> Histogram:
        """The histogram of this name and these labels."""
        return self._histograms.setdefault((name, *labels), Histogram())

    def group(self, stream: str, group: str) -> GroupCounters:
        """What is counted of one group."""
        return GroupCounters(self, stream, group)

    def absorb(self, other: Counters) -> None:
        """Counts what others have counted."""
        self._counts.update(dict(other))
        for key, histogram in other.histograms():
            self.histogram(*key).absorb(histogram)

    def histograms(self) -> Iterator[tuple[tuple[str, ...], Histogram]]:
        """Name and labels, with the histogram."""
        return iter(tuple(self._histograms.items()))

    def __iter__(self) -> Iterator[tuple[tuple[str, ...], int]]:
        """Name and labels, with how many there are."""
        return iter(tuple(self._counts.items()))


class GroupCounters:
    """Counts what happens to the messages of one group.

    Args:
        counters: of the agent.
        stream: name of the AgentStream.
        group: name of the group.

    Attributes:
        handling: how long handlers had messages.
    """

    def __init__(self, counters: Counters, stream: str, group: str) -> None:
        self._counters = counters
        self._labels = (stream, group)
        self.handling: Histogram = counters.histogram(HANDLING, stream, group)

    def add(self, name: str, *labels: str, count: int = 1) -> int:
        """Counts one more of the group, or several. Returns how many there are now."""
        return self._counters.add(name, *self._labels, *labels, count=count)

    def settled(self, outcome: str, reason: str = "", *, held: int = 1, lost: int = 0) -> None:
        """Counts deliveries that were settled, and others that were not held any more by then."""
        if held:
            self.add(SETTLED, outcome, reason, count=held)
        if lost:
            self.add(SETTLED, "lost", "", count=lost)
