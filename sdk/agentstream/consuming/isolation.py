"""Prefetched entries, and poison isolation: which of them may start is a pure decision.

A poison message takes its process down, and with it the attempts of what runs beside it. So an entry of which
two attempts ended unsettled is a suspect and runs alone: it starts when nothing else runs, or after waiting
for X

Where the group allows no more than two attempts, one that ended unsettled makes a suspect: nothing becomes a
dead letter for what it ran beside. Where it allows one, a suspect has another.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from agentstream.consuming.hold import Hold

_ISOLATE_AFTER = 2
_BEHIND = 1.0


def is_suspect(hold: Hold, max_deliveries: int) -> bool:
    """Whether an entry runs alone, in a group that allows so many attempts."""
    return hold.unsettled_attempts >= min(max(max_deliveries - 1, 1), _ISOLATE_AFTER)


def is_exhausted(hold: Hold, max_deliveries: int) -> bool:
    """Whether an entry had all attempts: what its group allows, or one alone after one beside others."""
    ended_beside_others = hold.unsettled_attempts == 1 and hold.entry.earlier == 0
    return hold.next_attempt > max(max_deliveries, 1 + ended_beside_others)


class PrefetchQueue:
    """Holds that wait for a handler, in the order of their arrival; suspects first."""

    def __init__(self, patience: float, max_deliveries: int = 5) -> None:
        # seconds that a suspect waits for running handlers to end
        self.patience = patience
        self.max_deliveries: int = max_deliveries
        self._ordinary: deque[Hold] = deque()
        self._suspect: deque[Hold] = deque()
        self._suspect_since: float | None = None
        self._alone: Hold | None = None
        self._blocked_since: float | None = None

    def __len__(self) -> int:
        """The number of holds that wait."""
        return len(self._ordinary) + len(self._suspect)

    @property
    def size(self) -> int:
        """Bytes of the messages that wait."""
        return sum([hold.entry.size for queue in (self._ordinary, self._suspect) for hold in queue])

    @property
    def is_blocked(self) -> bool:
        """Whether a suspect runs, or is the next to start."""
        return self._alone is not None or bool(self._suspect)

    def changes_at(self, now: float) -> float | None:
        """When a suspect may start although others run, or others give way to it; None if neither is due.

        A suspect that may start already starts with the next `take`.
        """
        if self._blocked_since is None:
            return None
        times = []
        if self._suspect_since is not None and now < self._suspect_since + self.patience:
            times.append(self._suspect_since + self.patience)
        if len(self) > self._stays:
            times.append(self._blocked_since + _BEHIND)
        return min(times, default=None)

    def put(self, hold: Hold) -> None:
        """Adds a hold."""
        (self._suspect if is_suspect(hold, self.max_deliveries) else self._ordinary).append(hold)

    def take(self, running: int, now: float) -> Hold | None:
        """Removes and returns the hold that starts next; None if none may.

        As many as `running` have started and are not settled. `now` is by any clock that never goes back.
        """
        if self._alone is not None:
            return None
        if not self._suspect:
            return self._ordinary.popleft() if self._ordinary else None
        if self._blocked_since is None:
            self._blocked_since = now
        if self._suspect_since is None:
            self._suspect_since = now
        if running and now < self._suspect_since + self.patience:
            return None
        self._suspect_since = None
        self._alone = self._suspect.popleft()
        return self._alone

    def ended(self, holds: Sequence[Hold]) -> None:
        """Notes that holds that were taken are settled, or could not start."""
        if self._alone in holds:
            self._alone = None
            self._update_blocked()

    def discard(self, hold: Hold) -> None:
        """Removes a hold that is lost."""
        for queue in (self._ordinary, self._suspect):
            if hold in queue:
                queue.remove(hold)
        self._update_blocked()

    def give_way(self, now: float) -> list[Hold]:
        """Removes and returns the holds that have waited behind a suspect for too long."""
        if self._blocked_since is None or now < self._blocked_since + _BEHIND:
            return []
        first = [self._suspect.popleft() for _ in range(self._stays)]
        behind = [*self._ordinary, *self._suspect]
        self._ordinary.clear()
        self._suspect = deque(first)
        return behind

    def clear(self) -> list[Hold]:
        """Removes and returns all holds."""
        holds = [*self._ordinary, *self._suspect]
        self._ordinary.clear()
        self._suspect.clear()
        self._update_blocked()
        return holds

    @property
    def _stays(self) -> int:
        """The number of suspects that never give way: the one that starts next, if none runs."""
        return int(self._alone is None and bool(self._suspect))

    def _update_blocked(self) -> None:
        if not self._suspect:
            self._suspect_since = None
        if not self.is_blocked:
            self._blocked_since = None


class Releases(Protocol):
    """Hands holds back."""

    def release(self, *holds: Hold, patience: float | None) -> Awaitable[None]:
        """Hands holds back; see `Settler.release`."""


class PoisonIsolation:
    """Watches the time limits of a queue: how long a suspect waits for others, and others for a suspect.

    `nudge` tells the group's consumers that there are entries to claim. Calls `on_change` when another hold
    may start.
    """

    def __init__(
        self,
        queue: PrefetchQueue,
        settler: Releases,
        nudge: Callable[[], Awaitable[None]],
        on_change: Callable[[], None],
    ) -> None:
        self._queue = queue
        self._settler = settler
        self._nudge = nudge
        self._on_change = on_change
        self._timer: asyncio.TimerHandle | None = None
        self._releases: set[asyncio.Task[None]] = set()
        self._stopped = False

    def watch(self) -> None:
        """Sets the timer anew, as a hold started, ended or arrived."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        when = None if self._stopped else self._queue.changes_at(time.monotonic())
        if when is not None:
            self._timer = asyncio.get_running_loop().call_at(when, self._timed_out)

    def stop(self) -> None:
        """Stops watching, as all holds in the queue are about to be handed back."""
        self._stopped = True
        self.watch()

    async def ended(self) -> None:
        """Waits until the holds that gave way are handed back and other consumers are nudged."""
        await asyncio.gather(*self._releases)

    def _timed_out(self) -> None:
        behind = self._queue.give_way(time.monotonic())
        if behind:
            task = asyncio.create_task(self._hand_back(behind))
            self._releases.add(task)
            task.add_done_callback(self._releases.discard)
        self._on_change()

    async def _hand_back(self, holds: list[Hold]) -> None:
        # while the server is away no other consumer gets them; not handed back, each would lose an attempt
        await self._settler.release(*holds, patience=None)
        await self._nudge()
