"""Remembers numbers of groups for charts: only while somebody looks, and for an hour at most."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from agentstream_operator.queue_api.documents import GroupNumbers

EVERY: Final = 5.0
"""Seconds between two points."""

POINTS: Final = 720
GROUPS: Final = 1_000
"""The most points of a group, an hour; and the most groups: who was looked at longest ago goes first."""


class Point(NamedTuple):
    """Numbers of a group at a time in seconds since 1970; None: not known."""

    at: float
    backlog: int | None
    arrivals: float | None
    settled: float | None


@dataclass(slots=True, eq=False)
class History:
    """What was shown of groups, of which the caller decides who may see it."""

    _points: OrderedDict[tuple[str, str], deque[Point]] = field(init=False, default_factory=OrderedDict)

    def add(self, at: float, numbers: GroupNumbers) -> None:
        """Adds a point, unless the last one is younger than `EVERY`."""
        key = (numbers.namespace, numbers.name)
        points = self._points.setdefault(key, deque(maxlen=POINTS))
        self._points.move_to_end(key)
        if points and 0 <= at - points[-1].at < EVERY:
            return
        points.append(Point(at, numbers.backlog, numbers.arrival_rate, numbers.service_rate))
        while len(self._points) > GROUPS:
            self._points.popitem(last=False)

    def of(self, namespace: str, name: str) -> tuple[Point, ...]:
        """Returns the points of a group, the oldest first."""
        return tuple(self._points.get((namespace, name), ()))
