"""Settling: what is done with an entry in the end, each exactly once and only while this consumer holds it.

Acknowledgements of one event-loop tick travel in one function call. A call whose reply was lost is repeated:
it is fenced by owner and delivery counter, so it cannot do anything twice.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from agentstream.consuming.hold import BEGUN, RELEASABLE, Hold, HoldState
from agentstream.consuming.leases import Leases, batches
from agentstream.consuming.once import Once
from agentstream.errors import AgentStreamError, ConnectionLost, WireClosed
from agentstream.protocol.commands import DONE, GONE, TRIMMED, Command, GroupCalls
from agentstream.protocol.reasons import Reason
from agentstream.protocol.routes import Consumes
from agentstream.sending.replies import Replies
from agentstream.telemetry.counters import GroupCounters
from agentstream.transport.error_replies import group_is_gone, is_not_ready
from agentstream.transport.retry import Backoff, unit

_RELEASE_PATIENCE = 2.0
_ERROR_LENGTH = 500
REJECTED = "Rejected"
"""What is counted where a handler gave a reason of its own, of which there may be any number."""

_REASONS = frozenset(Reason)
_log = logging.getLogger("agentstream")


class Settler:
    """Settles the entries of one consumer; `Hold.settled` says when it is done, and whether they were held.

    Args:
        call: sends a command and returns its reply.
        calls: the commands of this consumer.
        leases: what is held; settled entries leave it.
        on_settled: called with entries that are settled or handed back, whether they were still held or not.
        on_delayed: called with the delay, in seconds, of an entry that was put off.
        counters: where it is counted what becomes of entries.
        replies: answers requests, and tells whoever asked what became a dead letter.
    """

    def __init__(
        self,
        call: Callable[..., Awaitable[Any]],
        calls: GroupCalls,
        leases: Leases,
        on_settled: Callable[[Sequence[Hold]], None],
        on_delayed: Callable[[float], None],
        *,
        counters: GroupCounters,
        replies: Replies,
    ) -> None:
        self._call = call
        self._calls = calls
        self._leases = leases
        self._on_settled = on_settled
        self._on_delayed = on_delayed
        self.counters = counters
        self.replies = replies
        self._waiting: dict[str, list[Hold]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._ending = False

    def ack(self, entry: Hold) -> None:
        """Acknowledges a handled entry."""
        self._with_others("acked", entry)

    def skip(self, entry: Hold) -> None:
        """Takes an entry off that is not for this agent."""
        self._with_others("skipped", entry)

    def retry(self, entry: Hold, delay: int, reason: str, error: str) -> None:
        """Puts an entry off for `delay` ms."""
        reason, error = _written(reason), _written(error)[:_ERROR_LENGTH]
        command = self._calls.retry(entry, delay, entry.attempts, reason, error)
        self._alone(entry, self._put_off(entry, command, delay, "retried"))

    def defer(self, entry: Hold, delay: int, reason: str, error: str) -> None:
        """Puts an entry off for `delay` ms that no handler got: no attempt is counted."""
        command = self._calls.retry(entry, delay, entry.next_attempt - 1, reason, error)
        self._alone(entry, self._put_off(entry, command, delay, "put_off"))

    def dead_letter(self, entry: Hold, policy: Consumes, reason: str, error: str) -> None:
        """Makes a dead letter of an entry.

        In a group without dead letters it is tried again after the longest delay instead.
        """
        if not policy.dead_letters:
            self.retry(entry, retry_delay(policy, sys.maxsize, unit()), reason, error)
            return
        reason, error = _written(reason), _written(error)[:_ERROR_LENGTH]
        command = self._calls.dead_letter(entry, entry.attempts, reason, error)
        self._alone(entry, self._give_up(entry, policy, command, reason, error))

    def release(self, *entries: Hold, patience: float | None = _RELEASE_PATIENCE) -> asyncio.Future[None]:
        """Hands entries back: any consumer may have them at once, and no attempt is counted.

        What a handler has begun goes to the end of the group's retry stream; the rest stays where it is, and
        may be claimed.

        Args:
            entries: what is handed back.
            patience: seconds after which it is given up; None for as long as the others are settled.
        """
        by_state = [(state, [entry for entry in entries if entry.state is state]) for state in RELEASABLE]
        for entry in entries:
            entry.start_settling()
        return self._own(self._release(by_state, patience))

    def drop_lost(self, entry: Hold) -> None:
        """Notes that a handler is done with an entry that is not held any more."""
        self.counters.settled("lost")
        self._on_settled([entry])

    def once(self, policy: Consumes, key: str, delivery: str, ttl: float) -> Once:
        """An effect that the group must not repeat; see `Delivery.once`."""
        return Once(self._call, policy, key, delivery, ttl, counters=self.counters)

    def hurry(self) -> None:
        """The end is near: nothing waits for longer than its lease any more for a server that is away."""
        self._ending = True

    async def drain(self) -> None:
        """Waits until everything that was begun is done."""
        while self._waiting or self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await asyncio.sleep(0)

    def _with_others(self, outcome: str, entry: Hold) -> None:
        entry.start_settling()
        waiting = self._waiting.get(outcome)
        if waiting is None:
            self._waiting[outcome] = [entry]
            asyncio.get_running_loop().call_soon(self._flush, outcome)
        else:
            waiting.append(entry)

    def _flush(self, outcome: str) -> None:
        for source, entries in batches(self._waiting.pop(outcome)):
            command = self._calls.settle(source, outcome, entries)
            self._own(self._settle_batch(command, entries, outcome))

    async def _settle_batch(self, command: Command, entries: Sequence[Hold], outcome: str) -> None:
        codes, repeated = await self._repeated(command, entries)
        for entry, code in zip(entries, codes or [None] * len(entries), strict=True):
            entry.settle(was_held=_was_held(entry, code, repeated=repeated), is_finished=code == DONE)
        self._count(outcome, entries)
        self._done(entries)

    def _alone(self, entry: Hold, work: Coroutine[Any, Any, None]) -> None:
        entry.start_settling()
        self._own(work)

    async def _put_off(self, entry: Hold, command: Command, delay: int, outcome: str) -> None:
        await self._settle_one(entry, command, outcome)
        if delay:
            self._on_delayed(delay / 1000)

    async def _give_up(
        self, entry: Hold, policy: Consumes, command: Command, reason: str, error: str
    ) -> None:
        known = reason if reason in _REASONS else REJECTED
        await self._settle_one(entry, command, "dead", known)
        if entry.was_held:
            await self.replies.gave_up(entry.entry.body, policy, reason, error)

    async def _settle_one(self, entry: Hold, command: Command, outcome: str, reason: str = "") -> None:
        code, repeated = await self._repeated(command, [entry])
        entry.settle(was_held=_was_held(entry, code, repeated=repeated))
        self._count(outcome, [entry], reason)
        self._done([entry])

    async def _release(self, by_state: list[tuple[HoldState, list[Hold]]], patience: float | None) -> None:
        for state, entries in by_state:
            for source, batch in batches(entries):
                deadline = None if patience is None else time.monotonic() + patience
                codes, repeated = await self._repeated(
                    self._calls.release(source, state, batch), batch, deadline=deadline
                )
                for entry, code in zip(batch, codes or [None] * len(batch), strict=True):
                    # after a lost reply a released entry is gone, or pending at another counter
                    entry.settle(was_held=code is not None and (repeated or code == DONE))
                if state is BEGUN:
                    self._count("released", batch)
                self._done(batch)

    async def _repeated(
        self, command: Command, entries: Sequence[Hold], *, deadline: float | None = None
    ) -> tuple[Any, bool]:
        """Sends a command until a reply comes or the deadline is over.

        Without a deadline it gives up when the last lease is over: then others may have the entries. That is
        so where the server answers; one that is away gives them to nobody.

        Returns its reply, None without one, and whether an earlier reply was lost.
        """
        backoff = Backoff(0.05, 1.0)
        repeated = False
        while True:
            try:
                return await self._call(*command), repeated
            except AgentStreamError as error:
                delay, is_lost = backoff.next(), isinstance(error, ConnectionLost)
                hopeless = group_is_gone(error) or isinstance(error, WireClosed)
                waits = deadline is None and (is_lost or is_not_ready(error)) and not self._ending
                until = max(entry.lease_until for entry in entries) if deadline is None else deadline
                if hopeless or not (waits or time.monotonic() + delay <= until):
                    _log.warning(
                        "an entry of %s was not settled and may be delivered again: %s", command[3], error
                    )
                    return None, repeated
                repeated = repeated or is_lost
            await asyncio.sleep(delay)

    def _count(self, outcome: str, entries: Sequence[Hold], reason: str = "") -> None:
        held = sum([bool(entry.was_held) for entry in entries])
        self.counters.settled(outcome, reason, held=held, lost=len(entries) - held)

    def _done(self, entries: Sequence[Hold]) -> None:
        for entry in entries:
            self._leases.drop(entry)
        self._on_settled(entries)

    def _own(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Runs to its end whatever becomes of the caller."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def retry_delay(policy: Consumes, attempt: int, jitter: float) -> int:
    """The delay in ms after a failed attempt, by the group's policy.

    Args:
        policy: the group's.
        attempt: the attempt that failed, counted from 1.
        jitter: from 0 to 1; adds up to a quarter, so that what failed together does not return together.
    """
    # a power of hundreds of attempts is too large for a float
    exponent = min(attempt - 1, 64)
    delay = min(policy.backoff_initial * policy.backoff_factor**exponent, policy.backoff_max)
    return int(delay * (1 + jitter / 4))


def _written(said: object) -> str:
    """A reason as it can be written: what a handler gives for one needs not be text, nor Unicode."""
    return str(said).encode(errors="backslashreplace").decode()


def _was_held(entry: Hold, code: int | None, *, repeated: bool) -> bool:
    """Whether the entry was held; gone after a lost reply means that the lost one had done it.

    Not so when the lease is over by now: then somebody else can have done it, too.
    """
    if code is None:
        return False
    return code in (DONE, TRIMMED) or (repeated and code == GONE and not entry.is_overdue)
