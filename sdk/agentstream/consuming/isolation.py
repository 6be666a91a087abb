"""Deliveries that wait for a handler, and which of them may start: a pure decision.

A message whose attempts end without a word may be one that takes its process down. After two of these it
therefore runs alone: it starts when nothing else runs, or after waiting for that as long as a lease, and
nothing else starts before it is settled. What waits behind it for more than a second gives way: other
processes may have it.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from agentstream.consuming.hold import Hold

ISOLATE_AFTER = 2
_BEHIND = 1.0


class PrefetchQueue:
    """Deliveries in the order of their arrival, the suspect ones apart.

    Attributes:
        patience: seconds that a suspect waits for running handlers to end.
    """

    def __init__(self, patience: float) -> None:
        self.patience = patience
        self._ordinary: deque[Hold] = deque()
        self._suspect: deque[Hold] = deque()
        self._suspect_since: float | None = None
        self._alone: Hold | None = None
        self._blocked_since: float | None = None

    def __len__(self) -> int:
        """How many wait."""
        return len(self._ordinary) + len(self._suspect)

    @property
    def is_blocked(self) -> bool:
        """Whether a suspect runs, or is the next to start."""
        return self._alone is not None or bool(self._suspect)

    def changes_at(self, now: float) -> float | None:
        """When a suspect may start although others run, or others give way to it; None if not by itself.

        A suspect that may start already starts when somebody takes it.
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
        """Adds a delivery."""
        (self._suspect if hold.unsettled_attempts >= ISOLATE_AFTER else self._ordinary).append(hold)

    def take(self, running: int, now: float) -> Hold | None:
        """The delivery that starts next; None if none may.

        Args:
            running: how many deliveries have started and are not settled.
            now: seconds of any clock that never goes back.
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
        """Notes that deliveries that were taken are settled, or could not start."""
        if self._alone in holds:
            self._alone = None
            self._look_whether_blocked()

    def discard(self, hold: Hold) -> None:
        """Removes a delivery that is not held any more."""
        for queue in (self._ordinary, self._suspect):
            if hold in queue:
                queue.remove(hold)
        self._look_whether_blocked()

    def give_way(self, now: float) -> list[Hold]:
        """Removes and returns what has waited behind a suspect for so long that others should have it."""
        if self._blocked_since is None or now < self._blocked_since + _BEHIND:
            return []
        first = [self._suspect.popleft() for _ in range(self._stays)]
        behind = [*self._ordinary, *self._suspect]
        self._ordinary.clear()
        self._suspect = deque(first)
        return behind

    def clear(self) -> list[Hold]:
        """Removes and returns everything that waits."""
        holds = [*self._ordinary, *self._suspect]
        self._ordinary.clear()
        self._suspect.clear()
        self._look_whether_blocked()
        return holds

    @property
    def _stays(self) -> int:
        """How many wait that never give way: the suspect that starts next, if none runs."""
        return int(self._alone is None and bool(self._suspect))

    def _look_whether_blocked(self) -> None:
        if not self._suspect:
            self._suspect_since = None
        if not self.is_blocked:
            self._blocked_since = None


class PoisonIsolation:
    """Looks at a buffer again when a suspect has waited for others long enough, or others for it.

    Args:
        buffer: what waits for a handler.
        release: hands holds back.
        nudge: tells the group's consumers that there is something to claim.
        look_again: called when something else may start.
    """

    def __init__(
        self,
        buffer: PrefetchQueue,
        release: Callable[..., Awaitable[None]],
        nudge: Callable[[], Awaitable[None]],
        look_again: Callable[[], None],
    ) -> None:
        self._prefetched = buffer
        self._release = release
        self._nudge = nudge
        self._look_again = look_again
        self._timer: asyncio.TimerHandle | None = None
        self._releases: set[asyncio.Task[None]] = set()
        self._stopped = False

    def watch(self) -> None:
        """Something started, ended or came."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        when = None if self._stopped else self._prefetched.changes_at(time.monotonic())
        if when is not None:
            self._timer = asyncio.get_running_loop().call_at(when, self._waited)

    def stop(self) -> None:
        """Looks no more: whatever waits is about to be handed back."""
        self._stopped = True
        self.watch()

    async def ended(self) -> None:
        """Waits until what was to be handed back is, and others know."""
        await asyncio.gather(*self._releases)

    def _waited(self) -> None:
        behind = self._prefetched.give_way(time.monotonic())
        if behind:
            task = asyncio.create_task(self._hand_back(behind))
            self._releases.add(task)
            task.add_done_callback(self._releases.discard)
        self._look_again()

    async def _hand_back(self, holds: list[Hold]) -> None:
        # a server that is away gives them to nobody; given up, each would have lost an attempt
        await self._release(*holds, patience=None)
        await self._nudge()
