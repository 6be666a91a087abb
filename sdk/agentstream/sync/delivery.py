"""A message in the hands of a thread."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Self

from agentstream.consuming import delivery, once
from agentstream.consuming import session as consume
from agentstream.consuming.once import WEEK
from agentstream.payloads.types import Payload
from agentstream.protocol.envelope import Message
from agentstream.sync.loop import Ended, LoopThread
from agentstream.telemetry.tracing import spans

if TYPE_CHECKING:
    from agentstream.telemetry.spans import Handling

_P = ParamSpec("_P")


class SyncOnce:
    """As `agentstream.consuming.once.SyncOnce`, as a context manager; see `SyncDelivery.once`."""

    def __init__(self, effect: once.Once, loop: LoopThread) -> None:
        self._effect = effect
        self._loop = loop

    def __enter__(self) -> bool:
        """Whether the effect is still to be brought about.

        Raises:
            EffectInDoubt: an earlier attempt began it, and whether it came about is not known.
            ConnectionLost, ServerRefused: the server did not answer, or refused, for ten seconds.
            AccessDenied: the server refuses.
        """
        return self._loop.run(self._effect.__aenter__)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Notes that the effect came about; by an exception, that it did not.

        Raises:
            ConnectionLost, ServerRefused, AccessDenied: as on entering.
        """
        self._loop.complete(self._effect.__aexit__, kind, error, trace)


class SyncDelivery(Generic[Payload]):
    """As `agentstream.Delivery`, for a thread: `with delivery:` settles by how the block ends.

    A thread cannot be cancelled. When the lease is lost, and when the group's `delivery.deadline` is over,
    `held` turns False and settling returns False: somebody else has the message, or will have it.
    """

    __slots__ = ("_delivery", "_handling", "_loop")

    def __init__(self, delivery: delivery.Delivery[Payload], loop: LoopThread) -> None:
        self._delivery = delivery
        self._loop = loop
        self._handling: Handling | None = None

    def __repr__(self) -> str:
        """Says which message it is, not what is in it."""
        return repr(self._delivery)

    @property
    def message(self) -> Message:
        """The message."""
        return self._delivery.message

    @property
    def payload(self) -> Payload:
        """Its payload, as a value of the type that was asked for."""
        return self._delivery.payload

    @property
    def stream(self) -> str:
        """Name of the AgentStream."""
        return self._delivery.stream

    @property
    def group(self) -> str:
        """Name of the ConsumerGroup."""
        return self._delivery.group

    @property
    def entry(self) -> str:
        """Id of the entry on the main stream, the same for every attempt."""
        return self._delivery.entry

    @property
    def attempt(self) -> int:
        """The number of this attempt, counted from 1."""
        return self._delivery.attempt

    @property
    def deadline(self) -> float | None:
        """When the message is given to another attempt, by `time.monotonic` in seconds; None for never."""
        return self._delivery.deadline

    @property
    def fence(self) -> int:
        """As `agentstream.Delivery.fence`."""
        return self._delivery.fence

    @property
    def held(self) -> bool:
        """False once it is known that another consumer may have the message, or its deadline is over."""
        return self._delivery.held and not self._loop.has_ended

    @property
    def settled(self) -> bool:
        """Whether it was decided what becomes of the message."""
        return self._delivery.settled

    @property
    def outcome(self) -> str:
        """As `agentstream.Delivery.outcome`."""
        return self._delivery.outcome

    @property
    def trace_context(self) -> bytes | None:
        """As `agentstream.Delivery.trace_context`."""
        return self._delivery.trace_context

    def once(self, key: str, *, ttl: float = WEEK) -> SyncOnce:
        """As `agentstream.Delivery.once`: `with delivery.once("charge-7") as first:`.

        Raises:
            ValueError: the key is empty, or the time is not positive.
            EffectInDoubt, ConnectionLost, ServerRefused, AccessDenied: on entering or leaving.
        """
        return SyncOnce(self._delivery.once(key, ttl=ttl), self._loop)

    def ack(self) -> bool:
        """As `agentstream.Delivery.ack`."""
        return self._settle(self._delivery.ack)

    def retry(self, after: float | None = None, reason: str = "") -> bool:
        """As `agentstream.Delivery.retry`.

        Raises:
            ValueError: `after` is no time.
        """
        return self._settle(self._delivery.retry, after, reason)

    def dead_letter(self, reason: str) -> bool:
        """As `agentstream.Delivery.dead_letter`."""
        return self._settle(self._delivery.dead_letter, reason)

    def release(self) -> bool:
        """As `agentstream.Delivery.release`."""
        return self._settle(self._delivery.release)

    def extend(self, seconds: float) -> bool:
        """As `agentstream.Delivery.extend`."""
        return self._settle(self._delivery.extend, seconds)

    def reply(self, payload: Any, timeout: float = 30.0) -> None:
        """As `agentstream.Delivery.reply`.

        Raises:
            InvalidMessage, NoRoute, SettingsError, Backpressure, StreamMissing, ConnectionLost,
                AccessDenied, ServerRefused: as there.
        """
        self._loop.run(self._delivery.reply, payload, timeout)

    def __enter__(self) -> Self:
        """Starts handling."""
        # the span is this thread's
        tracing = spans(self.trace_context)
        self._handling = None if tracing is None else tracing.handling(self, self.group)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """Settles by how the block ended, unless it was settled in it."""
        handling, self._handling = self._handling, None
        try:
            swallowed = self._settle(self._delivery.__aexit__, kind, error, trace)
        finally:
            if handling is not None:
                handling.end(error, self.outcome)
        return swallowed or isinstance(error, Exception)

    def _settle(
        self, work: Callable[_P, Coroutine[Any, Any, bool]], *args: _P.args, **kwargs: _P.kwargs
    ) -> bool:
        try:
            return self._loop.complete(work, *args, **kwargs)
        except Ended:
            if self._loop.is_here:
                # whatever was not settled by then was handed back
                return False
            raise


