"""Liveness: when expired leases do not prove that their consumers are gone, and when the event loop lags.

The server tells by its clock how long ago a lease was renewed. While the server was away no consumer could
renew, and when its clock jumps ahead all leases look expired at once. A consumer notices both alike: the
clock shows more than expected. For half a lease it then claims only entries that were handed back. Live
consumers renew meanwhile, within a third of a lease; see docs/adr/0019-claims-wait-after-a-silence.md.
"""

from __future__ import annotations

import asyncio
import time

# In parts of a lease. Live consumers renew every third, so one that looks gone missed two thirds.
_TOLERANCE = 1 / 3
PERIOD = 1 / 2


class ClaimGuard:
    """Guards claims against a server's clock that shows more than expected. A pure decision.

    Times are seconds by `time.monotonic`, but for those of the server's clock, which are milliseconds.
    """

    def __init__(self, now: float) -> None:
        self._heard_at = self._ends = now
        self._interrupted = False
        self._clock: int | None = None

    def limit(self, now: float, lease: float) -> int | None:
        """Returns up to which time of the server's clock expired leases may be claimed; None for any."""
        if now < self._ends:
            return 0
        tolerated = _TOLERANCE * lease
        if self._clock is None:
            return None if now <= self._heard_at + tolerated else 0
        # when this process is late itself, as when a handler blocks the loop, the server was not away
        expected = 0 if self._interrupted else now - self._heard_at
        return self._clock + round(1000 * (expected + tolerated))

    def heard(self, limit: int | None, clock: int, *, asked: float, now: float, lease: float) -> bool:
        """Takes the server's clock, asked with a limit. Returns whether claims are suspended from now on."""
        begins = asked >= self._ends and limit is not None and clock > limit
        if begins:
            self._ends = now + PERIOD * lease
        self._clock, self._heard_at, self._interrupted = clock, asked, False
        return begins

    def interrupted(self) -> None:
        """Notes that the connection was lost: how long the server could not be reached is not known."""
        self._interrupted = True


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
