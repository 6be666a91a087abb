"""When nobody may be taken for dead: after a silence, and after a leap of the server's clock.

How long ago a lease was renewed the server tells by its clock. While it was away nobody could renew, and when
its clock leaps ahead all leases look old at once. A consumer notices both alike: the clock shows more than it
expects. For half a lease it then claims nothing but what was handed back. Who lives renews meanwhile,
within a third of a lease; see docs/adr/0019-claims-wait-after-a-silence.md.
"""

from __future__ import annotations

import asyncio
import time

# In parts of a lease. Who lives has renewed within the last third, so what makes it look dead takes two.
_TOLERANCE = 1 / 3
PERIOD = 1 / 2


class ClaimGuard:
    """What a consumer expects of its server's clock: a pure decision. Times are seconds by `time.monotonic`.

    Args:
        now: when the consumer began to look for the server.
    """

    def __init__(self, now: float) -> None:
        self._heard_at = self._ends = now
        self._interrupted = False
        self._clock: int | None = None

    def limit(self, now: float, lease: float) -> int | None:
        """Up to which time, in ms of the server's clock, leases may have run out; None for any.

        Args:
            now: when the server is asked.
            lease: seconds.
        """
        if now < self._ends:
            return 0
        tolerated = _TOLERANCE * lease
        if self._clock is None:
            return None if now <= self._heard_at + tolerated else 0
        # being late oneself, as where a handler blocks the loop, is no silence
        expected = 0 if self._interrupted else now - self._heard_at
        return self._clock + round(1000 * (expected + tolerated))

    def heard(self, limit: int | None, clock: int, *, asked: float, now: float, lease: float) -> bool:
        """Takes what the clock showed. Returns whether a period of grace begins.

        Args:
            limit: what was given to the server.
            clock: the server's, in ms.
            asked: when the server was asked.
            now: when it answered.
            lease: seconds.
        """
        begins = asked >= self._ends and limit is not None and clock > limit
        if begins:
            self._ends = now + PERIOD * lease
        self._clock, self._heard_at, self._interrupted = clock, asked, False
        return begins

    def interrupted(self) -> None:
        """The connection was lost, and for how long the server could not be reached is not known."""
        self._interrupted = True


class LoopLag:
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
