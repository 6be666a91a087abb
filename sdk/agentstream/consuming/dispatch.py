"""Dispatching: from fetched entries to attempts in handlers' hands, and to the end of each attempt."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from agentstream.consuming.attempt import Attempt, Deadlines
from agentstream.consuming.fetch import Capacity
from agentstream.consuming.hold import CLAIMED, LOST, Hold
from agentstream.consuming.isolation import PoisonIsolation, PrefetchQueue
from agentstream.consuming.leases import Leases, batches
from agentstream.consuming.ordering import KeyOrder, OrderPoller
from agentstream.consuming.originals import Originals
from agentstream.consuming.settling import Settler
from agentstream.consuming.triage import (
    EXPIRED,
    Count,
    Defer,
    Deliver,
    Skip,
    Undeliverable,
    Verdict,
    is_over,
)
from agentstream.errors import AgentStreamError, error_text
from agentstream.identity.keyring import Verifier
from agentstream.protocol.commands import DONE
from agentstream.protocol.reasons import FLAWS, Reason
from agentstream.protocol.routes import OFF, Consumes
from agentstream.telemetry.counters import LEASES_LOST, RECEIVED, UNVERIFIED, VERIFIED, is_worth_saying
from agentstream.transport.retry import FailureLog

_PAUSE_AFTER_FAILED_START = 0.5
_log = logging.getLogger("agentstream")


class Dispatcher:
    """The entries of one group on their way through this process, at most `concurrency` at a time.

    `triage` decides what becomes of a hold by a policy, at a time in seconds since 1970. `call` sends a
    command over the connection for control.
    """

    def __init__(
        self,
        policy: Consumes,
        triage: Callable[[Hold, Consumes, float], Verdict],
        verifier: Verifier,
        call: Callable[..., Awaitable[Any]],
        settler: Settler,
        *,
        concurrency: int,
    ) -> None:
        self.policy: Consumes = policy
        self.leases: Leases = settler.leases
        self.leases.listen(self)
        self._triage = triage
        self._originals = Originals(verifier, call, settler, self._verified)
        self._call = call
        self._commands = settler.leases.calls
        self._settler = settler
        self._counters = settler.counters
        self._signals = settler.signals
        self._prefetched = PrefetchQueue(self.leases.lease, policy.max_deliveries)
        self._isolation = PoisonIsolation(self._prefetched, settler, settler.signals.nudge, self._look_again)
        self._key_order = KeyOrder()
        self.order_poller: OrderPoller = OrderPoller(call, self._commands, self._key_order, self._turn_came)
        self.capacity: Capacity = Capacity(concurrency, self.leases, self._prefetched, self._key_order)
        self.capacity.resize(policy.max_message_bytes)
        # attempts are counted, but no handler has them yet
        self._ready: deque[Hold] = deque()
        # None for holds whose attempts are being counted, or are ready
        self._running: dict[Hold, Attempt | None] = {}
        self._deadlines = Deadlines(lambda: filter(None, self._running.values()))
        self._time = asyncio.get_running_loop().time
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._to_start: list[Hold] = []
        self._starting = 0
        self._starts: set[asyncio.Task[None]] = set()
        self.is_closed: bool = False
        self._idle = asyncio.Event()
        self._failures = FailureLog(f"start deliveries of {policy.key}")

    @property
    def holding(self) -> tuple[int, int]:
        """How many messages handlers have, and how many others are held. Any thread may ask."""
        running = len(self._running)
        return running, max(len(self.leases) - running, 0)

    def runs(self, attempt: Attempt) -> bool:
        """Whether a handler of this group has the message."""
        return self._running.get(attempt.hold) is attempt

    def follow(self, policy: Consumes) -> None:
        """Takes up a changed policy of the same group."""
        self.policy = policy
        self._prefetched.patience = policy.lease / 1000
        self._prefetched.max_deliveries = policy.max_deliveries
        self.leases.change(self._prefetched.patience)
        self.capacity.resize(policy.max_message_bytes)

    def accept(self, holds: Iterable[Hold]) -> None:
        """Acquires fetched entries, and decides what becomes of each."""
        received = 0
        for hold in holds:
            if self.leases.acquire(hold):
                received += 1
                if hold.after is None or self._key_order.put(hold):
                    self._admit(hold)
        if received:
            self._counters.add(RECEIVED, count=received)
        if self._key_order:
            self.order_poller.look()
        self._look_again()

    async def give_back(self, holds: Iterable[Hold]) -> None:
        """Hands back fetched entries for which there is no room, and tells the other consumers."""
        await self._settler.release(*filter(self.leases.acquire, holds))
        await self._signals.nudge()

    def take(self) -> Attempt | None:
        """Begins and returns the next attempt, if one can begin just now."""
        if self.is_closed:
            return None
        while self._ready:
            ready = self._ready.popleft()
            if ready.is_overdue:
                # its attempt is taken back, if no other consumer has claimed it
                self._settler.release(ready)
            elif self._decide(ready):
                return self._begin(ready)
        # each start that is under way is for one of those that wait: one more would be for none of them
        while self._starting <= len(self._waiters):
            now = time.monotonic()
            hold = self._prefetched.take(len(self._running), now)
            if hold is None:
                self._isolation.watch()
                return None
            if hold.lease_until < now:
                # another consumer may have it by now; if none has, it is recovered
                hold.lose()
                self.leases.end((hold,))
                self._signals.doubt()
            elif hold.state is CLAIMED:
                self._start_soon(hold)
            elif hold.message.expires_at is not None and is_over(hold, hold.message, time.time()):
                self._dead_letter(hold, EXPIRED)
            else:
                return self._begin(hold)
        return None

    async def next(self) -> Attempt | None:
        """Waits for the next attempt; None when there will be no more. A cancelled caller loses nothing."""
        while (attempt := self.take()) is None and not self.is_closed:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                if not waiter.cancelled():
                    # it was woken up for an attempt, which another waiter gets
                    self._wake(1)
                elif waiter in self._waiters:
                    self._waiters.remove(waiter)
                raise
        return attempt

    def close(self) -> None:
        """Begins no more attempts."""
        self.is_closed = True
        self._isolation.stop()
        self._settler.hurry()
        self._wake(len(self._waiters))

    async def hand_back(self) -> None:
        """Releases all entries that no handler has."""
        await self._originals.answered()
        while self._to_start or self._starts:
            await asyncio.gather(*self._starts)
            await asyncio.sleep(0)
        await self._settler.release(*self._prefetched.clear(), *self._ready, *self._key_order.clear())
        self._ready.clear()

    async def abandon(self) -> None:
        """Releases the messages that handlers still have."""
        await asyncio.gather(
            *(attempt.release() for attempt in self._running.values() if attempt is not None)
        )

    async def ended(self) -> None:
        """Waits until no attempt runs and all entries are settled."""
        while self._running:
            self._idle.clear()
            await self._idle.wait()
        await self._settler.drain()
        await self._isolation.ended()
        self._deadlines.cancel()
        if count := self._settler.handed_back:
            what = "1 message" if count == 1 else f"{count} messages"
            _log.warning("%s: handed back %s that handlers had not finished", self.policy.stream, what)

    def holds_lost(self, holds: Sequence[Hold]) -> None:
        """Interrupts the handlers of lost entries."""
        self._counters.add(LEASES_LOST, count=len(holds))
        for hold in holds:
            attempt = self._running.get(hold)
            if attempt is not None:
                _log.warning(
                    "%s: lost the lease of entry %s during its handler; another consumer may handle it too",
                    self.policy.stream,
                    hold.entry.origin,
                )
                attempt.lose()
            elif hold in self._running:
                self._ready.remove(hold)
                self.holds_ended((hold,))
                continue
            else:
                self._prefetched.discard(hold)
            if hold.after is not None:
                self._leave_key(hold)
        self._look_again()

    def holds_ended(self, holds: Sequence[Hold]) -> None:
        """Makes room for others, as these entries are settled, handed back or lost."""
        for hold in holds:
            self._running.pop(hold, None)
            if hold.after is not None:
                self._leave_key(hold)
        self._prefetched.ended(holds)
        if not self._running:
            self._idle.set()
        self._look_again()

    def _turn_came(self, holds: Sequence[Hold]) -> None:
        for hold in holds:
            self._admit(hold)
        self._look_again()

    def _leave_key(self, hold: Hold) -> None:
        """Lets the next entry with the same ordering key have its turn."""
        following = self._key_order.leave(hold)
        if following is not None:
            self._admit(following)
        self.order_poller.look()

    def _admit(self, hold: Hold) -> None:
        """Decides what becomes of an entry; with an ordering key, when its turn has come."""
        if self.policy.signatures != OFF:
            self._originals.ask(hold)
        elif self._decide(hold):
            self._prefetched.put(hold)

    def _verified(self, holds: Sequence[Hold]) -> None:
        for hold in holds:
            if self._decide(hold):
                self._prefetched.put(hold)
        self._look_again()

    def _decide(self, hold: Hold) -> bool:
        """Decides what becomes of an entry. Returns whether a handler is to have it."""
        try:
            verdict = self._triage(hold, self.policy, time.time())
        except Exception as error:  # noqa: BLE001 - whatever it is, it concerns this entry alone
            verdict = Undeliverable(Reason.MALFORMED, f"the message cannot be read: {error_text(error)}")
        if isinstance(verdict, Deliver):
            if verdict.flaw is not None:
                self._warn(hold, verdict.flaw)
            elif self.policy.signatures != OFF:
                self._counters.add(VERIFIED)
            hold.read(verdict.message, verdict.payload)
            return True
        if isinstance(verdict, Count):
            return True
        if isinstance(verdict, Skip):
            self._settler.skip(hold)
        elif isinstance(verdict, Defer):
            self._settler.defer(hold, int(verdict.delay * 1000), verdict.reason, verdict.error)
        else:
            self._dead_letter(hold, verdict)
        return False

    def _warn(self, hold: Hold, flaw: Reason) -> None:
        count = self._counters.add(UNVERIFIED, flaw)
        if is_worth_saying(count):
            _log.warning(
                "%s: entry %s is delivered without a valid signature (%s, %d so far)",
                self.policy.stream,
                hold.entry.origin,
                flaw,
                count,
            )

    def _dead_letter(self, hold: Hold, verdict: Undeliverable) -> None:
        if verdict.reason in FLAWS:
            self._counters.add(UNVERIFIED, verdict.reason)
        _log.warning(
            "%s: entry %s cannot be delivered: %s: %s",
            self.policy.stream,
            hold.entry.origin,
            verdict.reason,
            verdict.error,
        )
        self._settler.dead_letter(hold, self.policy, verdict.reason, verdict.error)

    def _begin(self, hold: Hold) -> Attempt:
        hold.begin()
        deadline = None
        if self.policy.deadline:
            deadline = self._time() + self.policy.deadline / 1000
            self._watch(hold, deadline)
        attempt = Attempt(hold, self.policy, self._settler, self._extend, deadline)
        self._running[hold] = attempt
        if not self._prefetched:
            self.capacity.changed()
        return attempt

    def _watch(self, hold: Hold, deadline: float) -> None:
        # a handler that cannot be cancelled keeps its message from others for no longer than this
        hold.stop_renewal(at=deadline + self.leases.lease)
        self._deadlines.watch(deadline)

    async def _extend(self, attempt: Attempt, seconds: float) -> bool:
        hold = attempt.hold
        if attempt.deadline is not None:
            attempt.deadline = self._time() + seconds
            self._watch(hold, attempt.deadline)
        counter = hold.counter
        try:
            (code,) = await self._call(*self.leases.renewal_of(hold.source, (hold,)))
        except AgentStreamError as error:
            _log.debug("cannot ask whether entry %s is still held: %s", hold.entry.origin, error)
        else:
            if code != DONE:
                self.leases.expire([(hold, counter)])
        return hold.state is not LOST and not attempt.verb

    def _look_again(self) -> None:
        """Has fetcher, isolation and waiters look again, as one of them may go on now."""
        self.capacity.changed()
        self._isolation.watch()
        if self._waiters:
            self._wake(len(self._prefetched) + len(self._ready))

    def _wake(self, count: int) -> None:
        """Has up to so many waiters look again."""
        while count and self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                count -= 1

    def _start_soon(self, hold: Hold) -> None:
        """Has its attempt counted together with those of others in this iteration of the event loop."""
        self._running[hold] = None
        self._starting += 1
        hold.count()
        if not self._to_start:
            asyncio.get_running_loop().call_soon(self._start)
        self._to_start.append(hold)

    def _start(self) -> None:
        holds, self._to_start = self._to_start, []
        task = asyncio.create_task(self._count_attempts(holds))
        self._starts.add(task)
        task.add_done_callback(self._starts.discard)

    async def _count_attempts(self, claimed: list[Hold]) -> None:
        """Counts the attempts of entries that were delivered before; those still held are ready then."""
        for source, holds in batches(claimed):
            asked = time.monotonic()
            try:
                counters = await self._call(*self._commands.begin(source, holds))
            except AgentStreamError as error:
                self._failures.failed(error)
                counters = [0] * len(holds)
                # whether the attempts were counted is unknown: the entries are recovered
                await asyncio.sleep(_PAUSE_AFTER_FAILED_START)
                self._signals.doubt()
            else:
                self._failures.recovered()
            for hold, counter in zip(holds, counters, strict=True):
                self._starting -= 1
                if counter:
                    hold.counted(counter, asked + self.leases.lease)
                    self._ready.append(hold)
                else:
                    hold.lose()
                    self.leases.end((hold,))
            self._look_again()
