"""How entries come in: what this consumer owns already, then new ones, and now and then stalled ones.

A reply that was lost may have brought entries, which the server now counts as delivered to this consumer. So
after every lost reply, and at the start, what the server says is owned is taken up before anything new is
read.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from agentstream.consuming.hold import DELIVERED, Hold, claimed_holds, delivered_holds
from agentstream.consuming.leases import Leases
from agentstream.consuming.liveness import PERIOD, ClaimGuard, LoopLag
from agentstream.errors import AgentStreamError, ConnectionLost
from agentstream.protocol.commands import Command, GroupCalls
from agentstream.transport.client import Client
from agentstream.transport.error_replies import group_is_gone
from agentstream.transport.retry import Backoff, FailureLog, unit

_log = logging.getLogger("agentstream")

# In ms. What an idle consumer costs, against how late it sees that its connection has fallen silent.
_BLOCK = 5_000
READ_TIMEOUT = _BLOCK / 1000 + 3.0
"""Seconds after which a reading connection without a reply counts as broken."""

# While anything is pending, a group is swept once in this many ms, whichever of its consumers comes first.
_SWEEP_INTERVAL = 2_000
# Seconds at most by which consumers spread what would otherwise happen at the same time.
_SPREAD = 0.5
_SPREAD_OF_NUDGES = 0.005
_PAGE_OF_STRAYS = 500
_BEATS_PER_LEASE = 4

# While so many entries of a process wait for what comes before them with the same ordering key, it reads
# retries only, and looks again after so many ms. What they wait for may be a retry, but is nothing new.
_AHEAD, _AHEAD_PER_SLOT = 256, 4
_BLOCK_CROWDED = 100


class Capacity:
    """How many more entries this process may hold.

    Args:
        total: the limit.
        held: how many it holds, but for those that wait for their turn: what these wait for must find room.
        waiting: how many of these wait for a handler and would have one if there were one.
        blocked: how many wait for their turn.
        closed: whether what came now would wait behind one that runs alone, so that none but what this
            process owns already is to come.
    """

    def __init__(
        self,
        total: int,
        held: Callable[[], int],
        waiting: Callable[[], int],
        blocked: Callable[[], int],
        closed: Callable[[], bool],
    ) -> None:
        self._total = total
        self._held = held
        self._waiting = waiting
        self._blocked = blocked
        self._closed = closed
        self._changed = asyncio.Event()

    def changed(self) -> None:
        """Something was settled or handed out."""
        self._changed.set()

    @property
    def free(self) -> int:
        """How many are free for what others could have, too."""
        return 0 if self._closed() else self._unheld

    @property
    def _unheld(self) -> int:
        return max(self._total - self._held(), 0)

    @property
    def crowded(self) -> bool:
        """Whether so many wait for their turn that reading further ahead is of no use."""
        return self._blocked() >= max(_AHEAD, _AHEAD_PER_SLOT * self._total)

    async def any(self) -> int:
        """Waits until one is free for what this process owns. Returns how many are."""
        while not self._unheld:
            self._changed.clear()
            await self._changed.wait()
        return self._unheld

    async def room(self) -> int:
        """Waits until fetching is worthwhile: half is free, or nothing waits. Returns how many are free."""
        while not (self.free and (2 * self.free >= self._total or not self._waiting())):
            self._changed.clear()
            await self._changed.wait()
        return self.free


class Fetcher:
    """Fetches entries of one group.

    Args:
        reading: the connection for blocking reads; nobody else uses it.
        control: the connection for everything else.
        calls: the commands of this consumer.
        leases: what is held.
        capacity: how much more may be.
        accept: takes entries that came.
        refresh: called before every sweep, and before what is owned is taken up: the policy may have changed.
        pod_prefix: what the names of consumers of this process's pod start with.
    """

    def __init__(
        self,
        *,
        reading: Client,
        control: Client,
        calls: GroupCalls,
        leases: Leases,
        capacity: Capacity,
        accept: Callable[[Iterable[Hold]], None],
        refresh: Callable[[], Awaitable[None]],
        pod_prefix: str,
    ) -> None:
        self._reading = reading
        self._control = control
        self._calls = calls
        self._leases = leases
        self._capacity = capacity
        self._accept = accept
        self._refresh = refresh
        self._prefix = pod_prefix
        self._in_doubt = True
        # whether it ended before a claim was answered, so that what it owns may have been begun by others
        self._claimed_unseen = False
        self._look = asyncio.Event()
        self._look.set()
        # what became due or stalled while no consumer was there
        self._sweep_at_once = True
        self._abreast = asyncio.Event()
        self._claim_guard = ClaimGuard(time.monotonic())
        self._losses = control.losses + reading.losses
        self._loop_lag = LoopLag(leases.lease / _BEATS_PER_LEASE)
        self._read_failures = FailureLog(f"read {calls.main.key}")
        self._sweep_failures = FailureLog(f"sweep {calls.main.key}")

    def doubt(self) -> None:
        """The server may think that this consumer owns entries that it does not know of."""
        self._in_doubt = True

    def look_again(self) -> None:
        """The policy has changed, or a retry is due."""
        self._look.set()

    def look_after(self, seconds: float) -> None:
        """A retry is due then: moves it without waiting for the next turn."""
        # the server's clock counts whole milliseconds
        asyncio.get_running_loop().call_later(seconds + 0.002, self.look_again)

    def sweep_now(self) -> None:
        """There are entries that anybody may claim.

        All consumers are told so: some ms apart, each gets a share.
        """
        self._sweep_at_once = True
        asyncio.get_running_loop().call_later(_SPREAD_OF_NUDGES * unit(), self.look_again)

    async def run(self) -> None:
        """Fetches until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._loop_lag.beat())
            tasks.create_task(self._read())
            tasks.create_task(self._sweep())

    async def release_strays(self, release: Callable[..., Awaitable[None]]) -> int:
        """Hands back what the server delivered to this consumer while the reading connection was closed.

        No attempt is counted for what nobody else has begun. Returns how many entries.
        """
        count, is_certain = 0, not (self._in_doubt or self._claimed_unseen)
        with contextlib.suppress(AgentStreamError):
            # answered in a later round of the server's event loop than the one in which it saw the connection
            # end
            await self._control.call("PING")
            for source in self._calls.sources:
                start = "-"
                while start:
                    command = self._calls.take(source, "", start, _PAGE_OF_STRAYS)
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
                if self._in_doubt:
                    await self._recover_own()
                elif not self._abreast.is_set():
                    # what is stalled is older than what is new
                    await self._abreast.wait()
                else:
                    await self._read_new()
            except AgentStreamError as error:
                self._in_doubt = True
                self._read_failures.failed(error)
                if group_is_gone(error):
                    # what is held of the other stream is held none the less
                    for source in self._calls.sources:
                        if f"'{source.key}'" in str(error):
                            self._leases.expire_all(source)
                await asyncio.sleep(backoff.next())
            else:
                backoff.reset()
                self._read_failures.recovered()

    async def _read_new(self) -> None:
        free = await self._capacity.room()
        if self._in_doubt or not self._abreast.is_set():
            return
        crowded = self._capacity.crowded
        sources = self._calls.sources[1:] if crowded else self._calls.sources
        block = _BLOCK_CROWDED if crowded else _BLOCK
        self._loop_lag.start()
        try:
            # the count holds for each of the two streams
            reply = await self._reading.call(*self._calls.read(sources, max(free // 2, 1), block))
        except ConnectionLost:
            # a server that does not know of it yet may still give entries to the lost read, while it blocks
            asyncio.get_running_loop().call_later(_BLOCK / 1000, self.doubt)
            raise
        # while the process was paused, or its event loop blocked, others may have claimed what came
        until = self._loop_lag.since() + self._leases.lease
        self._accept(delivered_holds(reply, self._calls.sources, until))

    async def _recover_own(self) -> None:
        """Takes up what this consumer owns; at the start also what earlier processes of its pod left."""
        await self._refresh()
        self._in_doubt = False
        for source in self._calls.sources:
            start = "-"
            while start:
                # among what it owns is what it holds
                count = await self._capacity.any() + len(self._leases)
                asked = time.monotonic()
                following, reply = await self._claim(self._calls.take(source, self._prefix, start, count))
                self._accept(claimed_holds(reply, source, asked + self._leases.lease))
                start = following.decode()
        # from here on, those are not left-overs but live: of another process that goes by the same pod
        self._prefix = ""

    async def _sweep(self) -> None:
        while True:
            try:
                wait = await self._sweep_once()
            except AgentStreamError as error:
                wait = _SWEEP_INTERVAL / 1000
                self._sweep_at_once = True
                if isinstance(error, ConnectionLost):
                    self._in_doubt = True
                self._sweep_failures.failed(error)
            else:
                self._sweep_failures.recovered()
            (self._abreast.set if wait else self._abreast.clear)()
            patience = wait or _SWEEP_INTERVAL / 1000
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience + min(patience, _SPREAD) * unit()):
                    await (self._look.wait() if wait else self._capacity.room())

    async def _sweep_once(self) -> float:
        """Moves what is due and claims what is stalled. Returns seconds to wait; 0: there is more."""
        self._look.clear()
        await self._refresh()
        lease, free, at_once = self._leases.lease, self._capacity.free, self._sweep_at_once
        self._sweep_at_once = at_once and not free
        losses = self._control.losses + self._reading.losses
        if self._losses != losses:
            self._losses = losses
            self._claim_guard.interrupted()
        asked = time.monotonic()
        limit = self._claim_guard.limit(asked, lease)
        command = self._calls.sweep(round(lease * 1000), _SWEEP_INTERVAL, free, limit, now=at_once)
        # an older library says nothing of its clock
        _, stalled, stalled_retries, wait, *clock = await self._claim(command)
        now = time.monotonic()
        if clock and self._claim_guard.heard(limit, clock[0], asked=asked, now=now, lease=lease):
            _log.info("%s: leaves other consumers time to renew their leases", self._calls.main.key)
            asyncio.get_running_loop().call_later(PERIOD * lease, self.sweep_now)
        until = asked + self._leases.lease
        self._accept(claimed_holds(stalled, self._calls.main, until))
        self._accept(claimed_holds(stalled_retries, self._calls.retries, until))
        # the server's clock counts whole milliseconds
        return wait / 1000 + 0.002 if wait else 0.0

    async def _claim(self, command: Command) -> Any:
        try:
            return await self._control.call(*command)
        except asyncio.CancelledError:
            self._claimed_unseen = True
            raise
