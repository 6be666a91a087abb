"""Batches: messages for one call of a handler, gathered until it is full or the first waited long enough."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

from agentstream.consuming.attempt import Attempt
from agentstream.consuming.delivery import Delivery
from agentstream.consuming.isolation import ISOLATE_AFTER
from agentstream.errors import Reject, Retry
from agentstream.handlers.declare import Handler, InThread
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

    async def handle(self, attempt: Attempt) -> None:
        """Adds a message to a batch. It is settled when this returns."""
        alone = attempt.hold.unsettled_attempts >= ISOLATE_AFTER
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
        except asyncio.CancelledError:
            self._complete(batch)
            await asyncio.gather(*(each.release() for each in batch.attempts))
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
        try:
            with contextlib.nullcontext() if tracing is None else tracing.handling_many(deliveries):
                await _while_wanted(attempts, self._handler(self._in_thread, *deliveries))
        except Retry as asked:
            settling = [attempt.retry(asked.after, asked.reason) for attempt in attempts]
        except Reject as refused:
            settling = [attempt.dead_letter(refused.reason) for attempt in attempts]
        except Exception as error:  # noqa: BLE001 - as after any other handler that fails
            _log.warning("%r and %d more: failed", attempts[0], len(attempts) - 1, exc_info=error)
            reason = f"{type(error).__name__}: {error}"
            settling = [attempt.retry(reason=reason) for attempt in attempts]
        else:
            settling = [attempt.ack() for attempt in attempts]
        await asyncio.gather(*settling)


async def _while_wanted(attempts: list[Attempt], call: Coroutine[Any, Any, Any]) -> None:
    """Waits for a call of the handler, at most until all its messages are settled, lost or late.

    Raises:
        TimeoutError: they were, and the call was cancelled.
    """
    calling, is_over = asyncio.create_task(call), False

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
    if is_over and calling.cancelled():
        raise TimeoutError("all messages of the batch are lost or late")
    calling.result()
