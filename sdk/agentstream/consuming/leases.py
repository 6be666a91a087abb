"""The entries of one group that this process holds, and until when.

All held entries, prefetched or running, are renewed alike, three times per lease and from a thread of its
own, so that other consumers' sweeps find only entries of consumers that are gone; see
docs/adr/0012-leases-from-a-thread.md. The event loop changes what is held; the thread reads a copy each time.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from typing import Protocol

from agentstream.consuming.hold import Hold
from agentstream.protocol.commands import Command, GroupCalls
from agentstream.protocol.entry import Source

_BATCH = 500


def batches(holds: Sequence[Hold]) -> Iterator[tuple[Source, Sequence[Hold]]]:
    """Yields holds by the stream that they are on, as many at a time as one function call takes."""
    for retry in (False, True):
        of_source = [hold for hold in holds if hold.source.retry is retry]
        for i in range(0, len(of_source), _BATCH):
            yield of_source[i].source, of_source[i : i + _BATCH]


class Renews(Protocol):
    """Renews leases."""

    def wake(self) -> None:
        """Looks again, as the interval of renewals has changed."""

    def first_acquired(self, leases: Leases) -> None:
        """Begins to renew a group of which nothing was held so far."""


class HoldListener(Protocol):
    """Hears how holds end. It is called in the event loop, with holds that `Leases` has dropped."""

    def holds_lost(self, holds: Sequence[Hold]) -> None:
        """Handles holds that turned out to be lost."""

    def holds_ended(self, holds: Sequence[Hold]) -> None:
        """Handles holds that are settled, handed back or dropped, still valid or not."""


class Leases:
    """The entries of one group that this process holds.

    `lease` is in seconds: after so long other consumers may claim an entry that was not renewed.
    """

    def __init__(self, calls: GroupCalls, lease: float, renewal: Renews) -> None:
        self.calls = calls
        self.lease: float = lease
        self._renewal = renewal
        self._listener: HoldListener | None = None
        self._loop = asyncio.get_running_loop()
        self._main: dict[str, Hold] = {}
        self._retries: dict[str, Hold] = {}

    def __len__(self) -> int:
        """The number of held entries."""
        return len(self._main) + len(self._retries)

    def listen(self, listener: HoldListener) -> None:
        """Sets the listener that hears how holds end."""
        self._listener = listener

    def change(self, lease: float) -> None:
        """Renews from now on as often as leases of so many seconds need."""
        if lease != self.lease:
            self.lease = lease
            self._renewal.wake()

    def renewal_of(self, source: Source, holds: Sequence[Hold]) -> Command:
        """Returns the command that renews holds of one stream. Any thread may call this."""
        return self.calls.renew(source, round(self.lease * 1000), holds)

    def held(self) -> list[Hold]:
        """Returns a copy of all holds. Any thread may call this."""
        return [*self._main.copy().values(), *self._retries.copy().values()]

    def acquire(self, hold: Hold) -> bool:
        """Adds a hold. Returns False if the entry is held already; that hold's lease is extended instead."""
        holds = self._holds_of(hold)
        known = holds.get(hold.id)
        if known is not None:
            if known.is_busy or known.counter == hold.counter:
                known.renew(hold.lease_until)
                return False
            self.expire([(known, known.counter)])
        was_empty = not self._main and not self._retries
        holds[hold.id] = hold
        if was_empty:
            self._renewal.first_acquired(self)
        return True

    def drop(self, hold: Hold) -> None:
        """Removes a hold that has ended."""
        holds = self._holds_of(hold)
        if holds.get(hold.id) is hold:
            del holds[hold.id]

    def end(self, holds: Sequence[Hold]) -> None:
        """Removes holds that are settled, handed back or dropped, and tells the listener."""
        for hold in holds:
            self.drop(hold)
        if self._listener is not None:
            self._listener.holds_ended(holds)

    def expire_all(self, source: Source) -> None:
        """Loses all entries of a stream, as the group is gone from it."""
        self.expire([(hold, hold.counter) for hold in self.held() if hold.source == source])

    def expire(self, holds: list[tuple[Hold, int]]) -> None:
        """Loses holds that are not valid any more at these delivery counters, and tells the listener.

        A hold that a command is under way for is left to the reply of that command.
        """
        lost = [
            hold
            for hold, counter in holds
            if not hold.is_busy and hold.counter == counter and self._holds_of(hold).get(hold.id) is hold
        ]
        for hold in lost:
            hold.lose()
            self.drop(hold)
        if lost and self._listener is not None:
            self._listener.holds_lost(lost)

    def expire_soon(self, holds: list[tuple[Hold, int]]) -> None:
        """Does the same from another thread, in the next iteration of the event loop."""
        # a loop that is closed has no listener left
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self.expire, holds)

    def _holds_of(self, hold: Hold) -> dict[str, Hold]:
        return self._retries if hold.source.retry else self._main
