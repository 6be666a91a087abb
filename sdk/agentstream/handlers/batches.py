"""Batches: messages for one call of a handler, gathered until it is full or the first waited long enough."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from agentstream.consuming.attempt import Attempt
from agentstream.consuming.delivery import Delivery
from agentstream.consuming.failures import log_failure
from agentstream.consuming.isolation import is_suspect
from agentstream.errors import Reject, Retry
from agentstream.handlers.declare import Handler, InThread
from agentstream.signals import is_of_signal
from agentstream.telemetry.tracing import spans

_log = logging.getLogger("agentstream")


@dataclass(slots=True, eq=False)
class _Batch:
    """The attempts of one batch: `complete` is set when no more are added, `over` when all are settled."""

    attempts: list[Attempt] = field(default_factory=list)
    complete: asyncio.Event = field(default_factory=asyncio.Event)
    over: asyncio.Event = field(default_factory=asyncio.Event)


class Batches:
    """The batches of one handler.

    The worker with the first message of a batch waits for others and calls the handler; workers with the
    other messages wait until the call is over. So no more messages are asked for than workers are free. A
    suspect message, which runs alone, would wait for others in vain: it is a batch of its own.

    A message that is lost or late does not cancel the call, for the sake of the others: it shows in
    `Delivery.held`. The call is cancelled when all messages that it has not settled are lost or late.
    """

    def __init__(self, handler: Handler, size: int, in_thread: InThread) -> None:
        self._handler = handler
        self._size = size
        self._in_thread = in_thread
        self._filling: _Batch | None = None
        self._closed = False
        self._said = False

    async def handle(self, attempt: Attempt) -> None:
        """Adds a message to a batch. It is settled when this returns."""
        alone = is_suspect(attempt.hold, attempt.policy.max_deliveries)
        batch = None if alone else self._filling
        if batch is not None:
            self._put(batch, attempt)
            await batch.over.wait()
            return
        batch = _Batch()
        if not alone:
            self._filling = batch
        self._put(batch, attempt, last=alone)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._handler.max_wait):
                    await batch.complete.wait()
            self._complete(batch)
            await self._call(batch.attempts)
        except asyncio.CancelledError as error:
            self._complete(batch)
            if attempt.is_ending is None or attempt.is_ending():
                await asyncio.gather(*(each.release() for each in batch.attempts))
            else:
                # a handler cancelled the worker: handed back, it would do so again and again
                await self._fail(batch.attempts, error)
            raise
        finally:
            batch.over.set()

    def close(self) -> None:
        """Has the gathered messages handled at once, as no more come."""
        self._closed = True
        if self._filling is not None:
            self._complete(self._filling)

    def _put(self, batch: _Batch, attempt: Attempt, *, last: bool = False) -> None:
        batch.attempts.append(attempt)
        if last or self._closed or len(batch.attempts) >= self._size:
            self._complete(batch)

    def _complete(self, batch: _Batch) -> None:
        batch.complete.set()
        if self._filling is batch:
            self._filling = None

    async def _call(self, gathered: list[Attempt]) -> None:
        """Calls the handler, and settles the messages that it left unsettled by how it ends."""
        # other consumers may have messages by now that are lost, late or over their leases
        attempts = [attempt for attempt in gathered if attempt.may_begin]
        await asyncio.gather(*(attempt.release() for attempt in gathered if attempt not in attempts))
        if not attempts:
            return
        deliveries: list[Delivery[Any]] = [Delivery(attempt) for attempt in attempts]
        tracing = spans()
        handling = None if tracing is None else tracing.handling_many(deliveries)
        error: BaseException | None = asyncio.CancelledError()
        try:
            error = await _while_wanted(attempts, lambda: self._called(deliveries))
        finally:
            if handling is not None:
                handling.end(error)
        if error is None:
            await asyncio.gather(*(attempt.ack() for attempt in attempts))
            return
        await self._fail(attempts, error)

    async def _fail(self, attempts: list[Attempt], error: BaseException) -> None:
        """Settles the messages of a call that failed, but for those that it settled."""
        unsettled = [attempt for attempt in attempts if not attempt.verb]
        outcomes = [f"{attempt.title}, {attempt.fail(error)}" for attempt in unsettled]
        if not isinstance(error, Retry | Reject):
            first = outcomes[0] if outcomes else f"{attempts[0].title}, after all were settled"
            more = f" (and {len(attempts) - 1} more of its batch)" if len(attempts) > 1 else ""
            log_failure(logging.WARNING, first + more, error)
        await asyncio.gather(*(attempt.hold.settled() for attempt in unsettled))

    async def _called(self, deliveries: list[Delivery[Any]]) -> None:
        returned = await self._handler(self._in_thread, *deliveries)
        if returned is not None and not self._said:
            self._said = True
            _log.warning(
                "%s: the handler returned %s, which is ignored: a handler of batches uses delivery.reply",
                deliveries[0].stream,
                type(returned).__name__,
            )


async def _while_wanted(attempts: list[Attempt], call: Callable[[], Awaitable[None]]) -> BaseException | None:
    """Waits for a call of the handler, at most until all its messages are settled, lost or late.

    Returns the error by which it ended, whatever that is, and TimeoutError if nothing was left to do.
    """
    # not the result of the task, as asyncio gives some errors a meaning of its own
    ended: list[BaseException | None] = []
    is_over = False

    async def run() -> None:
        try:
            await call()
        except BaseException as error:
            ended.append(error)
            if is_of_signal(error):
                raise
        else:
            ended.append(None)

    calling = asyncio.create_task(run())

    def look() -> None:
        nonlocal is_over
        if not is_over and not any(attempt.is_wanted for attempt in attempts):
            is_over = True
            calling.cancel()

    for attempt in attempts:
        attempt.on_interrupted = look
    try:
        await asyncio.wait({calling})
    finally:
        if not calling.done():
            calling.cancel()
            await asyncio.gather(calling, return_exceptions=True)
    (error,) = ended or [asyncio.CancelledError()]
    if is_over and isinstance(error, asyncio.CancelledError):
        return TimeoutError("all messages of the batch are lost or late")
    return error
