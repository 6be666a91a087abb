"""How entries come in: what this consumer owns already, then new ones, and now and then stalled ones.

A reply that was lost may have brought entries, which the server now counts as delivered to this consumer. So
after every lost reply, and at the start, what the server says is owned is taken up before anything new is
read.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable

from agentstream.backoff import Pause, unit
from agentstream.calls import GroupCalls
from agentstream.entries import Entry, claimed_entries, read_entries
from agentstream.errors import AgentStreamError, ConnectionLost
from agentstream.lease import Leases
from agentstream.refusal import group_is_gone
from agentstream.trouble import Trouble
from agentstream.wire import Wire

_BLOCK = 2_000
READ_TIMEOUT = _BLOCK / 1000 + 5.0
"""Seconds after which a reading connection without a reply counts as broken."""

_SWEEP_EVERY = 2.5
# A group is swept once in this many ms, whichever of its consumers comes first.
_SWEEP_INTERVAL = 2_000
_PAGE_OF_STRAYS = 500


class Slots:
    """How many more entries this process may hold.

    Args:
        total: the limit.
        held: how many it holds.
        waiting: how many of these wait for a handler.
    """

    def __init__(self, total: int, held: Callable[[], int], waiting: Callable[[], int]) -> None:
        self._total = total
        self._held = held
        self._waiting = waiting
        self._changed = asyncio.Event()

    def changed(self) -> None:
        """Something was settled or handed out."""
        self._changed.set()

    @property
    def free(self) -> int:
        """How many are free."""
        return max(self._total - self._held(), 0)

    async def room(self) -> int:
        """Waits until fetching is worthwhile: half is free, or nothing waits. Returns how many are free."""
        while not (self.free and (2 * self.free >= self._total or not self._waiting())):
            self._changed.clear()
            await self._changed.wait()
        return self.free


class Intake:
    """Fetches entries of one group.

    Args:
        reading: the connection for blocking reads; nobody else uses it.
        control: the connection for everything else.
        calls: the commands of this consumer.
        leases: what is held.
        slots: how much more may be.
        accept: takes entries that came.
        refresh: called before every sweep, and before what is owned is taken up: the policy may have changed.
        pod_prefix: what the names of consumers of this process's pod start with.
    """

    def __init__(
        self,
        *,
        reading: Wire,
        control: Wire,
        calls: GroupCalls,
        leases: Leases,
        slots: Slots,
        accept: Callable[[Iterable[Entry]], None],
        refresh: Callable[[], Awaitable[None]],
        pod_prefix: str,
    ) -> None:
        self._reading = reading
        self._control = control
        self._calls = calls
        self._leases = leases
        self._slots = slots
        self._accept = accept
        self._refresh = refresh
        self._prefix = pod_prefix
        self._in_doubt = True
        self._sweep_now = asyncio.Event()
        # what became due or stalled while no consumer was there
        self._sweep_now.set()
        self._read_trouble = Trouble(f"read {calls.main.key}")
        self._sweep_trouble = Trouble(f"sweep {calls.main.key}")

    def doubt(self) -> None:
        """The server may think that this consumer owns entries that it does not know of."""
        self._in_doubt = True

    def sweep_after(self, seconds: float) -> None:
        """A retry is due then: sweep without waiting for the next turn."""
        # the server's clock counts whole milliseconds
        asyncio.get_running_loop().call_later(seconds + 0.002, self._sweep_now.set)

    async def run(self) -> None:
        """Fetches until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._read())
            tasks.create_task(self._sweep())

    async def release_strays(self, release: Callable[..., Awaitable[bool]]) -> None:
        """Hands back what the server delivered to this consumer while the reading connection was closed."""
        with contextlib.suppress(AgentStreamError):
            # answered in a later round of the server's event loop than the one in which it saw the connection
            # end
            await self._control.call("PING")
            for source in self._calls.sources:
                start = "-"
                while start:
                    command = self._calls.take(source, "", start, _PAGE_OF_STRAYS)
                    following, reply = await self._control.call(*command)
                    strays = [entry for entry in claimed_entries(reply, source) if self._leases.hold(entry)]
                    await release(*strays)
                    start = following.decode()

    async def _read(self) -> None:
        pause = Pause(0.1, 2.0)
        while True:
            try:
                if self._in_doubt:
                    await self._take()
                else:
                    free = await self._slots.room()
                    # the count holds for each of the two streams
                    reply = await self._reading.call(*self._calls.read(max(free // 2, 1), _BLOCK))
                    self._accept(read_entries(reply, self._calls.sources))
            except AgentStreamError as error:
                self._in_doubt = True
                self._read_trouble.met(error)
                if group_is_gone(error):
                    self._leases.lose_all()
                await asyncio.sleep(pause.next())
            else:
                pause.reset()
                self._read_trouble.over()

    async def _take(self) -> None:
        """Takes up what this consumer owns; at the start also what earlier processes of its pod left."""
        await self._refresh()
        self._in_doubt = False
        for source in self._calls.sources:
            start = "-"
            while start:
                free = await self._slots.room()
                following, reply = await self._control.call(
                    *self._calls.take(source, self._prefix, start, free)
                )
                self._accept(claimed_entries(reply, source))
                start = following.decode()
        # from here on, those are not left-overs but live: of another process that goes by the same pod
        self._prefix = ""

    async def _sweep(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_SWEEP_EVERY * (0.8 + 0.4 * unit())):
                    await self._sweep_now.wait()
            self._sweep_now.clear()
            try:
                await self._refresh()
                lease = round(self._leases.lease * 1000)
                command = self._calls.sweep(lease, _SWEEP_INTERVAL, self._slots.free)
                _, stalled, stalled_retries = await self._control.call(*command)
            except AgentStreamError as error:
                if isinstance(error, ConnectionLost):
                    self._in_doubt = True
                self._sweep_trouble.met(error)
            else:
                self._sweep_trouble.over()
                self._accept(claimed_entries(stalled, self._calls.main))
                self._accept(claimed_entries(stalled_retries, self._calls.retries))
