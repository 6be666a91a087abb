"""Answers that are asked for once, however many wait for them, and kept for some seconds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

CACHE_SIZE = 10_000
"""Answers that are kept; beyond that, the oldest are evicted."""

Key = TypeVar("Key", bound=Hashable)
Answer = TypeVar("Answer")


@dataclass(slots=True, eq=False)
class _Flight(Generic[Answer]):
    question: asyncio.Task[Answer]
    until: float = float("inf")


@dataclass(slots=True, eq=False)
class Flights(Generic[Key, Answer]):
    """Single flight: all who ask the same at a time share one question; its answer counts for some seconds.

    Times are seconds on a monotonic clock; `lifetime` says how long an answer counts. Failures are not kept.
    """

    now: Callable[[], float]
    lifetime: Callable[[Answer], float]
    _flights: dict[Key, _Flight[Answer]] = field(init=False, default_factory=dict)
    _tasks: set[asyncio.Task[Answer]] = field(init=False, default_factory=set)

    def __len__(self) -> int:
        """Returns the number of answers that are kept, or under way."""
        return len(self._flights)

    def last(self, key: Key) -> Answer | None:
        """Returns the answer that was given last, even if it does not count any more; None if it is gone."""
        flight = self._flights.get(key)
        return flight.question.result() if flight is not None and flight.until < float("inf") else None

    async def answer(self, key: Key, ask: Callable[[], Coroutine[Any, Any, Answer]]) -> Answer:
        """Returns the answer that counts for a key, or else asks. Raises what `ask` raises."""
        flight = self._flights.get(key)
        if flight is None or flight.until <= self.now():
            flight = self._start(key, ask())
        return await asyncio.shield(flight.question)

    def counts(self, key: Key) -> bool:
        """Returns whether an answer counts, or is under way: then asking costs nothing."""
        flight = self._flights.get(key)
        return flight is not None and flight.until > self.now()

    async def close(self) -> None:
        """Cancels the questions that are under way."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, key: Key, question: Coroutine[Any, Any, Answer]) -> _Flight[Answer]:
        self._flights.pop(key, None)
        while len(self._flights) >= CACHE_SIZE:
            del self._flights[next(iter(self._flights))]
        task = asyncio.create_task(question, name="ask the API server")
        flight = self._flights[key] = _Flight(task)
        self._tasks.add(task)
        task.add_done_callback(lambda _: self._finish(key, flight))
        return flight

    def _finish(self, key: Key, flight: _Flight[Answer]) -> None:
        self._tasks.discard(flight.question)
        # asking for the exception also keeps asyncio from logging that it was never retrieved
        if not flight.question.cancelled() and flight.question.exception() is None:
            flight.until = self.now() + self.lifetime(flight.question.result())
        elif self._flights.get(key) is flight:
            del self._flights[key]
