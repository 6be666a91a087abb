"""The work queue: the order of keys, and the delays of retries.

A key is queued at most once and reconciled by one worker at a time; a key added meanwhile runs once more
afterwards. Groups to scale up from zero go first, then changes of resources, then consequences, then resyncs.
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
    """The key could not be reconciled for an expected reason; it is retried after a delay."""


class Priority(IntEnum):
    """Why a key is queued; lower goes first."""

    WAKE = 0
    CHANGE = 1
    EVENT = 2
    RESYNC = 3


class WorkQueue(Generic[K]):
    """A queue of keys with workers.

    Args:
        workers: keys reconciled at a time.
        resyncs: how many of them may be resyncs, so that changes never wait for a resync of many keys.
        base: seconds before the first retry; doubles with every further failure.
        cap: the maximum delay, in seconds.
        jitter: returns a number in [0, 1) that spreads delays over their second half.
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
        """The number of queued keys."""
        return sum(len(keys) for keys in self._ready)

    @property
    def busy(self) -> bool:
        """Whether more keys are queued or reconciled than usual."""
        return len(self) + len(self._active) > _MANY

    def add(self, key: K, priority: Priority) -> None:
        """Queues a key; a resync does not shorten the delay of a failed key."""
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
        """Queues a key after `delay` seconds, unless it is due earlier."""
        loop = asyncio.get_running_loop()
        due = loop.time() + delay
        present = self._delayed.get(key)
        if present is not None:
            if present.when() <= due:
                return
            present.cancel()
        self._delayed[key] = loop.call_at(due, self._due, key, priority)

    def forget(self, key: K) -> None:
        """Drops the failures and the delay of a key."""
        self._failures.pop(key, None)
        self._cancel_delay(key)

    def oldest(self) -> float:
        """Returns the seconds since the oldest queued key was queued; 0 if none is."""
        added = [next(iter(keys.values())) for keys in self._ready if keys]
        return time.monotonic() - min(added) if added else 0.0

    def failures(self, key: K) -> int:
        """Returns the number of consecutive failures of a key."""
        return self._failures.get(key, 0)

    async def idle(self) -> None:
        """Waits until no key is queued or being reconciled; delayed keys do not count."""
        await self._idle.wait()

    async def run(self, work: Callable[[K], Awaitable[float | None]]) -> None:
        """Reconciles keys until cancelled.

        `work` reconciles a key, and returns the seconds until the next time, or None; errors are logged and
        the key retried.
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
        """Returns the priority of the next key; None if no key may be reconciled now."""
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
