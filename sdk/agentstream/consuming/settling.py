"""Settling: each entry is settled exactly once, and only while this consumer holds it.

Acknowledgements of one iteration of the event loop travel in one function call. A call whose reply was lost
is repeated: it is fenced by consumer and delivery counter, so it cannot take effect twice.
"""

from __future__ import annotations

import asyncio
import logging
import math
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from agentstream.consuming.fetch import FetchSignals
from agentstream.consuming.hold import BEGUN, RELEASABLE, Hold, HoldState
from agentstream.consuming.leases import Leases, batches
from agentstream.errors import AgentStreamError, ConnectionLost
from agentstream.printable import printable
from agentstream.protocol.commands import DONE, GONE, TRIMMED, Command
from agentstream.protocol.entry import Source
from agentstream.protocol.reasons import Reason
from agentstream.protocol.routes import Consumes
from agentstream.sending.replies import Replies
from agentstream.telemetry.counters import GroupCounters
from agentstream.transport.error_replies import passes
from agentstream.transport.retry import Backoff, unit

_RELEASE_PATIENCE = 2.0
_REASON_LENGTH = 500
REJECTED = "Rejected"
"""Counted for reasons that handlers give, of which there may be any number."""

_REASONS = frozenset(Reason)
_log = logging.getLogger("agentstream")


