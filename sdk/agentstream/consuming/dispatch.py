"""From entries that came in to deliveries in handlers' hands: triage, start and end of each attempt."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from agentstream.consuming.deadline import Deadlines
from agentstream.consuming.delivery import Delivery
from agentstream.consuming.fetch import Capacity
from agentstream.consuming.hold import DELIVERED, Hold
from agentstream.consuming.isolation import PoisonIsolation, PrefetchQueue
from agentstream.consuming.leases import Leases, Renews, batches
from agentstream.consuming.ordering import KeyOrder, OrderPoller
from agentstream.consuming.settling import Settler
from agentstream.consuming.triage import Defer, Deliver, GiveUp, Skip, is_expired, triage
from agentstream.errors import AgentStreamError
from agentstream.identity.keyring import Keyring, Verifier
from agentstream.protocol.commands import DONE, GroupCalls
from agentstream.protocol.envelope import Message
from agentstream.protocol.reasons import FLAWS, Reason
from agentstream.protocol.routes import OFF, Consumes
from agentstream.sending.replies import Replies
from agentstream.telemetry.counters import (
    LEASES_LOST,
    RECEIVED,
    UNVERIFIED,
    VERIFIED,
    GroupCounters,
    is_worth_saying,
)
from agentstream.transport.retry import FailureLog

_PAUSE_AFTER_FAILED_START = 0.5
_log = logging.getLogger("agentstream")


class Dispatcher:
    """What this process holds of one group, on its way through.

    Args:
        agent: name of the agent.
        policy: of the group.
        consumer: name of this consumer.
        concurrency: how many entries this process holds at most.
        settle_call: sends a command over the connection for writing.
        control_call: sends a command over the connection for control.
        read: reads the payload of a message as its handler wants it, or raises InvalidMessage.
        on_doubt: called when an entry may be owned that is not known here.
        on_delayed: called with the delay, in seconds, of an entry that was put off.
        keyring: the keys of signed streams.
        counters: where it is counted what happens to messages.
        replies: answers requests.
        renewal: renews what is held.
        nudge: tells the group's consumers that there is something to claim.
    """

    def __init__(
        self,
        *,
        agent: str,
        policy: Consumes,
        consumer: str,
        concurrency: int,
        settle_call: Callable[..., Awaitable[Any]],
        control_call: Callable[..., Awaitable[Any]],
        read: Callable[[Message], Any],
        on_doubt: Callable[[], None],
        on_delayed: Callable[[float], None],
        keyring: Keyring,
        counters: GroupCounters,
        replies: Replies,
        renewal: Renews,
        nudge: Callable[[], Awaitable[None]],
    ) -> None:
        self._agent = agent
        self._policy = policy
        self._call = control_call
        self._read = read
        self._on_doubt = on_doubt
        self._verifier = Verifier(keyring, policy.stream, policy.key)
        self._counters = counters
        self.calls: GroupCalls = GroupCalls(policy, consumer)
        self.leases: Leases = Leases(self.calls, policy.lease / 1000, renewal, self._lost)
        self.settler: Settler = Settler(
            settle_call, self.calls, self.leases, self._ended, on_delayed, counters=counters, replies=replies
        )
        self._prefetched = PrefetchQueue(self.leases.lease)
        self._key_order = KeyOrder()
        self.order_poller: OrderPoller = OrderPoller(control_call, self.calls, self._key_order, self._go_on)
        self.capacity: Capacity = Capacity(
            concurrency,
            held=lambda: len(self.leases) - len(self._key_order),
            waiting=lambda: len(self._prefetched),
            blocked=lambda: len(self._key_order),
            closed=lambda: self._prefetched.is_blocked,
        )
        # begun, but not handed out
        self._ready: deque[Hold] = deque()
        # None for those that are about to be begun, or were and are not handed out
        self._running: dict[Hold, Delivery[Any] | None] = {}
        self._deadlines = Deadlines(lambda: filter(None, self._running.values()))
        self._time = asyncio.get_running_loop().time
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._to_start: list[Hold] = []
        self._starting = 0
        self._starts: set[asyncio.Task[None]] = set()
        self._isolation = PoisonIsolation(self._prefetched, self.settler.release, nudge, self._look_again)
        self._closed = False
        self._idle = asyncio.Event()
        self._failures = FailureLog(f"start deliveries of {policy.key}")

    @property
    def policy(self) -> Consumes:
        """The group's policy."""
        return self._policy

    @property
    def holding(self) -> tuple[int, int]:
        """How many messages handlers have, and how many others are held. Any thread may ask."""
        running = len(self._running)
        return running, max(len(self.leases) - running, 0)

    def follow(self, policy: Consumes) -> None:
        """Takes up a changed policy of the same group."""
        self._policy = policy
        self.leases.lease = self._prefetched.patience = policy.lease / 1000

    def accept(self, entries: Iterable[Hold]) -> None:
        """Takes entries that came in: holds them, and decides what becomes of them."""
        received = 0
        for entry in entries:
            if self.leases.acquire(entry):
                received += 1
                if entry.after is None or self._key_order.put(entry):
                    self._admit(entry)
        if received:
            self._counters.add(RECEIVED, count=received)
        if self._key_order:
            self.order_poller.look()
        self._look_again()

    def take(self) -> Delivery[Any] | None:
        """The next delivery, if one can be handed out just now."""
        if self._closed:
            return None
        while self._ready:
            begun = self._ready.popleft()
            if begun.is_overdue:
                # its attempt is taken back, if nobody else has it
                self.settler.release(begun)
            else:
                return self._hand_out(begun)
        # as many starts are under way as there are others who wait: what starts now would be for nobody
        while self._starting <= len(self._waiters):
            now = time.monotonic()
            entry = self._prefetched.take(len(self._running), now)
            if entry is None:
                self._isolation.watch()
                return None
            if entry.lease_until < now:
                self._forget(entry)
            elif entry.message.expires_at is not None and is_expired(entry.message, time.time()):
                self._give_up(entry, GiveUp(Reason.EXPIRED, "expires_at was over before a handler was free"))
            elif entry.state is DELIVERED:
                return self._hand_out(entry)
            else:
                self._start_soon(entry)
        return None

    async def next(self) -> Delivery[Any] | None:
        """The next delivery; None when there will be no more. A cancelled caller loses nothing."""
        while (delivery := self.take()) is None and not self._closed:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                if not waiter.cancelled():
                    # it was woken up: what for is another's
                    self._wake(1)
                elif waiter in self._waiters:
                    self._waiters.remove(waiter)
                raise
        return delivery

    def close(self) -> None:
        """No delivery starts from here on."""
        self._closed = True
        self._isolation.stop()
        self.settler.hurry()
        self._wake(len(self._waiters))

    async def hand_back(self) -> None:
        """Releases everything that no handler has."""
        while self._to_start or self._starts:
            await asyncio.gather(*self._starts)
            await asyncio.sleep(0)
        await self.settler.release(*self._prefetched.clear(), *self._ready, *self._key_order.clear())
        self._ready.clear()

    async def abandon(self) -> None:
        """Releases what handlers still have."""
        await asyncio.gather(
            *(delivery.release() for delivery in self._running.values() if delivery is not None)
        )

    async def ended(self) -> None:
        """Waits until no handler has anything, and everything is settled."""
        while self._running:
            self._idle.clear()
            await self._idle.wait()
        await self.settler.drain()
        await self._isolation.ended()
        self._deadlines.cancel()

    def _go_on(self, entries: Sequence[Hold]) -> None:
        """Takes entries with ordering keys whose turn has come."""
        for entry in entries:
            self._admit(entry)
        self._look_again()

    def _leave(self, entry: Hold) -> None:
        """Lets go on what comes after an entry with the same ordering key."""
        if entry.after is not None:
            following = self._key_order.leave(entry)
            if following is not None:
                self._admit(following)
            self.order_poller.look()

    def _admit(self, entry: Hold) -> None:
        """Decides what becomes of an entry; where it has an ordering key, in its turn, even if unseen."""
        verdict = triage(
            entry, self._policy, self._agent, time.time(), flaw_of=self._verifier.flaw, read=self._read
        )
        if isinstance(verdict, Deliver):
            if verdict.flaw is not None:
                self._warn(entry, verdict.flaw)
            elif self._policy.signatures != OFF:
                self._counters.add(VERIFIED)
            entry.read(verdict.message, verdict.payload)
            self._prefetched.put(entry)
        elif isinstance(verdict, Skip):
            self.settler.skip(entry)
        elif isinstance(verdict, Defer):
            self.settler.defer(entry, int(verdict.delay * 1000), verdict.reason, verdict.error)
        else:
            self._give_up(entry, verdict)

    def _forget(self, entry: Hold) -> None:
        """Another consumer may have the entry by now; if none has, it is found again."""
        entry.lose()
        self.leases.drop(entry)
        self._ended((entry,))
        self._on_doubt()

    def _warn(self, entry: Hold, flaw: Reason) -> None:
        count = self._counters.add(UNVERIFIED, flaw)
        if is_worth_saying(count):
            _log.warning(
                "%s: entry %s is delivered without a valid signature (%s, %d so far)",
                self._policy.stream,
                entry.entry.origin,
                flaw,
                count,
            )

    def _give_up(self, entry: Hold, verdict: GiveUp) -> None:
        if verdict.reason in FLAWS:
            self._counters.add(UNVERIFIED, verdict.reason)
        _log.warning(
            "%s: gives up entry %s: %s: %s",
            self._policy.stream,
            entry.entry.origin,
            verdict.reason,
            verdict.error,
        )
        self.settler.dead_letter(entry, self._policy, verdict.reason, verdict.error)

    def _hand_out(self, entry: Hold) -> Delivery[Any]:
        """A handler gets the entry now."""
        entry.begin()
        deadline = None
        if self._policy.deadline:
            deadline = self._time() + self._policy.deadline / 1000
            self._watch(entry, deadline)
        delivery: Delivery[Any] = Delivery(entry, self._policy, self.settler, self._extend, deadline)
        self._running[entry] = delivery
        if not self._prefetched:
            self.capacity.changed()
        return delivery

    def _watch(self, entry: Hold, deadline: float) -> None:
        # a handler that cannot be cancelled keeps its message from others for no longer than this
        entry.stop_renewal(at=deadline + self.leases.lease)
        self._deadlines.watch(deadline)

    async def _extend(self, delivery: Delivery[Any], entry: Hold, seconds: float) -> bool:
        if delivery.deadline is not None:
            delivery.deadline = self._time() + seconds
            self._watch(entry, delivery.deadline)
        counter = entry.counter
        try:
            (code,) = await self._call(*self.calls.renew(entry.source, (entry,)))
        except AgentStreamError as error:
            _log.debug("cannot ask whether an entry is held: %s", error)
        else:
            if code != DONE:
                self.leases.expire([(entry, counter)])
        return not (entry.is_lost or delivery.settled)

    def _look_again(self) -> None:
        """What may have been in the way is not any more."""
        self.capacity.changed()
        self._isolation.watch()
        if self._waiters:
            self._wake(len(self._prefetched) + len(self._ready))

    def _wake(self, count: int) -> None:
        """Has up to so many of those who wait look again."""
        while count and self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                count -= 1

    def _start_soon(self, entry: Hold) -> None:
        """Its attempt is counted together with those of others that start in this tick."""
        self._running[entry] = None
        self._starting += 1
        entry.count()
        if not self._to_start:
            asyncio.get_running_loop().call_soon(self._start)
        self._to_start.append(entry)

    def _start(self) -> None:
        entries, self._to_start = self._to_start, []
        task = asyncio.create_task(self._begin(entries))
        self._starts.add(task)
        task.add_done_callback(self._starts.discard)

    async def _begin(self, again: list[Hold]) -> None:
        """Counts the attempts of entries that were delivered before, and starts those that are still held."""
        for source, entries in batches(again):
            asked = time.monotonic()
            try:
                counters = await self._call(*self.calls.begin(source, entries))
            except AgentStreamError as error:
                self._failures.failed(error)
                counters = [0] * len(entries)
                # whether the attempts were counted is not known: they are read anew
                await asyncio.sleep(_PAUSE_AFTER_FAILED_START)
                self._on_doubt()
            else:
                self._failures.recovered()
            for entry, counter in zip(entries, counters, strict=True):
                self._starting -= 1
                if counter:
                    entry.counted(counter, asked + self.leases.lease)
                    self._ready.append(entry)
                else:
                    entry.lose()
                    self.leases.drop(entry)
                    self._ended((entry,))
            self._look_again()

    def _lost(self, entries: list[Hold]) -> None:
        self._counters.add(LEASES_LOST, count=len(entries))
        for entry in entries:
            delivery = self._running.get(entry)
            if delivery is not None:
                _log.warning(
                    "%s: the lease of entry %s was lost while it is handled; another may handle it, too",
                    self._policy.stream,
                    entry.entry.origin,
                )
                delivery._lose()  # noqa: SLF001 - no business of its handler
            elif entry in self._running:
                self._ready.remove(entry)
                self._ended((entry,))
                continue
            else:
                self._prefetched.discard(entry)
            self._leave(entry)
        self._look_again()

    def _ended(self, entries: Sequence[Hold]) -> None:
        for entry in entries:
            self._running.pop(entry, None)
            self._leave(entry)
        self._prefetched.ended(entries)
        if not self._running:
            self._idle.set()
        self._look_again()
