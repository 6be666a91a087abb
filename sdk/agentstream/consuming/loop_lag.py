"""Whether the event loop lags."""

from __future__ import annotations

import asyncio
import time


class LoopLag:
    """Notices when the event loop or the process stands still: the time between two checks is too long."""

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._last = time.monotonic()
        self._stalled_since: float | None = None

    async def watch(self) -> None:
        """Checks until cancelled."""
        while True:
            self._check()
            await asyncio.sleep(self._interval)

    def reset(self) -> None:
        """Forgets earlier stalls, before a command is sent."""
        self._last = time.monotonic()
        self._stalled_since = None

    def stalled_since(self) -> float:
        """Returns when a reply that is seen now may have come at the earliest, by `time.monotonic`.

        That is now, give or take two intervals, unless the loop stood still since `reset`.
        """
        self._check()
        return self._last if self._stalled_since is None else self._stalled_since

    def _check(self) -> None:
        now = time.monotonic()
        if self._stalled_since is None and now - self._last > 2 * self._interval:
            self._stalled_since = self._last
        self._last = now
