"""A message in a handler's hands, and what the handler may do with it."""

from __future__ import annotations

import asyncio
import logging
from types import TracebackType
from typing import Any, Generic, Self

from agentstream.backoff import retry_delay, unit
from agentstream.entries import Entry
from agentstream.message import Message
from agentstream.once import WEEK, Once
from agentstream.payloads import Payload
from agentstream.routes import Consumes
from agentstream.settle import Settler
from agentstream.triage import Reason

_log = logging.getLogger("agentstream")


class Retry(Exception):  # noqa: N818 - says what is to happen, not that something is wrong
    """Raised in a handler: try the message again later.

    Args:
        reason: why, for whoever reads the dead letter.
        after: seconds from now; by the group's policy if None.
    """

    def __init__(self, reason: str = "", *, after: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.after = after


class Reject(Exception):  # noqa: N818 - as above
    """Raised in a handler: trying the message again is of no use, it becomes a dead letter.

    Args:
        reason: why, for whoever reads the dead letter.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Delivery(Generic[Payload]):
    """One attempt to handle one message.

    It is settled exactly once: by the first of `ack`, `retry`, `dead_letter` and `release`. Each returns
    whether this process still held the message; if not, because its lease had run out, somebody else handles
    it. Repeating the same verb returns the same answer, another verb does nothing and returns False.

    `async with delivery:` settles by how the block ends: normally with `ack`; by an exception with `retry`,
    which ends as a dead letter after the group's `maxDeliveries`, and the exception goes no further than the
    log; by `Retry` or `Reject` as these say; by cancellation with `release`.

    Attributes:
        message: the message.
        payload: its payload, as a value of the type that was asked for.
        stream: name of the AgentStream.
        entry: id of the entry on the main stream, the same for every attempt.
        attempt: the number of this attempt, counted from 1.
    """

    __slots__ = (
        "_entry",
        "_outcome",
        "_policy",
        "_settler",
        "_verb",
        "attempt",
        "entry",
        "message",
        "payload",
        "stream",
    )

    def __init__(
        self, entry: Entry, message: Message, payload: Payload, policy: Consumes, settler: Settler
    ) -> None:
        self.message = message
        self.payload = payload
        self.stream = policy.stream
        self.entry = entry.origin
        self.attempt = entry.attempts
        self._entry = entry
        self._policy = policy
        self._settler = settler
        self._verb = ""
        self._outcome: asyncio.Future[bool] | None = None

    def __repr__(self) -> str:
        """Says which message it is, not what is in it."""
        return f"<Delivery of {self.message.type} {self.message.id} on {self.stream}, attempt {self.attempt}>"

    def begin(self) -> None:
        """A handler has it from now on."""
        self._entry.begun = True

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
        return not self._entry.lost

    @property
    def settled(self) -> bool:
        """Whether it was decided what becomes of the message."""
        return self._outcome is not None

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
        if self._outcome is None:
            self._decide("ack", self._settler.ack(self._entry))
        return await self._answer("ack")

    async def retry(self, after: float | None = None, reason: str = "") -> bool:
        """The message is to be tried again; after the group's last attempt it becomes a dead letter.

        Args:
            after: seconds from now; by the group's policy if None.
            reason: why, for whoever reads the dead letter.
        """
        if self._outcome is None:
            self._decide("retry", self._later(after, reason))
        return await self._answer("retry")

    async def dead_letter(self, reason: str) -> bool:
        """The message becomes a dead letter: trying it again is of no use.

        A group without dead letters tries it again after the longest delay.

        Args:
            reason: why, for whoever reads the dead letter.
        """
        if self._outcome is None:
            self._decide("dead_letter", self._give_up(reason, ""))
        return await self._answer("dead_letter")

    async def release(self) -> bool:
        """The message was not handled here: any consumer may have it at once, and no attempt is counted.

        It comes after what is waiting on the stream by now, and this process may be the one that gets it.
        """
        if self._outcome is None:
            self._decide("release", self._settler.release(self._entry))
        return await self._answer("release")

    async def reply(self, payload: Any, timeout: float = 30.0) -> None:  # noqa: ASYNC109 - as in `send_message`
        """Answers the message; it is settled by something else.

        If its sender waits in `Agent.request`, the answer goes there, and the first of several counts. If
        not, it is sent as a `task_result` to the sender, by the stream that leads there.

        Args:
            payload: the data: a dict, msgspec.Struct, dataclass or pydantic model.
            timeout: for how many seconds to try.

        Raises:
            InvalidMessage: the payload is not what JSON can hold.
            NoRoute: the sender does not wait, and no declared stream leads to it, or several do.
            Backpressure, StreamMissing, ConnectionLost, AccessDenied, ServerRefused: as `Agent.send_message`.
        """
        await self._settler.replies.answer(self.message, payload, timeout)

    async def __aenter__(self) -> Self:
        """Starts handling."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """Settles by how the block ended, unless it was settled in it."""
        if isinstance(error, Exception):
            await self._failed(error)
            return True
        if not self.settled:
            await (self.ack() if error is None else self.release())
        return False

    async def _failed(self, error: Exception) -> None:
        if self.settled:
            if not isinstance(error, Retry | Reject):
                _log.error("%r: failed after it was settled", self, exc_info=error)
        elif isinstance(error, Retry):
            await self.retry(error.after, error.reason)
        elif isinstance(error, Reject):
            await self.dead_letter(error.reason)
        else:
            _log.warning("%r: failed", self, exc_info=error)
            await self.retry(reason=f"{type(error).__name__}: {error}")

    def _later(self, after: float | None, reason: str) -> asyncio.Future[bool]:
        if self._entry.attempts >= self._policy.max_deliveries:
            return self._give_up(Reason.MAX_DELIVERIES, reason)
        delay = retry_delay(self._policy, self.attempt, unit()) if after is None else round(after * 1000)
        return self._settler.retry(self._entry, max(delay, 0), "", reason)

    def _give_up(self, reason: str, error: str) -> asyncio.Future[bool]:
        return self._settler.give_up(self._entry, self._policy, reason, error)

    def _decide(self, verb: str, outcome: asyncio.Future[bool]) -> None:
        self._verb = verb
        self._outcome = outcome

    async def _answer(self, verb: str) -> bool:
        """The outcome, if this verb decided it. It is carried out even if the caller is cancelled."""
        if self._outcome is None or self._verb != verb:
            return False
        return await asyncio.shield(self._outcome)
