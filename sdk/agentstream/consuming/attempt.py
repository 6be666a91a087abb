"""An attempt: what a handler is doing with one message, and what ends it; `Delivery` is its public face."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from agentstream.consuming.failures import log_failure
from agentstream.consuming.hold import LOST, Hold
from agentstream.consuming.once import Once
from agentstream.consuming.settling import Settler, retry_delay
from agentstream.errors import InvalidMessage, NoRoute, Reject, Retry, check_delay, error_text
from agentstream.payloads.types import is_payload_type
from agentstream.protocol.reasons import Reason
from agentstream.protocol.routes import Consumes
from agentstream.routing.choose import SeveralRoutes
from agentstream.signals import is_of_signal
from agentstream.transport.retry import unit

_EXPIRED = "expire"
_DEADLINE_EXCEEDED = "DeadlineExceeded: the handler was not done by its deadline"
_LEAKED = "CancelledError: something that the handler waits for was cancelled"
_log = logging.getLogger("agentstream")


CURRENT: ContextVar[Attempt | None] = ContextVar("agentstream_attempt", default=None)
"""The attempt whose handler runs, also for what it calls in threads and tasks."""


class Interruption(Enum):
    """Why a handler is cancelled from outside."""

    LOST = "its lease was lost"
    DEADLINE = "its deadline is over"


@dataclass(slots=True, eq=False, repr=False)
class Attempt:
    """One attempt to handle one message. The first verb settles it; see `Delivery` for what each does.

    `_extend` moves the deadline to so many seconds from now, and returns whether the entry is still held. The
    handler is cancelled at `deadline` of the event loop's clock. `verb` is empty until one settles it.

    `is_ending` is set by whoever runs handlers in a task of its own, which no handler can end: it tells
    whether that task is to end. Elsewhere the task belongs to the program, which may cancel it.
    """

    hold: Hold
    policy: Consumes
    _settler: Settler
    _extend: Callable[[Attempt, float], Awaitable[bool]]
    deadline: float | None
    verb: str = field(default="", init=False)
    interruption: Interruption | None = field(default=None, init=False)
    on_interrupted: Callable[[], None] | None = field(default=None, init=False)
    is_ending: Callable[[], object] | None = field(default=None, init=False)
    _since: float = field(default_factory=time.monotonic, init=False)
    _task: asyncio.Task[Any] | None = field(default=None, init=False)
    _cancelling: int = field(default=0, init=False)
    _cancelled: bool = field(default=False, init=False)
    _refused: InvalidMessage | None = field(default=None, init=False)

    def __repr__(self) -> str:
        """Names the message, without its content."""
        message, stream = self.hold.message, self.policy.stream
        replay = f" of replay {self.hold.entry.replay}" if self.hold.entry.replay else ""
        return f"<Delivery of {message.type} {message.id} on {stream}, attempt {self.hold.attempts}{replay}>"

    @property
    def title(self) -> str:
        """Names the message and the attempt in lines of a log, without its content."""
        message, policy = self.hold.message, self.policy
        of = f" of {policy.max_deliveries}" if policy.dead_letters else ""
        return f"{message.type} {message.id} on {policy.stream}: attempt {self.hold.attempts}{of}"

    @property
    def held(self) -> bool:
        """False once it is known that another consumer may have the message."""
        return self.hold.state is not LOST and self.verb != _EXPIRED

    @property
    def cancelled(self) -> bool:
        """Whether the requester waits no longer."""
        return self._settler.replies.is_cancelled(self.hold.message)

    @property
    def outcome(self) -> str:
        """The verb that settled the message, or `lost`; empty until it is settled."""
        return "lost" if self.hold.was_held is False else self.verb

    @property
    def may_begin(self) -> bool:
        """Whether it is certain that no other consumer has the message, for a handler that has not begun."""
        return self.held and not self.hold.is_overdue

    @property
    def is_wanted(self) -> bool:
        """Whether the handler still decides what becomes of the message."""
        return not self.verb and self.interruption is None and self.hold.state is not LOST

    async def ack(self) -> bool:
        """Acknowledges the message."""
        if self._decide("ack"):
            self._settler.ack(self.hold)
        return self.verb == "ack" and await self.hold.settled()

    async def retry(self, after: float | None = None, reason: str = "") -> bool:
        """Has the message delivered again, or makes it a dead letter after the group's last attempt."""
        self._retry(after, reason)
        return self.verb == "retry" and await self.hold.settled()

    async def dead_letter(self, reason: str) -> bool:
        """Makes the message a dead letter."""
        self._dead_letter(reason)
        return self.verb == "dead_letter" and await self.hold.settled()

    async def release(self) -> bool:
        """Hands the message back; no attempt is counted."""
        if self._decide("release"):
            self._settler.release(self.hold)
        return self.verb == "release" and await self.hold.settled()

    async def extend(self, seconds: float) -> bool:
        """Moves the deadline; returns whether the message is still held and not settled."""
        return self.is_wanted and await self._extend(self, seconds)

    def once(self, key: str, ttl: float) -> Once:
        """Guards an effect outside that the group must not repeat."""
        delivery = f"{self.hold.message.id} {self.hold.fence}"
        return Once(self._settler.call, self.policy, key, delivery, ttl, counters=self._settler.counters)

    async def answer(self, payload: Any, timeout: float) -> None:
        """Answers the message."""
        try:
            await self._settler.replies.answer(self.hold.message, payload, self.policy, timeout)
        except InvalidMessage as error:
            self._refused = error
            raise

    def takes_answer(self, answer: object) -> bool:
        """Whether a value that the handler returned is meant for the sender: all are if it waits for one."""
        is_payload = isinstance(answer, dict) or is_payload_type(type(answer))
        return is_payload or self._settler.replies.are_awaited(self.hold.message)

    async def answer_returned(self, answer: Any) -> None:
        """Answers with the value that the handler returned.

        Without a route to the sender the message is retried, as one may still be declared. It becomes a dead
        letter where several routes lead to the sender, and where the value cannot be sent.
        """
        try:
            await self._settler.replies.answer(self.hold.message, answer, self.policy, patience=0)
        except InvalidMessage as error:
            await self._cannot_answer(
                Reason.INVALID_ANSWER, f"the handler returned an answer that cannot be sent: {error}"
            )
        except NoRoute as error:
            sender, is_final = self.hold.message.sender, isinstance(error, SeveralRoutes)
            remedy = " and send the answer" if is_final else f", declare a stream that leads to {sender}"
            why = (
                f"the handler returned an answer, but {error}; return None{remedy},"
                f" or have {sender} ask with Agent.request"
            )
            if is_final:
                await self._cannot_answer(Reason.NO_ROUTE, why)
                return
            _log.warning("%r: %s", self, why)
            self._retry(None, why, Reason.NO_ROUTE)
            await self.hold.settled()

    async def _cannot_answer(self, reason: str, why: str) -> None:
        """Gives the message up, without handling it again: its effect has come about."""
        _log.warning("%r: %s", self, why)
        if self.policy.dead_letters:
            self._dead_letter(reason, why)
        elif self._decide("ack"):
            self._settler.ack(self.hold)
            await self._settler.replies.gave_up(self.hold.entry.body, self.policy, reason, why)
        await self.hold.settled()

    def enter(self) -> None:
        """Notes that the current task runs the handler: an interruption cancels this task."""
        CURRENT.set(self)
        task = self._task = asyncio.current_task()
        if task is not None:
            self._cancelling = task.cancelling()
        if self.interruption is not None:
            self._cancel()

    async def exit(self, error: BaseException | None) -> bool:
        """Settles by how the handler ended, unless it has settled. Returns whether the error ends here."""
        task, self._task = self._task, None
        if error is None:
            # a handler that was cancelled and ended normally has not failed
            self._uncancel(task)
            if self._decide("ack"):
                self._settler.ack(self.hold)
                await self.hold.settled()
            return False
        self._uncancel(task)
        if isinstance(error, GeneratorExit):
            # nothing may be awaited where a coroutine or generator is closed, maybe without an event loop
            with contextlib.suppress(RuntimeError):
                self._begin_failed(error)
            return self.is_ending is not None and is_current(task)
        if isinstance(error, asyncio.CancelledError):
            is_asked = self._is_asked_to_end(task)
            if is_asked or self.interruption is not None:
                await self._interrupted()
                return not is_asked
        elif is_of_signal(error):
            await self.release()
            return False
        if self._begin_failed(error):
            await self.hold.settled()
        return self.is_ending is not None or isinstance(error, Exception | asyncio.CancelledError)

    def fail(self, error: BaseException) -> str:
        """Begins to settle as by a handler that failed, unless it has settled.

        `Retry` and `Reject` have it settled as they say. An answer that cannot be sent is refused again
        whenever the handler gives it.

        Returns:
            What becomes of the message, for a line of the log.
        """
        if isinstance(error, Reject):
            return self._dead_letter(error.reason)
        if error is self._refused:
            return self._dead_letter(Reason.INVALID_ANSWER, error_text(error))
        if isinstance(error, Retry):
            return self._retry(_delay_of(error), error.reason)
        return self._retry(None, _LEAKED if _is_leaked(error) else error_text(error))

    def lose(self) -> None:
        """Interrupts the handler, as the lease is known to be lost."""
        if not self.verb:
            self._interrupt(Interruption.LOST)

    def expire(self) -> None:
        """Interrupts the handler, as its deadline is over."""
        if self.verb or self.interruption is not None:
            return
        _log.warning("%r: was not handled by its deadline", self)
        self._interrupt(Interruption.DEADLINE)
        if self._task is None:
            self._retry(None, _DEADLINE_EXCEEDED, verb=_EXPIRED)

    def _interrupt(self, why: Interruption) -> None:
        was_interrupted, self.interruption = self.interruption is not None, why
        if not was_interrupted:
            self._cancel()
            if self.on_interrupted is not None:
                self.on_interrupted()

    def _cancel(self) -> None:
        """Cancels the handler, unless it has ended by then."""
        if self._task is None:
            return
        if self._task is asyncio.current_task():
            # it would be cancelled after the block, were there no await in it
            asyncio.get_running_loop().call_soon(self._cancel)
        else:
            self._cancelled = self._task.cancel()

    def _uncancel(self, task: asyncio.Task[Any] | None) -> None:
        """Takes back this attempt's cancellation of the task."""
        if task is not None and self._cancelled:
            task.uncancel()
        self._cancelled = False

    def _is_asked_to_end(self, task: asyncio.Task[Any] | None) -> bool:
        """Whether the task that ran the handler was cancelled by somebody else than this attempt."""
        if self.is_ending is not None:
            return bool(self.is_ending())
        return task is not None and task.cancelling() > self._cancelling

    async def _interrupted(self) -> None:
        if not self.verb:
            is_late = self.interruption is Interruption.DEADLINE
            await (self.retry(reason=_DEADLINE_EXCEEDED) if is_late else self.release())

    def _begin_failed(self, error: BaseException) -> bool:
        """Logs a failure, and begins to settle by it. Returns whether it settles."""
        is_first = not self.verb
        outcome = self.fail(error)
        if not isinstance(error, Retry | Reject):
            level = logging.WARNING if is_first else logging.ERROR
            log_failure(level, f"{self.title}, {outcome}", error)
        return is_first

    def _dead_letter(self, reason: str, error: str = "") -> str:
        if not self._decide("dead_letter"):
            return self._undecided
        self._settler.dead_letter(self.hold, self.policy, reason, error)
        return "now a dead letter" if self.policy.dead_letters else "again after the longest delay"

    def _retry(
        self, after: float | None, reason: str, at_last: str = Reason.MAX_DELIVERIES, *, verb: str = "retry"
    ) -> str:
        """Has the message delivered again, or makes it a dead letter with the reason `at_last`."""
        if not self._decide(verb):
            return self._undecided
        if self.hold.attempts >= self.policy.max_deliveries:
            self._settler.dead_letter(self.hold, self.policy, at_last, reason)
            return "now a dead letter" if self.policy.dead_letters else "again after the longest delay"
        delay = (
            retry_delay(self.policy, self.hold.attempts, unit())
            if after is None
            else round(float(after) * 1000)
        )
        delay = max(delay, 0)
        self._settler.retry(self.hold, delay, "", reason)
        return f"again in {delay / 1000:,.1f} s"

    @property
    def _undecided(self) -> str:
        lost = self.hold.state is LOST
        return "which another consumer may have by now" if lost else "after it was settled"

    def _decide(self, verb: str) -> bool:
        """Takes the verb, if it is the first. Returns whether there is something to settle."""
        if self.verb:
            return False
        self.verb = verb
        self._settler.counters.handling.observe(time.monotonic() - self._since)
        if self.hold.state is LOST:
            self._settler.drop_lost(self.hold)
            return False
        return True


