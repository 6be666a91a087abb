"""The work queue: which key is worked on next, by whom, and when a failed one is tried again.

A key waits at most once and is worked on by one worker at a time; what is added meanwhile runs once more
afterwards. Of the keys that wait, a group with messages and without consumers goes first, a person's change
before what a change elsewhere brought about, and that before a resync.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterable
from enum import IntEnum
from typing import Generic, TypeVar

K = TypeVar("K")
_MANY = 64
_log = logging.getLogger(__name__)


class TryAgain(Exception):  # noqa: N818 - it says what to do
    """The key could not be worked on for a reason that is expected; it is tried again later."""


class Priority(IntEnum):
    """Why a key waits; lower goes first."""

    WAKE = 0
    CHANGE = 1
    EVENT = 2
    RESYNC = 3


class WorkQueue(Generic[K]):
    """Keys that wait for one of a number of workers.

    Args:
        workers: how many keys are worked on at a time.
        resyncs: how many of these may be resyncs: what is new must not wait for a turn of many of them.
        base: seconds before a key that failed is tried again; doubles with every further failure.
        cap: the longest such delay, in seconds.
        jitter: a number in [0, 1); delays are spread over their second half by it.
    """

    def __init__(
        self,
        *,
        workers: int = 256,
        resyncs: int = 24,
        base: float = 0.1,
        cap: float = 30.0,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._workers = workers
        self._resyncs = resyncs
        self._base = base
        self._cap = cap
        self._jitter = jitter
        self._ready: tuple[OrderedDict[K, float], ...] = tuple(OrderedDict() for _ in Priority)
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._active: set[K] = set()
        self._resyncing: set[K] = set()
        self._again: dict[K, Priority] = {}
        self._failures: dict[K, int] = {}
        self._delayed: dict[K, asyncio.TimerHandle] = {}
        self._idle = asyncio.Event()
        self._idle.set()

    def __len__(self) -> int:
        """Keys that wait to be worked on now."""
        return sum(len(keys) for keys in self._ready)

    @property
    def busy(self) -> bool:
        """Whether more keys wait or are worked on than the ordinary brings."""
        return len(self) + len(self._active) > _MANY

    def add(self, key: K, priority: Priority) -> None:
        """Lets a key be worked on when its turn comes; a resync leaves a key that failed to its delay."""
        if priority is Priority.RESYNC and key in self._failures and key in self._delayed:
            return
        self._cancel_delay(key)
        if key in self._active:
            self._again[key] = min(priority, self._again.get(key, priority))
            return
        for waiting_at in Priority:
            if key in self._ready[waiting_at]:
                if priority < waiting_at:
                    self._ready[priority][key] = self._ready[waiting_at].pop(key)
                return
        self._ready[priority][key] = time.monotonic()
        self._idle.clear()
        self._wake_one()

    def add_all(self, keys: Iterable[K], priority: Priority) -> None:
        """Adds several keys."""
        for key in keys:
            self.add(key, priority)

    def add_later(self, key: K, delay: float, priority: Priority) -> None:
        """Adds a key after `delay` seconds, unless it is due before that anyway."""
        loop = asyncio.get_running_loop()
        due = loop.time() + delay
        present = self._delayed.get(key)
        if present is not None:
            if present.when() <= due:
                return
            present.cancel()
        self._delayed[key] = loop.call_at(due, self._due, key, priority)

    def forget(self, key: K) -> None:
        """Drops what is known of a key that exists no more: its failures and its delay."""
        self._failures.pop(key, None)
        self._cancel_delay(key)

    def oldest(self) -> float:
        """Seconds for which the key that waits for the longest time has waited; 0 if none waits."""
        added = [next(iter(keys.values())) for keys in self._ready if keys]
        return time.monotonic() - min(added) if added else 0.0

    def failures(self, key: K) -> int:
        """How often in a row the key failed."""
        return self._failures.get(key, 0)

    async def idle(self) -> None:
        """Returns when no key waits or is worked on; delayed keys do not count."""
        await self._idle.wait()

    async def run(self, work: Callable[[K], Awaitable[float | None]]) -> None:
        """Works until cancelled.

        Args:
            work: works on one key. It returns the seconds after which to look again, or None; what it raises
                is logged, and the key is tried again later.
        """
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(self._workers):
                    group.create_task(self._work(work), name=f"worker {number}")
        finally:
            for timer in self._delayed.values():
                timer.cancel()
            self._delayed.clear()

    async def _work(self, work: Callable[[K], Awaitable[float | None]]) -> None:
        while True:
            key = await self._take()
            try:
                again = await work(key)
            except TryAgain as error:
                _log.info("%s: retrying: %s", key, error)
                self._failed(key)
            except Exception:  # noqa: BLE001 - one key's fault must not stop the others
                _log.exception("%s: reconciling failed", key)
                self._failed(key)
            else:
                self._failures.pop(key, None)
                if again is not None and key not in self._again:
                    self._look_again(key, again)
            finally:
                self._finish(key)

    def _look_again(self, key: K, delay: float) -> None:
        if delay > 0:
            self.add_later(key, delay, Priority.EVENT)
        else:
            self._again[key] = Priority.EVENT

    async def _take(self) -> K:
        while (priority := self._next()) is None:
            waiting = asyncio.get_running_loop().create_future()
            self._waiting.append(waiting)
            await waiting
        key = self._ready[priority].popitem(last=False)[0]
        self._active.add(key)
        if priority is Priority.RESYNC:
            self._resyncing.add(key)
        return key

    def _next(self) -> Priority | None:
        """Of which priority the next key is to be; None if no key may be worked on now."""
        for priority in Priority:
            if self._ready[priority]:
                full = priority is Priority.RESYNC and len(self._resyncing) >= self._resyncs
                return None if full else priority
        return None

    def _wake_one(self) -> None:
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.done():
                waiting.set_result(None)
                return

    def _finish(self, key: K) -> None:
        self._active.discard(key)
        if key in self._resyncing:
            self._resyncing.discard(key)
            self._wake_one()
        priority = self._again.pop(key, None)
        if priority is not None:
            self.add(key, priority)
        elif not self._active and not len(self):
            self._idle.set()

    def _failed(self, key: K) -> None:
        failures = self._failures.get(key, 0) + 1
        self._failures[key] = failures
        # 2**30 seconds are above any cap, and a longer streak must not overflow
        delay = min(self._cap, self._base * 2.0 ** min(failures - 1, 30))
        self.add_later(key, delay * (0.5 + 0.5 * self._jitter()), Priority.EVENT)

    def _due(self, key: K, priority: Priority) -> None:
        del self._delayed[key]
        self.add(key, priority)

    def _cancel_delay(self, key: K) -> None:
        timer = self._delayed.pop(key, None)
        if timer is not None:
            timer.cancel()
