"""What this process holds of one group, and until when.

Whatever is buffered or runs is renewed alike, three times per lease and from a thread of its own, so that
other consumers' sweeps find only what nobody looks after; see docs/adr/0012-leases-from-a-thread.md. The
event loop changes what is held, the thread reads it: each of its looks is at a copy.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from agentstream.consuming.hold import Hold
from agentstream.protocol.commands import GroupCalls
from agentstream.protocol.entry import Source

_BATCH = 500


def batches(entries: Sequence[Hold]) -> Iterator[tuple[Source, Sequence[Hold]]]:
    """Entries by the stream they are on, as many at a time as one function call takes."""
    for retry in (False, True):
        of_source = [hold for hold in entries if hold.source.retry is retry]
        for i in range(0, len(of_source), _BATCH):
            yield of_source[i].source, of_source[i : i + _BATCH]


class Renews(Protocol):
    """What renews leases."""

    def wake(self) -> None:
        """There is another rhythm to renew in."""

    def first_acquired(self, leases: Leases) -> None:
        """So far, nothing of this group was."""


class Leases:
    """The entries of one group that this process holds.

    Args:
        calls: the commands of this consumer.
        lease: seconds after which an entry that was not renewed may be claimed by others.
        renewal: renews what is held; woken up when the first entry is.
        on_lost: called in the event loop with entries that turn out not to be held any more.
    """

    def __init__(
        self, calls: GroupCalls, lease: float, renewal: Renews, on_lost: Callable[[list[Hold]], None]
    ) -> None:
        self.calls = calls
        self._lease = lease
        self._renewal = renewal
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._main: dict[str, Hold] = {}
        self._retries: dict[str, Hold] = {}

    def __len__(self) -> int:
        """How many entries are held."""
        return len(self._main) + len(self._retries)

    @property
    def lease(self) -> float:
        """Seconds after which an entry that was not renewed may be claimed by others."""
        return self._lease

    @lease.setter
    def lease(self, lease: float) -> None:
        if lease != self._lease:
            self._lease = lease
            self._renewal.wake()

    def held(self) -> list[Hold]:
        """The entries that are held just now. Any thread may ask."""
        return [*self._main.copy().values(), *self._retries.copy().values()]

    def acquire(self, hold: Hold) -> bool:
        """Notes an entry that the server gave to this consumer; False if it is held already."""
        of_source = self._of(hold)
        known = of_source.get(hold.id)
        if known is not None:
            if known.is_busy or known.counter == hold.counter:
                known.renew(hold.lease_until)
                return False
            self.expire([(known, known.counter)])
        was_empty = not self._main and not self._retries
        of_source[hold.id] = hold
        if was_empty:
            self._renewal.first_acquired(self)
        return True

    def drop(self, hold: Hold) -> None:
        """Forgets an entry that is settled, or handed back."""
        of_source = self._of(hold)
        if of_source.get(hold.id) is hold:
            del of_source[hold.id]

    def expire_all(self, source: Source) -> None:
        """The group is gone from a stream, and with it every hold of that which was held."""
        self.expire([(hold, hold.counter) for hold in self.held() if hold.source == source])

    def expire(self, entries: list[tuple[Hold, int]]) -> None:
        """Entries are not held any more at these delivery counters.

        What is being settled or begun hears of it from its own command.
        """
        lost = [
            hold
            for hold, counter in entries
            if not hold.is_busy and hold.counter == counter and self._of(hold).get(hold.id) is hold
        ]
        for hold in lost:
            hold.lose()
            self.drop(hold)
        if lost:
            self._on_lost(lost)

    def expire_soon(self, entries: list[tuple[Hold, int]]) -> None:
        """The same, from another thread."""
        # a loop that is closed has nobody left who would want to know
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self.expire, entries)

    def _of(self, hold: Hold) -> dict[str, Hold]:
        return self._retries if hold.source.retry else self._main
