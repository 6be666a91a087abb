"""A hold: one delivery of an entry to this consumer, and how far it has come."""

from __future__ import annotations

import asyncio
import math
import time
from enum import StrEnum
from typing import Any

from agentstream.protocol.entry import Entry, Source, claimed_entries, read_entries
from agentstream.protocol.envelope import Message
from agentstream.protocol.reasons import Reason


class HoldState(StrEnum):
    """How far a hold has come. The values of `RELEASABLE` are also arguments of the release function."""

    CLAIMED = "claimed"
    COUNTING = "counting"
    DELIVERED = "delivered"
    BEGUN = "begun"
    SETTLING = "settling"
    SETTLED = "settled"
    LOST = "lost"


CLAIMED, COUNTING, DELIVERED, BEGUN, SETTLING, SETTLED, LOST = HoldState
RELEASABLE = (CLAIMED, DELIVERED, BEGUN)
"""The states in which no command about the entry is under way: from each it can be settled or handed back."""


class TransitionError(RuntimeError):
    """A transition of a hold that the state machine does not have: a mistake in this package.

    Nothing was sent to the server and no state has changed. The lease is not renewed any more, so that the
    server delivers the entry again: late or twice, but it is not lost.
    """


class Hold:
    """The state of one delivery of an entry to this consumer. Only the methods here change it.

        sweep, take                       XREADGROUP
             |                                |
             v                                v
          CLAIMED --count--> COUNTING --counted--> DELIVERED --begin--> BEGUN
             |                  |                     |                   |
             |                  +----+                |                   |
             +--start_settling-------|----------------+-------------------+--> SETTLING --settle--> SETTLED
             |                       |                |                   |
             +--lose-----------------+----------------+-------------------+--> LOST

    - CLAIMED: delivered before, to a consumer that did not settle it; the attempt that comes next is not
      counted yet. COUNTING: the server is counting it. DELIVERED: it is counted. BEGUN: a handler has it.
    - SETTLING: a command that ends the hold waits to be sent or is under way. SETTLED: the command was
      answered or abandoned; `was_held` says whether the hold was still valid.
    - LOST: another consumer may have the entry, or its group is gone.

    Invariants: `counter` changes only from COUNTING to DELIVERED, and never decreases. While a command about
    the entry is under way (COUNTING, SETTLING) nothing else settles or loses it: the command's own reply says
    what became of it. SETTLED and LOST are final. All other transitions raise TransitionError.

    Threads: the event loop makes all transitions. The renewal thread calls `renew` and reads the rest. If
    both renew at the same time, the shorter lease may remain, which is safe. If the thread reads an old state
    or counter, the reply to its renewal carries that counter, and the loop ignores a loss at another one.

    Attributes:
        entry: the entry; `source`, `id` and `after` are copied from it, for commands.
        counter: the delivery counter at which it is held; the server refuses to settle at any other.
        lease_until: when the lease runs out, by `time.monotonic`, which is the event loop's clock.
        renew_until: when renewing ends although this process is alive, by the same clock.
        message, payload: what the body says, and how the handler wants it; set once the body was read.
        flaw: what is wrong with its signature, if the group verifies signatures.
        was_held: whether it was still held when it was settled; None before that.
        is_finished: whether it is known that its group has finished the entry.
    """

    __slots__ = (
        "_waiters", "after", "counter", "entry", "flaw", "id", "is_finished", "lease_until", "message",
        "payload", "renew_until", "source", "state", "was_held",
    )  # fmt: skip

    message: Message
    payload: Any

    def __init__(self, entry: Entry, counter: int, state: HoldState, lease_until: float) -> None:
        self.entry: Entry = entry
        self.source: Source = entry.source
        self.id: str = entry.id
        self.after: str | None = entry.after
        self.counter: int = counter
        self.state: HoldState = state
        self.lease_until: float = lease_until
        self.renew_until: float = math.inf
        self.flaw: Reason | None = None
        self.was_held: bool | None = None
        self.is_finished: bool = False
        self._waiters: tuple[asyncio.Future[None], ...] = ()

    def count(self) -> None:
        """Notes that the server is asked to count the attempt."""
        if self.state is not CLAIMED:
            self._refuse(COUNTING)
        self.state = COUNTING

    def counted(self, counter: int, lease_until: float) -> None:
        """Notes that the attempt is counted, by which the lease was renewed."""
        if self.state is not COUNTING:
            self._refuse(DELIVERED)
        self.state = DELIVERED
        self.counter = counter
        self.lease_until = lease_until

    def begin(self) -> None:
        """Notes that a handler gets the message."""
        if self.state is not DELIVERED:
            self._refuse(BEGUN)
        self.state = BEGUN

    def start_settling(self) -> None:
        """Notes that a command which ends the hold is about to be sent."""
        if self.state not in RELEASABLE:
            self._refuse(SETTLING)
        self.state = SETTLING

    def settle(self, *, was_held: bool, is_finished: bool = False) -> None:
        """Notes how settling ended, and wakes up the callers of `settled`."""
        if self.state is not SETTLING:
            self._refuse(SETTLED)
        self.state = SETTLED
        self.is_finished = is_finished
        self.was_held = was_held
        self._wake()

    def lose(self) -> None:
        """Notes that the entry is not held any more."""
        if self.state not in (*RELEASABLE, COUNTING):
            self._refuse(LOST)
        self.state = LOST
        self.was_held = False
        self._wake()

    def verified(self, flaw: Reason | None) -> None:
        """Keeps what is wrong with its signature."""
        self.flaw = flaw

    def read(self, message: Message, payload: Any) -> None:
        """Keeps what the body says, for the handler."""
        self.message = message
        self.payload = payload

    def renew(self, lease_until: float) -> None:
        """Extends the lease; a time before its end changes nothing. Any thread may call this."""
        self.lease_until = max(self.lease_until, lease_until)

    def stop_renewal(self, at: float) -> None:
        """Sets when renewing ends: a handler that cannot be cancelled keeps the message for no longer."""
        self.renew_until = at

    async def settled(self) -> bool:
        """Waits until it is settled or lost. Returns whether it was still held when it was settled.

        A cancelled caller cancels nothing but its own wait.
        """
        if self.was_held is None:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters = (*self._waiters, waiter)
            await waiter
        return bool(self.was_held)

    @property
    def is_busy(self) -> bool:
        """Whether a command about the entry is under way, so that `counter` may be out of date."""
        return self.state is COUNTING or self.state is SETTLING

    @property
    def is_overdue(self) -> bool:
        """Whether renewing failed for so long that another consumer may have claimed the entry."""
        return self.lease_until < time.monotonic()

    @property
    def attempts(self) -> int:
        """Attempts on the message that were counted, this one included once it was."""
        return self.entry.earlier + self.counter

    @property
    def next_attempt(self) -> int:
        """The number of the attempt that comes next or runs, counted from 1."""
        return self.entry.earlier + self.counter + (self.state is CLAIMED)

    @property
    def unsettled_attempts(self) -> int:
        """Earlier attempts that ended unsettled, as by a crash. A retry or a release makes another entry."""
        return self.counter - (self.state is not CLAIMED)

    @property
    def fence(self) -> int:
        """How often the group was given the message: more at every delivery."""
        return self.entry.earlier_fence + self.counter

    def _refuse(self, state: HoldState) -> None:
        self.renew_until = -math.inf
        raise TransitionError(f"entry {self.entry.id} is {self.state} and cannot become {state}")

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)


def delivered_holds(reply: Any, sources: tuple[Source, ...], lease_until: float) -> list[Hold]:
    """Returns holds of the entries in a reply of XREADGROUP: each is its first delivery, which counts one."""
    return [Hold(entry, 1, DELIVERED, lease_until) for entry in read_entries(reply, sources)]


def claimed_holds(reply: Any, source: Source, lease_until: float) -> list[Hold]:
    """Returns holds of the entries in a reply of the take or sweep function."""
    return [Hold(entry, counter, CLAIMED, lease_until) for entry, counter in claimed_entries(reply, source)]
