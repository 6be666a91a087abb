"""Consuming: the iterator over a group's deliveries, and the consumption behind it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import weakref
from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import Any, Generic, Self

from agentstream.consuming.attempt import Attempt
from agentstream.consuming.delivery import Delivery
from agentstream.consuming.dispatch import Dispatcher
from agentstream.consuming.group import Consumer, GroupSession
from agentstream.errors import AgentStreamError, NoConsumerGroup, NoReply, SettingsError
from agentstream.payloads.contracts import FREE
from agentstream.payloads.types import Payload
from agentstream.payloads.upcasting import Read
from agentstream.protocol.envelope import Message
from agentstream.protocol.routes import Consumes
from agentstream.transport.retry import Backoff, FailureLog

_ROUTE_PATIENCE = 10.0
_EARLIER_PATIENCE = 1.0
_log = logging.getLogger("agentstream")


class Consumption:
    """One group that this process consumes; without a name, the only stream and group of the agent."""

    def __init__(
        self, consumer: Consumer, stream: str | None, group: str | None, concurrency: int, read: Read
    ) -> None:
        self._consumer = consumer
        self._stream = stream
        self._group = group
        self._concurrency = concurrency
        self._read = read
        self._contract = FREE
        self._life: asyncio.Task[None] | None = None
        self._dispatcher: Dispatcher | None = None
        self._opened = asyncio.Event()
        self._stopping = asyncio.Event()
        self._read_ended = asyncio.Event()
        self._error: BaseException | None = None
        self._asking: set[Attempt] = set()
        self._workers: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()

    def add_worker(self) -> None:
        """Notes that the current task handles deliveries."""
        if (worker := asyncio.current_task()) is not None:
            self._workers.add(worker)

    def take(self) -> Attempt | None:
        """Begins and returns the next attempt, if one can begin just now."""
        return None if self._dispatcher is None else self._dispatcher.take()

    async def next(self) -> Attempt | None:
        """Waits for the next attempt; None if the consumption was stopped.

        Raises:
            NoConsumerGroup: the agent consumes no such group.
            AgentStreamError: this process consumes the group already.
        """
        self.add_worker()
        self._consumer.connections.write.bind()
        if self._life is None and not self._stopping.is_set():
            self._life = asyncio.create_task(self._live(), name=f"consume {self._stream}")
            self._life.add_done_callback(self._ended)
        if self._life is not None:
            await self._opened.wait()
        attempt = None if self._dispatcher is None else await self._dispatcher.next()
        if attempt is None and self._error is not None:
            raise self._error
        return attempt

    @contextlib.contextmanager
    def asks_itself(self, attempt: Attempt, key: str) -> Iterator[None]:
        """Notes that a handler waits for the answer to a message on the stream `key`.

        Raises:
            NoReply: it is the stream that is consumed here, and every handler waits so: nobody could answer.
        """
        dispatcher = self._dispatcher
        if dispatcher is None or key != dispatcher.policy.key or not dispatcher.runs(attempt):
            yield
            return
        self._asking.add(attempt)
        try:
            handlers = sum(not worker.done() for worker in self._workers)
            if len(self._asking) >= handlers:
                raise NoReply(
                    f"this process asks itself, and all its {handlers} handlers of"
                    f" {dispatcher.policy.stream} wait for such answers: raise the concurrency, or go on when"
                    " a task_result comes"
                )
            yield
        finally:
            self._asking.discard(attempt)

    @property
    def is_over(self) -> bool:
        """Whether it was stopped and all its entries are settled or handed back."""
        return self._stopping.is_set() and (self._life is None or self._life.done())

    @property
    def holding(self) -> tuple[str, str, int, int] | None:
        """Stream and group, how many messages handlers have, and how many more are held; for any thread."""
        dispatcher = self._dispatcher
        if dispatcher is None or self.is_over:
            return None
        return dispatcher.policy.stream, dispatcher.policy.group, *dispatcher.holding

    def stop(self) -> None:
        """Stops reading and hands back the messages that no handler has; handlers may go on."""
        self._stopping.set()
        if self._dispatcher is not None:
            # at once: no attempt may begin that the caller, who is about to close this, does not know of
            self._dispatcher.close()

    def cancel_workers(self) -> None:
        """Cancels the tasks that ever asked for a delivery, except for the current one."""
        for worker in set(self._workers) - {asyncio.current_task()}:
            worker.cancel()

    async def stop_reading(self) -> None:
        """Stops, and waits until nothing is read: a reader would read what handlers hand back at once."""
        self.stop()
        if self._dispatcher is not None:
            await self._read_ended.wait()

    async def aclose(self) -> None:
        """Stops, hands back the messages that handlers have too, and waits until all are settled."""
        await self.stop_reading()
        if self._dispatcher is not None:
            await self._dispatcher.abandon()
        await self.ended()

    async def ended(self) -> None:
        """Waits until it is stopped, and all messages are settled or handed back."""
        if self._life is not None:
            await asyncio.wait({self._life})

    async def _live(self) -> None:
        """Consumes, from the first delivery that is asked for to the last that is settled."""
        try:
            policy = await self._find_route()
            if policy is None:
                return
            await self._wait_for_earlier(policy)
            if not self._stopping.is_set():
                await self._consume(policy)
        except Exception as error:  # noqa: BLE001 - whoever waits for a delivery raises it
            self._error = error

    def _ended(self, life: asyncio.Task[None]) -> None:
        """Wakes up who waits. The task may have been cancelled before it began."""
        if life.cancelled():
            self._error = self._error or _cancelled()
        self._opened.set()
        self._read_ended.set()

    async def _find_route(self) -> Consumes | None:
        """Looks up the group's route until the server answers; None if this was stopped before.

        Raises:
            NoConsumerGroup: the operator declares no such group.
            SettingsError: the stream has contracts that cannot be checked here.
        """
        services = self._consumer.services
        failures = FailureLog(f"look up the consumer group of {self._stream or 'the only stream'}")
        backoff = Backoff(0.1, 2.0)
        while not self._stopping.is_set():
            try:
                # in short waits, so that it can be stopped
                policy = await services.directory.consumed(self._stream, self._group, _ROUTE_PATIENCE)
                services.keyring.check_named(policy)
                policy = services.keyring.enforced(policy)
                self._contract = await services.contracts.of(policy)
            except (NoConsumerGroup, SettingsError):
                raise
            except AgentStreamError as error:
                failures.failed(error)
            else:
                return policy
            await asyncio.sleep(backoff.next())
        return None

    async def _wait_for_earlier(self, policy: Consumes) -> None:
        """Waits for an earlier consumption of the group to end: both have one name on the server."""
        earlier = self._consumer.consumed.get((policy.key, policy.group))
        if earlier is None:
            return
        if not earlier.dispatcher.is_closed:
            raise AgentStreamError(
                f"this process consumes {policy.stream} already: iterate over that in several tasks"
            )
        ends = {asyncio.create_task(event.wait()) for event in (earlier.closed, self._stopping)}
        try:
            done, _ = await asyncio.wait(ends, timeout=_EARLIER_PATIENCE, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                _log.warning(
                    "%s: an earlier iteration has a message in hand, for whose end this one waits: settle it,"
                    " as by `async with delivery`, or close that iteration",
                    policy.stream,
                )
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in ends:
                end.cancel()

    async def _consume(self, policy: Consumes) -> None:
        session = GroupSession(self._consumer, policy, self._concurrency, self._payload, self._refresh)
        self._dispatcher = session.dispatcher
        self._opened.set()
        try:
            self._error = await session.fetch(self._stopping) or self._error
        except asyncio.CancelledError:
            # at once: who asks for the next delivery does not wait for what follows
            self._error = _cancelled()
            raise
        finally:
            self.stop()
            await session.close(self._read_ended.set)

    async def _refresh(self) -> None:
        """Follows changes of the group's policy; a group that is not declared any more keeps its last one."""
        services, dispatcher = self._consumer.services, self._dispatcher
        with contextlib.suppress(NoConsumerGroup):
            declared = await services.directory.consumed(self._stream, self._group, 0)
            policy = services.keyring.enforced(declared)
            if dispatcher is not None and _is_of(policy, dispatcher.policy):
                try:
                    self._contract = await services.contracts.of(policy)
                except SettingsError as error:
                    # messages that cannot be checked must not be handled
                    self._error = error
                    self.stop()
                    raise
                dispatcher.follow(policy)

    def _payload(self, message: Message) -> Any:
        """Reads a payload as the handler wants it, after checking it by the stream's contract.

        Raises:
            InvalidMessage: no handler takes the message, or its payload violates contract or type.
        """
        self._contract.check(message)
        return self._read(message)


