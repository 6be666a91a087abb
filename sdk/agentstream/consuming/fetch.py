"""Fetching: entries that this consumer owns already, then new ones, and now and then claims of stalled ones.

A reply that was lost may have brought entries, which the server counts as delivered to this consumer. So
after every lost reply, and at the start, the consumer recovers the entries that the server says it owns
before it reads new ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from agentstream.consuming.hold import DELIVERED, Hold, claimed_holds, delivered_holds
from agentstream.consuming.isolation import PrefetchQueue
from agentstream.consuming.leases import Leases
from agentstream.consuming.loop_lag import LoopLag
from agentstream.consuming.ordering import KeyOrder
from agentstream.consuming.presence import Presence
from agentstream.errors import AgentStreamError, ConnectionLost
from agentstream.protocol.commands import Command
from agentstream.protocol.entry import Source, consumer_names
from agentstream.transport.client import Client
from agentstream.transport.error_replies import group_is_gone
from agentstream.transport.retry import Backoff, FailureLog, unit

# In ms. Shorter costs more while idle; longer notices later that a connection has fallen silent.
_BLOCK = 5_000
READ_TIMEOUT = _BLOCK / 1000 + 3.0
"""Seconds after which a reading connection without a reply counts as broken."""

# While anything is pending, a group is swept once in this many ms, by the first of its consumers to come.
_SWEEP_INTERVAL = 2_000
# Seconds at most by which consumers spread what would otherwise happen at the same time.
_SPREAD = 0.5
_SPREAD_OF_NUDGES = 0.005
_PAGE_OF_STRAYS = 500

# So many bytes of messages may wait for a handler, or eight of the largest that the stream takes.
_LEAST_BUDGET = 16 << 20
# Other clients wait while the server replies. The next bodies are taken to be as large as the last ones.
_MOST_READ, _MOST_BYTES_READ, _FIRST_GUESS = 500, 4 << 20, 64 << 10
_BEATS_PER_LEASE = 4

# While so many entries of a process wait for their predecessors with the same ordering key, it reads retries
# only, and looks again after so many ms. A predecessor may be a retry, but is no new entry.
_AHEAD, _AHEAD_PER_SLOT = 256, 4
_BLOCK_CROWDED = 100


@dataclass(slots=True, eq=False)
class Capacity:
    """How many more entries this process may hold.

    Entries that wait for their predecessors do not count in the total: the predecessors need room.
    While those that wait for a handler have more bytes than `budget`, no more are fetched.
    """

    _total: int
    _leases: Leases
    _prefetched: PrefetchQueue
    _key_order: KeyOrder
    budget: int = field(default=_LEAST_BUDGET, init=False)
    _changed: asyncio.Event = field(default_factory=asyncio.Event, init=False)

    def resize(self, largest: int) -> None:
        """Sets the budget for messages of up to `largest` bytes."""
        self.budget = max(_LEAST_BUDGET, 8 * largest)

    def changed(self) -> None:
        """Wakes up those that wait for capacity, as an entry was settled or handed out."""
        self._changed.set()

    @property
    def free(self) -> int:
        """How many entries may be fetched that other consumers could have instead.

        None while a suspect runs alone: they would wait behind it.
        """
        return 0 if self._prefetched.is_blocked or not self.left else self.unheld

    @property
    def left(self) -> int:
        """How many more bytes may wait for a handler."""
        return max(self.budget - self._prefetched.size, 0)

    @property
    def unheld(self) -> int:
        """How many more entries may be held."""
        return max(self._total - len(self._leases) + len(self._key_order), 0)

    @property
    def crowded(self) -> bool:
        """Whether so many entries wait for their predecessors that reading further ahead is of no use."""
        most = max(_AHEAD, _AHEAD_PER_SLOT * self._total)
        return len(self._key_order) >= most or self._key_order.size >= self.budget

    async def wait_for_any(self) -> int:
        """Waits until one more entry that this process owns may be held. Returns how many may."""
        while not (self.unheld and self.left):
            self._changed.clear()
            await self._changed.wait()
        return self.unheld

    async def wait_for_room(self) -> int:
        """Waits until half is free, or no entry waits for a handler. Returns how many may be fetched."""
        while not ((2 * self.unheld >= self._total or not len(self._prefetched)) and (free := self.free)):
            self._changed.clear()
            await self._changed.wait()
        return free


class FetchSignals:
    """Tells the fetcher of one group what else to look for.

    `nudge` tells the group's consumers in other processes that there are entries to claim.
    """

    def __init__(self, nudge: Callable[[], Awaitable[None]]) -> None:
        self.nudge: Callable[[], Awaitable[None]] = nudge
        # whether the server may think that this consumer owns entries that it does not know of
        self.in_doubt: bool = True
        # even if another consumer has just swept: entries may have become due while no consumer was there
        self.sweep_at_once: bool = True
        self.look: asyncio.Event = asyncio.Event()
        self.look.set()

    def doubt(self) -> None:
        """Has the entries that this consumer owns recovered before new ones are read."""
        self.in_doubt = True

    def look_again(self) -> None:
        """Sweeps without waiting for the next turn: the policy has changed, or a retry is due."""
        self.look.set()

    def look_after(self, seconds: float) -> None:
        """Sweeps in so many seconds, when a retry is due."""
        # the server's clock counts whole milliseconds
        asyncio.get_running_loop().call_later(seconds + 0.002, self.look_again)

    def sweep_now(self) -> None:
        """Sweeps soon, as there are entries that any consumer may claim.

        Every consumer of the group gets the nudge; as they sweep some ms apart, each claims a share.
        """
        self.sweep_at_once = True
        asyncio.get_running_loop().call_later(_SPREAD_OF_NUDGES * unit(), self.look_again)


class HoldSink(Protocol):
    """Takes the entries that are fetched, as far as its capacity allows."""

    leases: Leases
    capacity: Capacity

    def accept(self, holds: Iterable[Hold]) -> None:
        """Takes new holds."""

    async def give_back(self, holds: Iterable[Hold]) -> None:
        """Hands new holds back, for other consumers."""


class Fetcher:
    """Fetches entries of one group.

    `reading` is the connection for blocking reads, `control` that for everything else. `refresh` looks up the
    group's policy, before each sweep and recovery.
    """

    def __init__(
        self,
        *,
        reading: Client,
        control: Client,
        sink: HoldSink,
        signals: FetchSignals,
        refresh: Callable[[], Awaitable[None]],
        presence: Presence,
    ) -> None:
        self._reading = reading
        self._control = control
        self._leases = sink.leases
        self._commands = sink.leases.calls
        self._capacity = sink.capacity
        self._accept = sink.accept
        self._give_back = sink.give_back
        self._signals = signals
        self._refresh = refresh
        self._presence = presence
        self._has_succeeded = False
        # whether it ended before a claim was answered: entries that it owns may have been begun by others
        self._claimed_unseen = False
        # set while there is nothing more to sweep
        self._is_swept = asyncio.Event()
        # bytes of the largest body that the last reads brought
        self._largest = _FIRST_GUESS
        self._loop_lag = LoopLag(sink.leases.lease / _BEATS_PER_LEASE)
        self._read_failures = FailureLog(f"read {self._commands.main.key}")
        self._sweep_failures = FailureLog(f"sweep {self._commands.main.key}")

    async def run(self) -> None:
        """Fetches until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._loop_lag.watch())
            tasks.create_task(self._read())
            tasks.create_task(self._sweep())

    async def release_strays(self, release: Callable[..., Awaitable[None]]) -> int:
        """Hands back what the server delivered to this consumer while the reading connection was closed.

        No attempt is counted for entries that no other consumer has begun. Returns the number of entries.
        """
        count, is_certain = 0, not (self._signals.in_doubt or self._claimed_unseen)
        with contextlib.suppress(AgentStreamError):
            # with TLS, the server answers this after it has noticed that the reading connection is closed
            await self._control.call("PING")
            for source in self._commands.sources:
                start = "-"
                while start:
                    command = self._commands.take(source, self._commands.consumer, start, _PAGE_OF_STRAYS)
                    following, reply = await self._control.call(*command)
                    until = time.monotonic() + self._leases.lease
                    strays = [
                        # if certainly nothing but a read brought it, that counted one attempt
                        Hold(hold.entry, 1, DELIVERED, until) if is_certain and hold.counter == 1 else hold
                        for hold in claimed_holds(reply, source, until)
                    ]
                    strays = [hold for hold in strays if self._leases.acquire(hold)]
                    await release(*strays)
                    count += len(strays)
                    start = following.decode()
        return count

    async def _read(self) -> None:
        backoff = Backoff(0.1, 2.0)
        while True:
            try:
                if self._signals.in_doubt:
                    await self._recover_own()
                elif not self._is_swept.is_set():
                    # stalled entries are older than new ones
                    await self._is_swept.wait()
                else:
                    await self._read_new()
            except AgentStreamError as error:
                self._signals.doubt()
                self._read_failures.failed(error)
                if group_is_gone(error):
                    # entries of the other stream are still held
                    for source in self._commands.sources:
                        if f"'{source.key}'" in str(error):
                            self._leases.expire_all(source)
                await asyncio.sleep(backoff.next())
            else:
                backoff.reset()
                self._read_failures.recovered()

    async def _read_new(self) -> None:
        free = await self._capacity.wait_for_room()
        if self._signals.in_doubt or not self._is_swept.is_set():
            return
        crowded = self._capacity.crowded
        sources = self._commands.sources[1:] if crowded else self._commands.sources
        block = _BLOCK_CROWDED if crowded else _BLOCK
        self._loop_lag.reset()
        try:
            reply = None
            if free == 1 and not crowded:
                # a read over both streams may bring an entry of each
                reply = await self._reading.call(*self._commands.read(sources[1:], 1, None))
            if not reply:
                count = read_count(free, self._largest, self._capacity.left)
                reply = await self._reading.call(*self._commands.read(sources, count, block))
        except ConnectionLost:
            # a server that has not noticed yet may still give entries to the lost read, while it blocks
            asyncio.get_running_loop().call_later(_BLOCK / 1000, self._signals.doubt)
            raise
        # while the process was paused, or its event loop blocked, others may have claimed the entries
        until = self._loop_lag.stalled_since() + self._leases.lease
        holds = delivered_holds(reply, self._commands.sources, until)
        self._look_at_sizes(holds)
        # claims may have taken the room meanwhile; of what came, retries are the oldest
        surplus = max(len(holds) - self._capacity.unheld, 0)
        self._accept(holds[surplus:])
        if surplus:
            await self._give_back(holds[:surplus])
            # perhaps nobody else takes them
            await self._capacity.wait_for_room()
            self._signals.sweep_now()

    async def _recover_own(self) -> None:
        """Recovers the entries that this consumer owns; at the start also those of processes that ended."""
        await self._refresh()
        self._signals.in_doubt = False
        for source in self._commands.sources:
            await self._take(source, self._commands.consumer)
        if not self._has_succeeded:
            for source in self._commands.sources:
                reply = await self._control.call(*self._commands.consumers(source))
                for ended in self._presence.predecessors(consumer_names(reply)):
                    await self._take(source, ended)
            self._has_succeeded = True

    async def _take(self, source: Source, holder: str) -> None:
        """Takes all that a consumer holds, itself or one that has ended, as there is room."""
        start = "-"
        while start:
            count = await self._capacity.wait_for_any()
            if holder == self._commands.consumer:
                # the entries that it owns include those that it holds
                count += len(self._leases)
            asked = time.monotonic()
            following, reply = await self._claim(self._commands.take(source, holder, start, count))
            holds = claimed_holds(reply, source, asked + self._leases.lease)
            self._look_at_sizes(holds)
            self._accept(holds)
            start = following.decode()

    def _look_at_sizes(self, holds: list[Hold]) -> None:
        """Takes the next bodies to be as large as the last ones; after large ones not at once for small."""
        if holds:
            self._largest = max([self._largest >> 1, *(hold.entry.size for hold in holds)])

    async def _sweep(self) -> None:
        while True:
            try:
                wait = await self._sweep_once()
            except AgentStreamError as error:
                wait = _SWEEP_INTERVAL / 1000
                self._signals.sweep_at_once = True
                if isinstance(error, ConnectionLost):
                    self._signals.doubt()
                self._sweep_failures.failed(error)
            else:
                self._sweep_failures.recovered()
            (self._is_swept.set if wait else self._is_swept.clear)()
            patience = wait or _SWEEP_INTERVAL / 1000
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience + min(patience / 8, _SPREAD) * unit()):
                    await (self._signals.look.wait() if wait else self._capacity.wait_for_room())

    async def _sweep_once(self) -> float:
        """Moves due retries and claims stalled entries. Returns seconds to wait; 0 if there are more."""
        self._signals.look.clear()
        await self._refresh()
        lease, free, at_once = self._leases.lease, self._capacity.free, self._signals.sweep_at_once
        self._signals.sweep_at_once = at_once and not free
        asked = time.monotonic()
        command = self._commands.sweep(round(lease * 1000), _SWEEP_INTERVAL, free, now=at_once)
        _, stalled, stalled_retries, wait = await self._claim(command)
        until = asked + self._leases.lease
        self._accept(claimed_holds(stalled, self._commands.main, until))
        self._accept(claimed_holds(stalled_retries, self._commands.retries, until))
        # the server's clock counts whole milliseconds
        return wait / 1000 + 0.002 if wait else 0.0

    async def _claim(self, command: Command) -> Any:
        try:
            return await self._control.call(*command)
        except asyncio.CancelledError:
            self._claimed_unseen = True
            raise


def read_count(free: int, largest: int, left: int = _MOST_BYTES_READ) -> int:
    """Returns how many entries to read of each of the two streams.

    Args:
        free: how many entries may be fetched.
        largest: the bytes of the largest of the bodies that came last.
        left: how many more bytes may wait for a handler.
    """
    return max(min(free // 2, _MOST_READ, min(left, _MOST_BYTES_READ) // max(largest, 1)), 1)
