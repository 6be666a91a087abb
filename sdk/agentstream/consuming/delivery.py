"""A message in a handler's hands, and what the handler may do with it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from enum import Enum
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self

from agentstream.consuming.hold import Hold
from agentstream.consuming.once import WEEK, Once
from agentstream.consuming.settling import Settler, retry_delay
from agentstream.errors import NoRoute, Reject, Retry, check_delay
from agentstream.payloads.types import Payload
from agentstream.protocol.envelope import Message
from agentstream.protocol.reasons import Reason
from agentstream.protocol.routes import Consumes
from agentstream.routing.choose import SeveralRoutes
from agentstream.telemetry.tracing import spans
from agentstream.transport.retry import unit

if TYPE_CHECKING:
    from agentstream.telemetry.spans import Handling

_EXPIRED = "expire"
_DEADLINE_EXCEEDED = "DeadlineExceeded: the handler was not done by its deadline"
_log = logging.getLogger("agentstream")


class Interruption(Enum):
    """Why a handler is cancelled from outside."""

    LOST = "its lease was lost"
    DEADLINE = "its deadline is over"


Extend = Callable[["Delivery[Any]", Hold, float], Awaitable[bool]]
"""Moves the deadline of a delivery to so many seconds from now; returns whether its entry is held."""


class Delivery(Generic[Payload]):
    """One attempt to handle one message.

    It is settled exactly once: by the first of `ack`, `retry`, `dead_letter` and `release`. Each returns
    whether this process still held the message; if not, because its lease had run out, somebody else handles
    it. Repeating the same verb returns the same answer, another verb does nothing and returns False.

    `async with delivery:` settles by how the block ends: normally with `ack`; by an exception with `retry`,
    which ends as a dead letter after the group's `maxDeliveries`, and the exception goes no further than the
    log; by `Retry` or `Reject` as these say; by cancellation with `release`.

    The block is cancelled when the lease turns out to be lost, and when the group's `delivery.deadline` is
    over. Like that of `asyncio.timeout`, this cancellation ends with the block. After a deadline the attempt
    has failed: a retry follows, or the dead letter, unless the block ends normally nevertheless. Without
    `async with` there is nothing to cancel: a lost lease shows in `held`, and at the deadline the message is
    given to a retry.
    """

    # what most deliveries have stands here once, not in each of them
    _verb = ""
    _handling: Handling | None = None
    _task: asyncio.Task[Any] | None = None
    _interrupted: Interruption | None = None
    _on_interrupted: Callable[[], None] | None = None
    _cancelled = False

    def __init__(
        self, entry: Hold, policy: Consumes, settler: Settler, extend: Extend, deadline: float | None
    ) -> None:
        self.deadline = deadline
        """When the handler is cancelled, by the event loop's clock in seconds; None for never."""
        self._entry = entry
        self._policy = policy
        self._settler = settler
        self._extend = extend
        self._since = time.monotonic()

    def __repr__(self) -> str:
        """Says which message it is, not what is in it."""
        return f"<Delivery of {self.message.type} {self.message.id} on {self.stream}, attempt {self.attempt}>"

    @property
    def message(self) -> Message:
        """The message."""
        return self._entry.message

    @property
    def payload(self) -> Payload:
        """Its payload, as a value of the type that was asked for."""
        return self._entry.payload  # type: ignore[no-any-return] # it was read as one

    @property
    def stream(self) -> str:
        """Name of the AgentStream."""
        return self._policy.stream

    @property
    def group(self) -> str:
        """Name of the ConsumerGroup."""
        return self._policy.group

    @property
    def entry(self) -> str:
        """Id of the entry on the main stream, the same for every attempt."""
        return self._entry.entry.origin

    @property
    def attempt(self) -> int:
        """The number of this attempt, counted from 1."""
        return self._entry.attempts

    @property
    def fence(self) -> int:
        """Grows with every delivery of the message in its group, whoever handles it.

        For the handler's own writes: `UPDATE … SET fence = :fence … WHERE fence < :fence` refuses those of an
        attempt that somebody else has overtaken.
        """
        return self._entry.fence

    @property
    def held(self) -> bool:
        """False once it is known that another consumer may have the message."""
        return not self._entry.is_lost and self._verb != _EXPIRED

    @property
    def settled(self) -> bool:
        """Whether it was decided what becomes of the message."""
        return bool(self._verb)

    @property
    def outcome(self) -> str:
        """What became of the message: the verb that settled it, or `lost`; empty until it is settled."""
        return "lost" if self._entry.is_lost or self._entry.was_held is False else self._verb

    @property
    def trace_context(self) -> bytes | None:
        """W3C Trace Context of the sender: `traceparent`, or `traceparent;tracestate`; None without one."""
        return self._entry.entry.trace

    def once(self, key: str, *, ttl: float = WEEK) -> Once:
        """An effect outside that the group must not repeat, though the message may be handled twice.

            async with delivery.once(f"charge-{order}") as first:
                if first:
                    await charge(order)

        The end of the block notes that the effect came about: from then on `first` is False, for every
        message of the group. An exception takes the note back, and the next attempt is the first again. What
        is interrupted in between, by a crash, a lost lease or a cancellation, stays in doubt: each later
        attempt raises EffectInDoubt. Catch it where somebody can be asked whether the effect came about, act
        on the answer, and go on; otherwise the message is retried and ends as a dead letter.

        Args:
            key: names the effect.
            ttl: for how many seconds it is remembered; a week if not said.

        Raises:
            ValueError: the key is empty, or the time is not positive.
            EffectInDoubt: on entering, as said.
            ConnectionLost, ServerRefused: on entering or leaving: the server did not answer, or refused, for
                ten seconds.
            AccessDenied: on entering or leaving.
        """
        return self._settler.once(self._policy, key, f"{self.message.id} {self.fence}", ttl)

    async def ack(self) -> bool:
        """The message is handled."""
        if self._decides("ack"):
            self._settler.ack(self._entry)
        return self._verb == "ack" and await self._entry.settled()

    async def retry(self, after: float | None = None, reason: str = "") -> bool:
        """The message is to be tried again; after the group's last attempt it becomes a dead letter.

        Args:
            after: seconds from now; by the group's policy if None.
            reason: why, for whoever reads the dead letter.

        Raises:
            ValueError: `after` is no time.
        """
        check_delay(after)
        if self._decides("retry"):
            self._try_again(after, reason)
        return self._verb == "retry" and await self._entry.settled()

    async def dead_letter(self, reason: str) -> bool:
        """The message becomes a dead letter: trying it again is of no use.

        A group without dead letters tries it again after the longest delay.

        Args:
            reason: why, for whoever reads the dead letter.
        """
        if self._decides("dead_letter"):
            self._settler.dead_letter(self._entry, self._policy, reason, "")
        return self._verb == "dead_letter" and await self._entry.settled()

    async def release(self) -> bool:
        """The message was not handled here: any consumer may have it at once, and no attempt is counted.

        It comes after what is waiting on the stream by now, and this process may be the one that gets it.
        """
        if self._decides("release"):
            self._settler.release(self._entry)
        return self._verb == "release" and await self._entry.settled()

    async def extend(self, seconds: float) -> bool:
        """Moves the deadline; where there is none, only asks the server.

        Args:
            seconds: from now to the new deadline.

        Returns:
            Whether this process still holds the message and has not settled it; the server is asked, and
            where it does not answer, it is what is known here.
        """
        if self._verb or self._interrupted is not None or self._entry.is_lost:
            return False
        return await self._extend(self, self._entry, seconds)

    async def reply(self, payload: Any, timeout: float = 30.0) -> None:
        """Answers the message; it is settled by something else.

        If its sender waits in `Agent.request`, the answer goes there, and the first of several counts. If
        not, it is sent as a `task_result` to the sender, by the stream that leads there.

        Args:
            payload: the data: a dict, msgspec.Struct, dataclass or pydantic model.
            timeout: for how many seconds to try.

        Raises:
            InvalidMessage: the payload is not what JSON can hold.
            NoRoute: the sender does not wait, and no declared stream leads to it, or several do.
            SettingsError: the answer is to be signed, and until the timeout there was no key.
            Backpressure, StreamMissing, ConnectionLost, AccessDenied, ServerRefused: as `Agent.send_message`.
        """
        tracing = spans(self.trace_context)
        # who answers outside of `async with` has no span of its own
        with contextlib.nullcontext() if tracing is None else tracing.continuing(self.trace_context):
            await self._settler.replies.answer(self.message, payload, self._policy, timeout)

    async def _returned(self, answer: Any) -> None:
        """Answers with what the handler returned; a stream that leads to the sender may still be declared."""
        try:
            await self._settler.replies.answer(self.message, answer, self._policy, patience=0)
        except NoRoute as error:
            is_final = isinstance(error, SeveralRoutes)
            if not self._decides("dead_letter" if is_final else "retry"):
                raise
            sender = self.message.sender
            remedy = " and send the answer" if is_final else f", declare a stream that leads to {sender}"
            why = (
                f"the handler returned an answer, but {error}; return None{remedy},"
                f" or have {sender} ask with Agent.request"
            )
            _log.warning("%r: %s", self, why)
            if is_final:
                self._settler.dead_letter(self._entry, self._policy, Reason.NO_ROUTE, why)
            else:
                self._try_again(None, why, Reason.NO_ROUTE)
            await self._entry.settled()

    async def __aenter__(self) -> Self:
        """Starts handling."""
        task = self._task = asyncio.current_task()
        self._cancelling = task.cancelling() if task is not None else 0
        if self._interrupted is not None:
            self._cancel()
        tracing = spans(self.trace_context)
        self._handling = None if tracing is None else tracing.handling(self, self.group)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """Settles by how the block ended, unless it was settled in it."""
        if self._handling is not None:
            handling, self._handling = self._handling, None
            try:
                return await self.__aexit__(kind, error, trace)
            finally:
                handling.end(error, self.outcome)
        task, self._task = self._task, None
        if error is None:
            # that it was cancelled and ended normally nevertheless is no failure
            self._is_over(task)
            if self._decides("ack"):
                self._settler.ack(self._entry)
                await self._entry.settled()
            return False
        swallowed = self._is_over(task) and isinstance(error, asyncio.CancelledError)
        if isinstance(error, Exception):
            await self._failed(error)
            return True
        if not self._verb:
            is_late = self._interrupted is Interruption.DEADLINE
            await (self.retry(reason=_DEADLINE_EXCEEDED) if is_late else self.release())
        return swallowed

    def _is_over(self, task: asyncio.Task[Any] | None) -> bool:
        """Takes back this delivery's cancellation of the task. Returns whether it was the only one."""
        if task is None or not self._cancelled:
            return False
        self._cancelled = False
        return task.uncancel() <= self._cancelling

    async def _failed(self, error: Exception) -> None:
        if self._verb:
            if not isinstance(error, Retry | Reject):
                _log.error("%r: failed after it was settled", self, exc_info=error)
        elif isinstance(error, Retry):
            await self.retry(error.after, error.reason)
        elif isinstance(error, Reject):
            await self.dead_letter(error.reason)
        else:
            _log.warning("%r: failed", self, exc_info=error)
            await self.retry(reason=f"{type(error).__name__}: {error}")

    @property
    def _may_begin(self) -> bool:
        """Whether it is certain that no other consumer has the message, for a handler that has not begun."""
        return self.held and not self._entry.is_overdue

    @property
    def _is_wanted(self) -> bool:
        """Whether it is still for the handler to decide what becomes of the message."""
        return not self._verb and self._interrupted is None and not self._entry.is_lost

    def _lose(self) -> None:
        """The lease is known to be lost."""
        if not self._verb:
            self._interrupt(Interruption.LOST)

    def _expire(self) -> None:
        """The deadline is over."""
        if self._verb or self._interrupted is not None:
            return
        _log.warning("%r: was not handled by its deadline", self)
        self._interrupt(Interruption.DEADLINE)
        if self._task is None and self._decides(_EXPIRED):
            self._try_again(None, _DEADLINE_EXCEEDED)

    def _interrupt(self, why: Interruption) -> None:
        was_interrupted, self._interrupted = self._interrupted is not None, why
        if not was_interrupted:
            self._cancel()
            if self._on_interrupted is not None:
                self._on_interrupted()

    def _cancel(self) -> None:
        """Cancels the handler, unless it has ended by then."""
        if self._task is None:
            return
        if self._task is asyncio.current_task():
            # it would be cancelled after the block, were there no await in it
            asyncio.get_running_loop().call_soon(self._cancel)
        else:
            self._cancelled = self._task.cancel()

    def _try_again(self, after: float | None, reason: str, in_the_end: str = Reason.MAX_DELIVERIES) -> None:
        if self._entry.attempts >= self._policy.max_deliveries:
            self._settler.dead_letter(self._entry, self._policy, in_the_end, reason)
            return
        delay = retry_delay(self._policy, self.attempt, unit()) if after is None else round(after * 1000)
        self._settler.retry(self._entry, max(delay, 0), "", reason)

    def _decides(self, verb: str) -> bool:
        """Whether this verb is the first, and there is something to settle."""
        if self._verb:
            return False
        self._verb = verb
        self._settler.counters.handling.observe(time.monotonic() - self._since)
        if self._entry.is_lost:
            self._settler.drop_lost(self._entry)
            return False
        return True