def _is_of(policy: Consumes, known: Consumes) -> bool:
    """Whether a policy is that of the same group: under another name, a stream would have other keys."""
    return (policy.stream, policy.key, policy.group) == (known.stream, known.key, known.group)


def _cancelled() -> AgentStreamError:
    return AgentStreamError("the task that consumes was cancelled by the program: cancel its own tasks only")


class Deliveries(AsyncIterator[Delivery[Payload]], Generic[Payload]):
    """The deliveries of one group: iterate over them, from as many tasks as are to work at the same time.

    Iteration ends when the agent stops. Leaving it hands back prefetched messages: at once with `aclose`, or
    where `async with` ends, and soon after nothing refers to the iterator any more.
    """

    def __init__(self, consumption: Consumption) -> None:
        self._consumption = consumption
        self._loop: asyncio.AbstractEventLoop | None = None

    def __aiter__(self) -> Self:
        """Returns itself; the current task counts as one that handles deliveries."""
        self._consumption.add_worker()
        return self

    async def __anext__(self) -> Delivery[Payload]:
        """Waits for the next delivery.

        Raises:
            NoConsumerGroup: the agent consumes no such group; the error names the declared ones.
            SettingsError: the stream has contracts, and the library that checks them is not installed.
        """
        attempt = self._consumption.take()
        if attempt is None:
            self._loop = asyncio.get_running_loop()
            attempt = await self._consumption.next()
            if attempt is None:
                raise StopAsyncIteration
        return Delivery(attempt)

    async def aclose(self) -> None:
        """Ends the iteration, and hands back all messages that are not settled."""
        await self._consumption.aclose()

    async def __aenter__(self) -> Self:
        """Returns the deliveries; closes them at the end."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes them."""
        await self.aclose()

    def __del__(self) -> None:
        """Stops reading for a loop that was left with `break`."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._consumption.stop)
