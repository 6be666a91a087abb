"""Batches: deliveries of one handler, gathered until there are enough or the first has waited long enough."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine
from typing import Any

from agentstream.consuming.delivery import Delivery
from agentstream.consuming.isolation import ISOLATE_AFTER
from agentstream.errors import Reject, Retry
from agentstream.handlers.declare import Handler, InThread
from agentstream.telemetry.tracing import spans

_log = logging.getLogger("agentstream")


class _Batch:
    """Deliveries on their way to the handler.

    Attributes:
        deliveries: in the order in which they came.
        complete: set when nothing is added any more.
        over: set when all are settled.
    """

    def __init__(self) -> None:
        self.deliveries: list[Delivery[Any]] = []
        self.complete = asyncio.Event()
        self.over = asyncio.Event()


class Batches:
    """The batches of one handler.

    Whoever has the first delivery of a batch waits for others and calls the handler; those who have the
    others wait until that is over. So each holds on to what it has, and no more is asked for than is free. A
    message that runs alone would wait in vain: it is a batch of its own.

    A message that is lost or late cancels nothing, for the sake of the others: it shows in `Delivery.held`.
    The handler is cancelled when all that it has not settled are lost or late.

    Args:
        handler: the handler.
        size: how many deliveries a batch has at most.
        in_thread: runs functions that block.
    """

    def __init__(self, handler: Handler, size: int, in_thread: InThread) -> None:
        self._handler = handler
        self._size = size
        self._in_thread = in_thread
        self._filling: _Batch | None = None
        self._closed = False

    async def handle(self, delivery: Delivery[Any]) -> None:
        """Adds a delivery to a batch. It is settled when this returns."""
        alone = delivery._entry.unsettled_attempts >= ISOLATE_AFTER  # noqa: SLF001 - a part of it
        batch = None if alone else self._filling
        if batch is not None:
            self._put(batch, delivery)
            await batch.over.wait()
            return
        batch = _Batch()
        if not alone:
            self._filling = batch
        self._put(batch, delivery, last=alone)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._handler.max_wait):
                    await batch.complete.wait()
            self._complete(batch)
            await self._call(batch.deliveries)
        except asyncio.CancelledError:
            self._complete(batch)
            await asyncio.gather(*(each.release() for each in batch.deliveries))
            raise
        finally:
            batch.over.set()

    def close(self) -> None:
        """Nothing more comes: what is gathered waits no longer."""
        self._closed = True
        if self._filling is not None:
            self._complete(self._filling)

    def _put(self, batch: _Batch, delivery: Delivery[Any], *, last: bool = False) -> None:
        batch.deliveries.append(delivery)
        if last or self._closed or len(batch.deliveries) >= self._size:
            self._complete(batch)

    def _complete(self, batch: _Batch) -> None:
        batch.complete.set()
        if self._filling is batch:
            self._filling = None

    async def _call(self, gathered: list[Delivery[Any]]) -> None:
        """Calls the handler, and settles by how it ends what it left unsettled."""
        # those that are lost, late or over their leases by now may be others' already
        deliveries: list[Delivery[Any]] = []
        late: list[Delivery[Any]] = []
        for delivery in gathered:
            (deliveries if delivery._may_begin else late).append(delivery)  # noqa: SLF001 - a part of it
        await asyncio.gather(*(delivery.release() for delivery in late))
        if not deliveries:
            return
        tracing = spans()
        try:
            with contextlib.nullcontext() if tracing is None else tracing.handling_many(deliveries):
                await _while_wanted(deliveries, self._handler(self._in_thread, *deliveries))
        except Retry as asked:
            settling = [delivery.retry(asked.after, asked.reason) for delivery in deliveries]
        except Reject as refused:
            settling = [delivery.dead_letter(refused.reason) for delivery in deliveries]
        except Exception as error:  # noqa: BLE001 - as after any other handler that fails
            _log.warning("%r and %d more: failed", deliveries[0], len(deliveries) - 1, exc_info=error)
            reason = f"{type(error).__name__}: {error}"
            settling = [delivery.retry(reason=reason) for delivery in deliveries]
        else:
            settling = [delivery.ack() for delivery in deliveries]
        await asyncio.gather(*settling)


async def _while_wanted(deliveries: list[Delivery[Any]], call: Coroutine[Any, Any, Any]) -> None:
    """Waits for a call of the handler, at most until no message is left to it.

    Raises:
        TimeoutError: none is, and it was cancelled.
    """
    calling, is_over = asyncio.create_task(call), False

    def look() -> None:
        nonlocal is_over
        if not is_over and not any(delivery._is_wanted for delivery in deliveries):  # noqa: SLF001 - a part of it
            is_over = True
            calling.cancel()

    for delivery in deliveries:
        delivery._on_interrupted = look  # noqa: SLF001 - the same
    try:
        await asyncio.wait({calling})
    finally:
        if not calling.done():
            calling.cancel()
            await asyncio.gather(calling, return_exceptions=True)
    if is_over and calling.cancelled():
        raise TimeoutError("all messages of the batch are lost or late")
    calling.result()
