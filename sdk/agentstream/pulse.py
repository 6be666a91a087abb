"""Whether the event loop was held up: what it reads afterwards may have come long before."""

from __future__ import annotations

import asyncio
import time


class Pulse:
    """Beats in the event loop. A beat that comes late tells since when the loop stood still, or the process.

    Args:
        every: seconds between beats.
    """

    def __init__(self, every: float) -> None:
        self._every = every
        self._last = time.monotonic()
        self._held_up_since: float | None = None

    async def beat(self) -> None:
        """Beats until cancelled."""
        while True:
            self._look()
            await asyncio.sleep(self._every)

    def start(self) -> None:
        """Something is asked for now."""
        self._last = time.monotonic()
        self._held_up_since = None

    def since(self) -> float:
        """When, at the earliest, that may have come which is seen now, by `time.monotonic`.

        That is now, give or take two beats, unless the loop was held up since `start`.
        """
        self._look()
        return self._last if self._held_up_since is None else self._held_up_since

    def _look(self) -> None:
        now = time.monotonic()
        if self._held_up_since is None and now - self._last > 2 * self._every:
            self._held_up_since = self._last
        self._last = now
