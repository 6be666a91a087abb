"""Running handlers: on all streams that have some, up to the concurrency at a time."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from agentstream.consuming.attempt import Attempt, is_current
from agentstream.consuming.delivery import Delivery
from agentstream.consuming.session import Consumption
from agentstream.errors import AgentStreamError, error_text
from agentstream.handlers.batches import Batches
from agentstream.handlers.declare import Handler, Handlers, Subscription
from agentstream.payloads.upcasting import Read
from agentstream.threads import executor

Consume = Callable[[Subscription, Read, int], Consumption]
"""Begins to consume a subscription; takes the reader of its payloads and the concurrency."""

_log = logging.getLogger("agentstream")


class Runs:
    """The runs of one agent's handlers.

    Attributes:
        failure: why there are no messages for handlers, as the last run ended by itself; else empty.
            While another run is under way, it is empty, too.
    """

    def __init__(self, handlers: Handlers) -> None:
        self._handlers = handlers
        self._count = 0
        self._none = asyncio.Event()
        self._none.set()
        self._failure = ""

    @property
    def failure(self) -> str:  # noqa: D102 - see the class
        return "" if self._count else self._failure

    async def run(self, consume: Consume, concurrency: int) -> None:
        """Runs all handlers until the agent stops; see `Agent.run`."""
        self._failure = ""
        self._count += 1
        self._none.clear()
        try:
            await _run(self._handlers, consume, concurrency)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self.failed(error)
            raise
        finally:
            self._count -= 1
            if not self._count:
                self._none.set()

    def failed(self, error: BaseException) -> None:
        """Notes that a run ended by itself, and logs it."""
        self._failure = f"handles no messages, as run() has ended: {error_text(error)}"
        expected = isinstance(error, AgentStreamError | ValueError)
        _log.error("run() has ended: %s", error_text(error), exc_info=None if expected else error)

    async def ended(self) -> None:
        """Waits until no run is under way."""
        await self._none.wait()

    def abandon(self) -> None:
        """Has nobody wait for runs that are under way."""
        self._none.set()


async def _run(handlers: Handlers, consume: Consume, concurrency: int) -> None:
    if not handlers.subscriptions:
        raise ValueError("there are no handlers: declare some with @agent.on")
    running = asyncio.current_task()
    assert running is not None  # noqa: S101 - a coroutine of a task

    async def serve(subscription: Subscription) -> None:
        try:
            await _serve(handlers, subscription, consume, concurrency)
        except asyncio.CancelledError:
            if running.cancelling():
                raise
            # a group of tasks would go on without it, and end as if it had been asked to
            raise run_cancelled() from None

    try:
        async with asyncio.TaskGroup() as serving:
            for subscription in handlers.subscriptions:
                serving.create_task(serve(subscription))
    except BaseExceptionGroup as errors:
        raise _first(errors) from None


async def _serve(handlers: Handlers, subscription: Subscription, consume: Consume, concurrency: int) -> None:
    """Runs the handlers of one subscription."""
    by_type = handlers.of(subscription)
    sizes = {name: handler.batch_size for name, handler in by_type.items() if handler.batch_size is not None}
    # a batch must be able to fill up: each of its messages occupies a worker
    concurrency = max([concurrency, *sizes.values()])
    threads = _Threads(concurrency)
    batches = {name: Batches(by_type[name], size, threads.run) for name, size in sizes.items()}
    consumption = consume(subscription, handlers.reader(subscription), concurrency)

    async def work() -> None:
        parent = asyncio.current_task()
        assert parent is not None  # noqa: S101 - a coroutine of a task
        worker = _Worker(consumption, by_type, batches, threads, parent.cancelling)
        async with asyncio.TaskGroup() as workers:
            for _ in range(concurrency):
                workers.create_task(worker.work())

    working = asyncio.create_task(work())
    try:
        await asyncio.shield(working)
    except asyncio.CancelledError:
        await consumption.stop_reading()
        raise
    finally:
        working.cancel()
        await asyncio.wait({working})
        await consumption.aclose()
        threads.close()


@dataclass(slots=True)
class _Worker:
    """Handles messages, in as many tasks as call `work`. No handler can end them, only `is_ending`."""

    consumption: Consumption
    by_type: dict[str, Handler]
    batches: dict[str, Batches]
    threads: _Threads
    is_ending: Callable[[], int]
    ignored: set[str] = field(default_factory=set)

    async def work(self) -> None:
        """Handles messages one after the other."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine of a task
        attempt: Attempt | None
        while True:
            try:
                attempt = self.consumption.take() or await self.consumption.next()
                if attempt is None:
                    break
                await self._handle(attempt)
            except (asyncio.CancelledError, GeneratorExit):
                if self.is_ending() or not is_current(task):
                    raise
            # a handler may have cancelled the task that ran it, or does so after its end
            while task.cancelling() and not self.is_ending():
                task.uncancel()
        for batch in self.batches.values():
            batch.close()

    async def _handle(self, attempt: Attempt) -> None:
        delivery: Delivery[Any] = Delivery(attempt)
        message_type = delivery.message.type
        batch = self.batches.get(message_type)
        attempt.is_ending = self.is_ending
        if batch is not None:
            await batch.handle(attempt)
            return
        async with delivery:
            answer = await self.by_type[message_type](self.threads.run, delivery)
            if answer is not None:
                if attempt.takes_answer(answer):
                    await attempt.answer_returned(answer)
                elif message_type not in self.ignored:
                    self.ignored.add(message_type)
                    _log.warning(
                        "%r: the handler returned %s, which is ignored here and from now on: an answer is a"
                        " payload, and without one a handler returns None",
                        delivery,
                        type(answer).__name__,
                    )


class _Threads:
    """Threads for handlers that block: up to the concurrency, started when needed."""

    def __init__(self, most: int) -> None:
        self._pool = executor(most, "handler")

    async def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Runs a function, and returns its result even if the caller is cancelled: it cannot be interrupted.

        What it has done must not be done again. A second cancellation abandons it.
        """
        call = partial(contextvars.copy_context().run, _called, function, *arguments)
        running = asyncio.get_running_loop().run_in_executor(self._pool, call)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            return await running

    def close(self) -> None:
        """Ends the threads."""
        self._pool.shutdown(wait=False)


def _called(function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except (StopIteration, GeneratorExit, KeyboardInterrupt) as error:
        # no future can carry the first two, and no signal raises the last one here
        raise RuntimeError(f"the handler raised {error_text(error)}") from error


def run_cancelled() -> AgentStreamError:
    """The error of a run whose tasks somebody cancelled who had not begun them."""
    return AgentStreamError("a task of run() was cancelled by the program: cancel its own tasks only")


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
