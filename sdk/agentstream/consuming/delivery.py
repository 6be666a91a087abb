"""A message in a handler's hands, and what the handler may do with it."""

from __future__ import annotations

import contextlib
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self

from agentstream.consuming.attempt import Attempt
from agentstream.consuming.once import WEEK, Once
from agentstream.errors import check_delay, check_seconds
from agentstream.payloads.types import Payload
from agentstream.protocol.envelope import Message
from agentstream.telemetry.tracing import spans

if TYPE_CHECKING:
    from agentstream.telemetry.spans import Handling


class Delivery(Generic[Payload]):
    """One attempt to handle one message.

    It is settled exactly once: by the first of `ack`, `retry`, `dead_letter` and `release`. Each returns
    whether this process still held the message; if not, because its lease had run out, another consumer
    handles it. Repeating the same verb returns the same answer, another verb does nothing and returns False.

    `async with delivery:` settles by how the block ends: normally with `ack`; by an exception with `retry`,
    which ends as a dead letter after the group's `maxDeliveries`, and the exception goes no further than the
    log; by `Retry` or `Reject` as these say. If the task is cancelled, and if a handler of SIGTERM or SIGINT
    raises, with `release`; a cancellation of something that the block waits for is an exception as others
    are. SystemExit and what else is no Exception counts as a failed attempt, too, but passes on: it ends the
    task, which belongs to the program.

    The block is cancelled when the lease turns out to be lost, and when the group's `delivery.deadline` is
    over. Like that of `asyncio.timeout`, this cancellation ends with the block. After a deadline the attempt
    has failed: a retry follows, or the dead letter, unless the block ends normally nevertheless. Without
    `async with` there is nothing to cancel: a lost lease shows in `held`, and at the deadline the message is
    retried.
    """

    _handling: Handling | None = None

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt

    def __repr__(self) -> str:
        """Names the message, without its content."""
        return repr(self._attempt)

    @property
    def message(self) -> Message:
        """The message."""
        return self._attempt.hold.message

    @property
    def payload(self) -> Payload:
        """The message's payload, as a value of the type that was asked for."""
        return self._attempt.hold.payload  # type: ignore[no-any-return] # it was read as one

    @property
    def stream(self) -> str:
        """Name of the AgentStream."""
        return self._attempt.policy.stream

    @property
    def group(self) -> str:
        """Name of the ConsumerGroup."""
        return self._attempt.policy.group

    @property
    def entry(self) -> str:
        """Id of the entry on the main stream, the same for every attempt."""
        return self._attempt.hold.entry.origin

    @property
    def attempt(self) -> int:
        """The number of this attempt, counted from 1."""
        return self._attempt.hold.attempts

    @property
    def replay(self) -> str | None:
        """Name of the StreamReplay by which the group gets the message once more; None for all others.

        The handler may have handled the message before. What `once` guards is not repeated.
        """
        return self._attempt.hold.entry.replay

    @property
    def deadline(self) -> float | None:
        """When the handler is cancelled, by the event loop's clock in seconds; None for never."""
        return self._attempt.deadline

    @property
    def fence(self) -> int:
        """Grows with every delivery of the message in its group, to any consumer.

        For the handler's own writes: `UPDATE … SET fence = :fence … WHERE fence < :fence` refuses those of an
        attempt that a later one has overtaken.
        """
        return self._attempt.hold.fence

    @property
    def cancelled(self) -> bool:
        """Whether the requester waits no longer: its `Agent.request` was cancelled, or its time is over.

        Nothing else happens: a handler that looks may end early. Best effort: a notice may be lost. False for
        messages that are no requests.
        """
        return self._attempt.cancelled

    @property
    def held(self) -> bool:
        """False once it is known that another consumer may have the message."""
        return self._attempt.held

    @property
    def settled(self) -> bool:
        """Whether it was decided what becomes of the message."""
        return bool(self._attempt.verb)

    @property
    def outcome(self) -> str:
        """What became of the message: the verb that settled it, or `lost`; empty until it is settled."""
        return self._attempt.outcome

    @property
    def trace_context(self) -> bytes | None:
        """W3C Trace Context of the sender: `traceparent`, or `traceparent;tracestate`; None without one."""
        return self._attempt.hold.entry.trace

    def once(self, key: str, *, ttl: float = WEEK) -> Once:
        """Guards an effect outside that the group must not repeat, though the message may be handled twice.

            async with delivery.once(f"charge-{order}") as first:
                if first:
                    await charge(order)

        The end of the block notes that the effect came about: from then on `first` is False, for every
        message of the group. An exception takes the note back, and the next attempt is the first again. If
        the block is interrupted by a crash, a lost lease or a cancellation, the effect stays in doubt: each
        later attempt raises EffectInDoubt. Catch it where it can be found out whether the effect came about,
        act on the answer, and go on; otherwise the message is retried and ends as a dead letter.

        Args:
            key: names the effect.
            ttl: for how many seconds it is remembered; a week by default.

        Raises:
            ValueError: the key is empty, or the time is not positive.
            EffectInDoubt: on entering, if an earlier attempt was interrupted in the block.
            ConnectionLost, AccessDenied, ServerRefused: on entering or leaving: the server did not answer, or
                refused, for ten seconds.
        """
        return self._attempt.once(key, ttl)

    async def ack(self) -> bool:
        """Acknowledges the message: it is handled."""
        return await self._attempt.ack()

    async def retry(self, after: float | None = None, reason: str = "") -> bool:
        """Has the message delivered again; after the group's last attempt it becomes a dead letter.

        Args:
            after: seconds from now; by the group's policy if None.
            reason: why, for the reader of the dead letter.

        Raises:
            ValueError: `after` is no time.
        """
        check_delay(after)
        return await self._attempt.retry(after, reason)

    async def dead_letter(self, reason: str) -> bool:
        """Makes the message a dead letter, as trying it again is of no use.

        A group without dead letters tries it again after the longest delay.

        Args:
            reason: why, for the reader of the dead letter.
        """
        return await self._attempt.dead_letter(reason)

    async def release(self) -> bool:
        """Hands the message back unhandled: any consumer may have it at once, and no attempt is counted.

        It comes after the messages that wait on the stream by now, and may come to this process again.
        """
        return await self._attempt.release()

    async def extend(self, seconds: float) -> bool:
        """Moves the deadline. Without a deadline it only asks the server whether the message is still held.

        Args:
            seconds: from now to the new deadline.

        Returns:
            Whether this process still holds the message and has not settled it; if the server does not
            answer, as far as this process knows.

        Raises:
            ValueError: it is no time.
        """
        check_seconds(seconds, "seconds")
        return await self._attempt.extend(float(seconds))

    async def reply(self, payload: Any, timeout: float = 30.0) -> None:
        """Answers the message, without settling it.

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
        # an answer outside of `async with` has no span of its own
        with contextlib.nullcontext() if tracing is None else tracing.continuing(self.trace_context):
            await self._attempt.answer(payload, timeout)

    async def __aenter__(self) -> Self:
        """Starts handling."""
        self._attempt.enter()
        tracing = spans(self._attempt.hold.entry.trace)
        if tracing is not None:
            self._handling = tracing.handling(self, self.group)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """Settles by how the block ended, unless it was settled in it."""
        try:
            return await self._attempt.exit(error)
        finally:
            if self._handling is not None:
                handling, self._handling = self._handling, None
                handling.end(error, self.outcome)