class Settler:
    """Settles the entries of one consumer; `Hold.settled` says when it is done, and whether they were held.

    `call` sends a command over the connection for writing.
    """

    def __init__(
        self,
        call: Callable[..., Awaitable[Any]],
        leases: Leases,
        counters: GroupCounters,
        replies: Replies,
        signals: FetchSignals,
    ) -> None:
        self.call: Callable[..., Awaitable[Any]] = call
        self._commands = leases.calls
        self.leases: Leases = leases
        self.counters: GroupCounters = counters
        self.replies: Replies = replies
        self.signals: FetchSignals = signals
        self._waiting: dict[str, list[Hold]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._ending_since = math.inf
        # what handlers had begun, since there was no more to begin
        self.handed_back: int = 0

    def ack(self, hold: Hold) -> None:
        """Acknowledges a handled entry."""
        self._settle_soon("acked", hold)

    def skip(self, hold: Hold) -> None:
        """Acknowledges an entry that is addressed to other agents."""
        self._settle_soon("skipped", hold)

    def retry(self, hold: Hold, delay: int, reason: str, error: str) -> None:
        """Has an entry delivered again after `delay` ms."""
        reason, error = printable(reason, _REASON_LENGTH), printable(error, _REASON_LENGTH)
        command = self._commands.retry(hold, delay, hold.attempts, reason, error)
        self._settle_alone(hold, self._retry(hold, command, delay, "retried"))

    def defer(self, hold: Hold, delay: int, reason: str, error: str) -> None:
        """Has an entry that no handler got delivered again after `delay` ms; no attempt is counted."""
        command = self._commands.retry(hold, delay, hold.next_attempt - 1, reason, error)
        self._settle_alone(hold, self._retry(hold, command, delay, "put_off"))

    def dead_letter(self, hold: Hold, policy: Consumes, reason: str, error: str) -> None:
        """Makes an entry a dead letter.

        In a group without dead letters it is delivered again after the longest delay instead.
        """
        if not policy.dead_letters:
            self.retry(hold, retry_delay(policy, sys.maxsize, unit()), reason, error)
            return
        reason, error = printable(reason, _REASON_LENGTH), printable(error, _REASON_LENGTH)
        command = self._commands.dead_letter(hold, hold.attempts, reason, error)
        self._settle_alone(hold, self._dead_letter(hold, policy, command, reason, error))

    def release(self, *holds: Hold, patience: float | None = _RELEASE_PATIENCE) -> asyncio.Future[None]:
        """Hands entries back: any consumer may have them at once, and no attempt is counted.

        An entry that a handler has begun goes to the end of the group's retry stream; others stay where they
        are, and may be claimed. `patience` is in seconds; None to try for as long as when settling.
        """
        by_state = [(state, [hold for hold in holds if hold.state is state]) for state in RELEASABLE]
        for hold in holds:
            hold.start_settling()
        return self._spawn(self._release(by_state, patience))

    def drop_lost(self, hold: Hold) -> None:
        """Counts a lost entry that its handler has settled, and drops it."""
        self.counters.settled("lost")
        self.leases.end([hold])

    def hurry(self) -> None:
        """From now on, waits for a server that is away for no longer than a lease."""
        self._ending_since = time.monotonic()

    async def drain(self) -> None:
        """Waits until all entries that are being settled are settled."""
        while self._waiting or self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await asyncio.sleep(0)

    def _settle_soon(self, outcome: str, hold: Hold) -> None:
        hold.start_settling()
        waiting = self._waiting.get(outcome)
        if waiting is None:
            self._waiting[outcome] = [hold]
            asyncio.get_running_loop().call_soon(self._flush, outcome)
        else:
            waiting.append(hold)

    def _flush(self, outcome: str) -> None:
        for source, holds in batches(self._waiting.pop(outcome)):
            self._spawn(self._settle_batch(source, holds, outcome))

    async def _settle_batch(self, source: Source, holds: Sequence[Hold], outcome: str) -> None:
        while holds:
            codes, repeated = await self._repeat(self._commands.settle(source, outcome, holds), holds)
            answered, holds = _answered(holds, codes)
            for hold, code in answered:
                hold.settle(was_held=_was_held(hold, code, repeated=repeated), is_finished=code == DONE)
            ended = [hold for hold, _ in answered]
            self._count(outcome, ended)
            self.leases.end(ended)

    def _settle_alone(self, hold: Hold, work: Coroutine[Any, Any, None]) -> None:
        hold.start_settling()
        self._spawn(work)

    async def _retry(self, hold: Hold, command: Command, delay: int, outcome: str) -> None:
        await self._settle_one(hold, command, outcome)
        if delay:
            self.signals.look_after(delay / 1000)

    async def _dead_letter(
        self, hold: Hold, policy: Consumes, command: Command, reason: str, error: str
    ) -> None:
        known = reason if reason in _REASONS else REJECTED
        await self._settle_one(hold, command, "dead", known)
        if hold.was_held:
            await self.replies.gave_up(hold.entry.body, policy, reason, error)

    async def _settle_one(self, hold: Hold, command: Command, outcome: str, reason: str = "") -> None:
        code, repeated = await self._repeat(command, [hold])
        hold.settle(was_held=_was_held(hold, code, repeated=repeated))
        self._count(outcome, [hold], reason)
        self.leases.end([hold])

    async def _release(self, by_state: list[tuple[HoldState, list[Hold]]], patience: float | None) -> None:
        for state, holds in by_state:
            for source, batch in batches(holds):
                deadline = None if patience is None else time.monotonic() + patience
                await self._release_batch(source, state, batch, deadline)

    async def _release_batch(
        self, source: Source, state: HoldState, holds: Sequence[Hold], deadline: float | None
    ) -> None:
        while holds:
            command = self._commands.release(source, state, holds)
            codes, repeated = await self._repeat(command, holds, deadline=deadline)
            answered, holds = _answered(holds, codes)
            for hold, code in answered:
                # after a lost reply a released entry is gone, or pending at another counter
                hold.settle(was_held=code is not None and (repeated or code == DONE))
            ended = [hold for hold, _ in answered]
            if state is BEGUN:
                self.handed_back += len(ended) if self._ending_since < math.inf else 0
                self._count("released", ended)
            self.leases.end(ended)

    async def _repeat(
        self, command: Command, holds: Sequence[Hold], *, deadline: float | None = None
    ) -> tuple[Any, bool]:
        """Sends a command until a reply comes, an error comes that does not pass, or the deadline is over.

        Without a deadline it goes on whatever becomes of the leases: while the server does nothing for this
        consumer, the others get no entries either, and the server refuses to settle what they have. When the
        session ends it stops with the last lease, or a lease after both the end and the first try.

        Returns its reply, None without one, and whether an earlier reply was lost.
        """
        # short enough to be done before others may claim again after the trouble
        backoff = Backoff(0.05, min(1.0, self.leases.lease / 4))
        repeated, started = False, time.monotonic()
        while True:
            try:
                return await self.call(*command), repeated
            except AgentStreamError as error:
                delay, until = backoff.next(), deadline
                if until is None:
                    # leases may be over already: nobody can renew, nor claim, while the server is away
                    since = max(started, self._ending_since)
                    until = max(since + self.leases.lease, *(hold.lease_until for hold in holds))
                if not passes(error) or time.monotonic() + delay > until:
                    _log.warning(
                        "cannot settle %d entries of %s; they may be delivered again: %s",
                        len(holds),
                        command[3],
                        error,
                    )
                    return None, repeated
                repeated = repeated or isinstance(error, ConnectionLost)
            await asyncio.sleep(delay)

    def _count(self, outcome: str, holds: Sequence[Hold], reason: str = "") -> None:
        held = sum([bool(hold.was_held) for hold in holds])
        self.counters.settled(outcome, reason, held=held, lost=len(holds) - held)

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Runs to its end even if the caller is cancelled."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def retry_delay(policy: Consumes, attempt: int, jitter: float) -> int:
    """Returns the delay in ms after a failed attempt, by the group's policy.

    Args:
        policy: the group's.
        attempt: the attempt that failed, counted from 1.
        jitter: from 0 to 1; adds up to a quarter, so that messages that failed together do not return
            together.
    """
    # a power of hundreds of attempts is too large for a float
    exponent = min(attempt - 1, 64)
    delay = min(policy.backoff_initial * policy.backoff_factor**exponent, policy.backoff_max)
    return int(delay * (1 + jitter / 4))


def _answered(
    holds: Sequence[Hold], codes: Sequence[int] | None
) -> tuple[Sequence[tuple[Hold, int | None]], Sequence[Hold]]:
    """Pairs holds with the server's codes, None without a reply; and those that the server did not get to."""
    if codes is None:
        return [(hold, None) for hold in holds], ()
    return list(zip(holds, codes, strict=False)), holds[len(codes) :]


def _was_held(hold: Hold, code: int | None, *, repeated: bool) -> bool:
    """Whether the entry was held; gone after a lost reply means that the lost call had settled it.

    Not so when the lease is over by now: then another consumer may have settled it.
    """
    if code is None:
        return False
    return code in (DONE, TRIMMED) or (repeated and code == GONE and not hold.is_overdue)