class SyncDeliveries(Iterator[SyncDelivery[Payload]], Generic[Payload]):
    """As `agentstream.Deliveries`: iterate over them, from as many threads as are to work at the same time.

    Iteration ends when the agent stops. Leaving it hands back what was read ahead: at once with `close`, or
    where `with` ends, and soon after nothing refers to the iterator any more.
    """

    def __init__(self, deliveries: consume.Deliveries[Payload], loop: LoopThread) -> None:
        self._deliveries = deliveries
        self._loop = loop

    def __next__(self) -> SyncDelivery[Payload]:
        """The next delivery.

        Raises:
            NoConsumerGroup, SettingsError: as there.
        """
        fetched: list[delivery.Delivery[Payload]] = []
        try:
            self._loop.run(self._fetch, fetched)
        except (StopAsyncIteration, Ended):
            if self._loop.is_here:
                raise StopIteration from None
            raise
        except BaseException:
            # a signal came between the loop, which had one ready, and this thread
            self._loop.begin(self._take_back, fetched)
            raise
        return SyncDelivery(fetched[0], self._loop)

    def close(self) -> None:
        """Ends the iteration, and hands back everything that is not settled."""
        if not self._loop.has_ended:
            self._loop.complete(self._deliveries.aclose)

    def __enter__(self) -> Self:
        """The deliveries; closes them at the end."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes them."""
        self.close()

    async def _fetch(self, fetched: list[delivery.Delivery[Payload]]) -> None:
        fetched.append(await anext(self._deliveries))

    @staticmethod
    async def _take_back(fetched: list[delivery.Delivery[Payload]]) -> None:
        """Hands back what nobody got. It begins after fetching was cancelled, so nothing more comes."""
        for one in fetched:
            await one.release()
