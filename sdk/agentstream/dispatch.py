"""From entries that came in to deliveries in handlers' hands: triage, start and end of each attempt."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from agentstream.buffer import Buffer, Waiting
from agentstream.calls import GroupCalls
from agentstream.counters import UNVERIFIED, Counters
from agentstream.delivery import Delivery
from agentstream.entries import Entry
from agentstream.errors import AgentStreamError
from agentstream.intake import Slots
from agentstream.lease import Leases, batches
from agentstream.message import Message
from agentstream.replies import Replies
from agentstream.routes import Consumes
from agentstream.settle import Settler
from agentstream.signing import Keyring, Verifier
from agentstream.triage import FLAWS, Deliver, GiveUp, Later, Reason, Skip, is_expired, triage
from agentstream.trouble import Trouble

_PAUSE_AFTER_FAILED_START = 0.5
_log = logging.getLogger("agentstream")


class Dispatch:
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
        counters: where messages without a valid signature are counted.
        replies: answers requests.
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
        counters: Counters,
        replies: Replies,
    ) -> None:
        self._agent = agent
        self._policy = policy
        self._call = control_call
        self._read = read
        self._on_doubt = on_doubt
        self._verifier = Verifier(keyring, policy.stream, policy.key)
        self._counters = counters
        self.calls = GroupCalls(policy, consumer)
        self.leases = Leases(control_call, self.calls, policy.lease / 1000, self._lost)
        self.settler = Settler(settle_call, self.calls, self.leases, self._ended, on_delayed, replies=replies)
        self._buffer = Buffer(self.leases.lease)
        self.slots = Slots(concurrency, lambda: len(self.leases), lambda: len(self._buffer))
        self._ready: asyncio.Queue[Delivery[Any] | None] = asyncio.Queue()
        self._running: dict[Entry, Delivery[Any] | None] = {}
        self._wanted = 0
        self._starting = 0
        self._starts: set[asyncio.Task[None]] = set()
        self._suspect_timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._idle = asyncio.Event()
        self._trouble = Trouble(f"start deliveries of {policy.key}")

    @property
    def policy(self) -> Consumes:
        """The group's policy."""
        return self._policy

    def follow(self, policy: Consumes) -> None:
        """Takes up a changed policy of the same group."""
        self._policy = policy
        self.leases.lease = self._buffer.patience = policy.lease / 1000

    def accept(self, entries: Iterable[Entry]) -> None:
        """Takes entries that came in: holds them, and decides what becomes of them."""
        for entry in entries:
            if not self.leases.hold(entry):
                continue
            verdict = triage(
                entry, self._policy, self._agent, time.time(), flaw_of=self._verifier.flaw, read=self._read
            )
            if isinstance(verdict, Deliver):
                if verdict.flaw is not None:
                    self._warn(entry, verdict.flaw)
                self._buffer.put(Waiting(entry, verdict.message, verdict.payload))
            elif isinstance(verdict, Skip):
                self.settler.skip(entry)
            elif isinstance(verdict, Later):
                self.settler.put_off(entry, int(verdict.delay * 1000), verdict.reason, verdict.error)
            else:
                self._give_up(entry, verdict)
        self._pump()

    async def next(self) -> Delivery[Any] | None:
        """The next delivery; None when there will be no more. A cancelled caller loses nothing."""
        while True:
            self._wanted += 1
            try:
                self._pump()
                delivery = await self._ready.get()
            finally:
                self._wanted -= 1
            if delivery is None:
                # for the next one who waits
                self._ready.put_nowait(None)
                return None
            if delivery.held and not self._closed:
                delivery.begin()
                return delivery
            await delivery.release()

    def close(self) -> None:
        """No delivery starts from here on."""
        if not self._closed:
            self._closed = True
            self._ready.put_nowait(None)

    async def hand_back(self) -> None:
        """Releases everything that no handler has."""
        await asyncio.gather(*self._starts)
        await self.settler.release(*self._buffer.clear())
        while not self._ready.empty():
            delivery = self._ready.get_nowait()
            if delivery is not None:
                await delivery.release()
        self._ready.put_nowait(None)

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
        if self._suspect_timer is not None:
            self._suspect_timer.cancel()

    def _warn(self, entry: Entry, flaw: Reason) -> None:
        count = self._counters.add(UNVERIFIED, self._policy.stream, self._policy.group, flaw)
        if count == 10 ** (len(str(count)) - 1):
            # the first, the tenth, the hundredth: one sender can cause any number of them
            _log.warning(
                "%s: entry %s is delivered without a valid signature (%s, %d so far)",
                self._policy.stream,
                entry.origin,
                flaw,
                count,
            )

    def _give_up(self, entry: Entry, verdict: GiveUp) -> None:
        if verdict.reason in FLAWS:
            self._counters.add(UNVERIFIED, self._policy.stream, self._policy.group, verdict.reason)
        _log.warning(
            "%s: gives up entry %s: %s: %s", self._policy.stream, entry.origin, verdict.reason, verdict.error
        )
        self.settler.give_up(entry, self._policy, verdict.reason, verdict.error)

    def _pump(self) -> None:
        """Starts deliveries for those who wait for one."""
        now = asyncio.get_running_loop().time()
        again: list[Waiting] = []
        while not self._closed and self._wanted > self._ready.qsize() + self._starting:
            waiting = self._buffer.take(len(self._running), now)
            if waiting is None:
                break
            entry = waiting.entry
            if entry.lease_until < now:
                # renewing failed for so long that another consumer may have it; if not, it is found again
                self._buffer.ended(entry)
                self.leases.let_go(entry)
                self._on_doubt()
            elif is_expired(waiting.message, time.time()):
                self._give_up(entry, GiveUp(Reason.EXPIRED, "expires_at was over before a handler was free"))
            elif entry.started:
                self._start(waiting)
            else:
                self._running[entry] = None
                self._starting += 1
                entry.busy = True
                again.append(waiting)
        if again:
            task = asyncio.create_task(self._begin(again))
            self._starts.add(task)
            task.add_done_callback(self._starts.discard)
        self._watch_suspects()
        self.slots.changed()

    def _watch_suspects(self) -> None:
        """Looks again when a suspect has waited long enough for others to end."""
        if self._suspect_timer is not None:
            self._suspect_timer.cancel()
            self._suspect_timer = None
        if self._buffer.patience_ends is not None and not self._closed:
            loop = asyncio.get_running_loop()
            self._suspect_timer = loop.call_at(self._buffer.patience_ends, self._pump)

    def _start(self, waiting: Waiting) -> None:
        delivery = Delivery(waiting.entry, waiting.message, waiting.payload, self._policy, self.settler)
        self._running[waiting.entry] = delivery
        self._ready.put_nowait(delivery)

    async def _begin(self, again: list[Waiting]) -> None:
        """Counts the attempts of entries that were delivered before, and starts those that are still held."""
        of_entry = {waiting.entry: waiting for waiting in again}
        for source, entries in batches(list(of_entry)):
            asked = asyncio.get_running_loop().time()
            try:
                counters = await self._call(*self.calls.begin(source, entries))
            except AgentStreamError as error:
                self._trouble.met(error)
                counters = [0] * len(entries)
                # whether the attempts were counted is not known: they are read anew
                await asyncio.sleep(_PAUSE_AFTER_FAILED_START)
                self._on_doubt()
            else:
                self._trouble.over()
            for entry, counter in zip(entries, counters, strict=True):
                entry.busy = False
                self._starting -= 1
                if counter:
                    entry.counter, entry.started = counter, True
                    entry.lease_until = asked + self.leases.lease
                    self._start(of_entry[entry])
                else:
                    entry.lost = True
                    self.leases.let_go(entry)
                    self._ended(entry)
        self._pump()

    def _lost(self, entry: Entry) -> None:
        if entry in self._running:
            _log.warning(
                "%s: the lease of entry %s was lost while it is handled; another consumer may handle it, too",
                self._policy.stream,
                entry.origin,
            )
        else:
            self._buffer.discard(entry)
        self._pump()

    def _ended(self, entry: Entry) -> None:
        self._running.pop(entry, None)
        self._buffer.ended(entry)
        if not self._running:
            self._idle.set()
        self._pump()
