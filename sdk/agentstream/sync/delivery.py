"""Deliveries for programs without an event loop."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Generic, Self

from agentstream.consuming import delivery, once, session
from agentstream.consuming.once import WEEK
from agentstream.payloads.types import Payload
from agentstream.protocol.envelope import Message
from agentstream.signals import is_of_signal
from agentstream.sync.loop import Ended, LoopThread
from agentstream.sync.mirror import Call, SyncFace, SyncIterator, mirrors, mirrors_by
from agentstream.telemetry.tracing import spans

if TYPE_CHECKING:
    from agentstream.telemetry.spans import Handling


def _settle(loop: LoopThread, call: Call[bool]) -> bool:
    """Carries out a settlement to its end, even if the wait is interrupted."""
    try:
        return loop.complete(call)
    except Ended:
        if loop.is_here:
            # the agent handed back what was not settled when it ended
            return False
        raise


class SyncOnce(SyncFace[once.Once], of=once.Once):
    """As `agentstream.consuming.once.Once`, as a context manager; see `SyncDelivery.once`."""

    def __enter__(self) -> bool:
        return self._loop.run(self._original.__aenter__)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.complete(self._original.__aexit__, kind, error, trace)


class SyncDelivery(SyncFace[delivery.Delivery[Payload]], Generic[Payload], of=delivery.Delivery):
    """As `agentstream.Delivery`, for a thread: `with delivery:` settles by how the block ends.

    A thread cannot be cancelled. When the lease is lost, and when the group's `delivery.deadline` passes,
    `held` turns False and settling returns False: another consumer has the message, or will have it.
    """

    __slots__ = ("_handling",)

    message: Message
    payload: Payload
    stream: str
    group: str
    cancelled: bool
    entry: str
    attempt: int
    replay: str | None
    fence: int
    settled: bool
    outcome: str
    trace_context: bytes | None

    def __init__(self, original: delivery.Delivery[Payload], loop: LoopThread) -> None:
        super().__init__(original, loop)
        self._handling: Handling | None = None

    @property
    def deadline(self) -> float | None:
        """When the message is given to another attempt, by `time.monotonic` in seconds; None for never."""
        return self._original.deadline

    @property
    def held(self) -> bool:
        """False once another consumer may have the message, or its deadline has passed."""
        return self._original.held and not self._loop.has_ended

    def once(self, key: str, *, ttl: float = WEEK) -> SyncOnce:
        return SyncOnce(self._original.once(key, ttl=ttl), self._loop)

    @mirrors_by(_settle, delivery.Delivery.ack)
    def ack(self) -> None: ...

    @mirrors_by(_settle, delivery.Delivery.retry)
    def retry(self) -> None: ...

    @mirrors_by(_settle, delivery.Delivery.dead_letter)
    def dead_letter(self) -> None: ...

    @mirrors_by(_settle, delivery.Delivery.release)
    def release(self) -> None: ...

    @mirrors_by(_settle, delivery.Delivery.extend)
    def extend(self) -> None: ...

    @mirrors(delivery.Delivery.reply)
    def reply(self) -> None: ...

    def __enter__(self) -> Self:
        tracing = spans(self.trace_context)
        # the span is current in this thread, not in the loop's
        self._handling = None if tracing is None else tracing.handling(self, self.group)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        handling, self._handling = self._handling, None
        try:
            if error is not None and is_of_signal(error):
                _settle(self._loop, self._original.release)
                return False
            swallowed = _settle(self._loop, partial(self._original.__aexit__, kind, error, trace))
        finally:
            if handling is not None:
                handling.end(error, self.outcome)
        return swallowed or isinstance(error, Exception)


class SyncDeliveries(
    SyncIterator[session.Deliveries[Payload]], Iterator[SyncDelivery[Payload]], Generic[Payload]
):
    """As `agentstream.Deliveries`: iterate over them from as many threads as are to work at the same time.

    Iteration ends when the agent stops. Leaving it hands back what was read ahead: at once with `close`, or
    where `with` ends, and soon after nothing refers to the iterator any more.
    """

    def __next__(self) -> SyncDelivery[Payload]:
        """Returns the next delivery.

        Raises:
            NoConsumerGroup, SettingsError: as `agentstream.Deliveries`.
        """
        fetched: list[delivery.Delivery[Payload]] = []
        try:
            self._next(partial(self._fetch, fetched))
        except BaseException:
            # a signal may come after the loop fetched a delivery and before this thread has it
            self._loop.begin(self._take_back, fetched)
            raise
        return SyncDelivery(fetched[0], self._loop)

    async def _fetch(self, fetched: list[delivery.Delivery[Payload]]) -> None:
        fetched.append(await anext(self._original))

    @staticmethod
    async def _take_back(fetched: list[delivery.Delivery[Payload]]) -> None:
        """Releases deliveries that no thread got. Runs after fetching was cancelled, so no more come."""
        for one in fetched:
            await one.release()