def is_current(task: asyncio.Task[Any] | None) -> bool:
    """Whether a task runs just now; not so if its coroutine is closed by others."""
    try:
        return asyncio.current_task() is task
    except RuntimeError:
        # the event loop has ended
        return False


def _is_leaked(error: BaseException) -> bool:
    return isinstance(error, asyncio.CancelledError) and not error.args


def _delay_of(error: Retry) -> float | None:
    try:
        check_delay(error.after)
    except ValueError:
        # a class of one's own did not check it
        return None
    return error.after


class Deadlines:
    """Watches the deadlines of all attempts that handlers have with one timer."""

    def __init__(self, running: Callable[[], Iterable[Attempt]]) -> None:
        self._running = running
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, deadline: float) -> None:
        """Has attempts looked at again at this time of the event loop's clock."""
        if self._timer is None or deadline < self._timer.when():
            self.cancel()
            self._timer = asyncio.get_running_loop().call_at(deadline, self._look)

    def cancel(self) -> None:
        """Stops watching."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        running = [(attempt.deadline, attempt) for attempt in self._running() if attempt.deadline is not None]
        for deadline, attempt in running:
            if deadline <= now:
                attempt.expire()
        if ahead := [deadline for deadline, _ in running if deadline > now]:
            self.watch(min(ahead))
