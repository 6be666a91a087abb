"""Consuming a stream: the iterator that agents see, and the life of what works behind it."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Self

from agentstream.consuming.delivery import Delivery
from agentstream.consuming.dispatch import Dispatcher
from agentstream.consuming.fetch import Fetcher
from agentstream.consuming.renewal import Renewal
from agentstream.errors import AgentStreamError, NoConsumerGroup, SettingsError
from agentstream.identity.keyring import Keyring
from agentstream.payloads.contracts import FREE, Contracts
from agentstream.payloads.types import Payload
from agentstream.payloads.upcasting import Read
from agentstream.protocol.envelope import Message
from agentstream.protocol.keys import Nudge
from agentstream.protocol.routes import Consumes
from agentstream.routing.directory import Directory
from agentstream.sending.replies import Replies
from agentstream.telemetry.counters import Counters
from agentstream.transport.client import Client
from agentstream.transport.retry import Backoff, FailureLog
from agentstream.transport.subscriptions import Subscriptions

_ROUTE_PATIENCE = 10.0
_NUDGE_PATIENCE = 1.0


@dataclass(frozen=True, slots=True)
class Consumer:
    """Who consumes, and over which connections.

    Attributes:
        agent: name of the agent.
        name: name of the consumer on the server.
        pod_prefix: what the names of consumers of this process's pod start with.
        directory: where routes are looked up.
        write: the connection for sending and settling.
        control: the connection for sweeping, claiming and starting.
        subscriptions: what is published to the agent.
        nudges: the channel on which the agent's processes wake each other up.
        reading: makes a connection for blocking reads of a stream.
        consumed: what is consumed in this process already, by key and group.
        keyring: the keys of signed streams.
        counters: where it is counted what happens to messages.
        contracts: what payloads must be.
        renewal: renews what is held.
    """

    agent: str
    name: str
    pod_prefix: str
    directory: Directory
    write: Client
    control: Client
    subscriptions: Subscriptions
    nudges: str
    reading: Callable[[str], Client]
    consumed: dict[tuple[str, str], Consumption]
    keyring: Keyring
    counters: Counters
    contracts: Contracts
    replies: Replies
    renewal: Renewal


class Consumption:
    """One group that this process consumes.

    Args:
        consumer: who, and how.
        stream: name of the AgentStream; None for the only one that the agent consumes.
        group: name of the group, where the agent has several on the stream.
        concurrency: how many messages this process holds at most.
        read: reads the payload of a message as its handler wants it.
    """

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
        self._dispatch: Dispatcher | None = None
        self._opened = asyncio.Event()
        self._stopping = asyncio.Event()
        self._reads_nothing = asyncio.Event()
        self._error: BaseException | None = None
        self._workers: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()

    def worked_on(self) -> None:
        """Notes that the task that calls this handles deliveries."""
        if (worker := asyncio.current_task()) is not None:
            self._workers.add(worker)

    def take(self) -> Delivery[Any] | None:
        """The next delivery, if there is one just now."""
        return None if self._dispatch is None else self._dispatch.take()

    async def next(self) -> Delivery[Any]:
        """The next delivery.

        Raises:
            StopAsyncIteration: there will be no more: it was stopped.
            NoConsumerGroup: the agent consumes no such group.
            AgentStreamError: this process consumes the group already.
        """
        self.worked_on()
        if self._life is None and not self._stopping.is_set():
            self._life = asyncio.create_task(self._live(), name=f"consume {self._stream}")
        if self._life is not None:
            await self._opened.wait()
        delivery = None if self._dispatch is None else await self._dispatch.next()
        if delivery is not None:
            return delivery
        if self._error is not None:
            raise self._error
        raise StopAsyncIteration

    @property
    def is_over(self) -> bool:
        """Whether nothing is left of it."""
        return self._stopping.is_set() and (self._life is None or self._life.done())

    @property
    def holding(self) -> tuple[str, str, int, int] | None:
        """Stream and group, how many messages handlers have and how many more are held; for any thread."""
        dispatch = self._dispatch
        if dispatch is None or self.is_over:
            return None
        return dispatch.policy.stream, dispatch.policy.group, *dispatch.holding

    def stop(self) -> None:
        """Reads nothing more and hands back what no handler has; handlers may go on."""
        self._stopping.set()
        if self._dispatch is not None:
            # now, lest a delivery starts that nobody knows of who is about to close this
            self._dispatch.close()

    def cancel_workers(self) -> None:
        """Cancels the tasks that ever asked for a delivery, but for the one that calls this."""
        for worker in set(self._workers) - {asyncio.current_task()}:
            worker.cancel()

    async def quiet(self) -> None:
        """Stops, and waits until nothing is read: a reader would read at once what handlers hand back."""
        self.stop()
        if self._dispatch is not None:
            await self._reads_nothing.wait()

    async def aclose(self) -> None:
        """Stops, hands back what handlers have, too, and waits until nothing is left."""
        await self.quiet()
        if self._dispatch is not None:
            await self._dispatch.abandon()
        await self.ended()

    async def ended(self) -> None:
        """Waits until it is stopped, and everything settled or handed back."""
        if self._life is not None:
            await asyncio.wait({self._life})

    async def _live(self) -> None:
        """From the first delivery that is asked for to the last that is settled."""
        try:
            policy = await self._find()
            if policy is None:
                return
            group = (policy.key, policy.group)
            await self._be_the_only(policy)
            self._consumer.consumed[group] = self
            try:
                await self._consume(policy)
            finally:
                del self._consumer.consumed[group]
        except AgentStreamError as error:
            self._error = error
        finally:
            self._opened.set()
            self._reads_nothing.set()

    async def _find(self) -> Consumes | None:
        """The group's route, however long the server cannot be reached; None if it was stopped before.

        Raises:
            NoConsumerGroup: the operator declares no such group.
            SettingsError: the stream has contracts that cannot be checked here.
        """
        failures, backoff = FailureLog(f"look up who consumes {self._stream or 'what'}"), Backoff(0.1, 2.0)
        while not self._stopping.is_set():
            try:
                # in short waits, so that it can be stopped
                policy = await self._consumer.directory.consumed(self._stream, self._group, _ROUTE_PATIENCE)
                self._contract = await self._consumer.contracts.of(policy)
            except (NoConsumerGroup, SettingsError):
                raise
            except AgentStreamError as error:
                failures.failed(error)
            else:
                return policy
            await asyncio.sleep(backoff.next())
        return None

    async def _be_the_only(self, policy: Consumes) -> None:
        """Waits for an earlier consumption of the group to end: both would go by one name on the server."""
        earlier = self._consumer.consumed.get((policy.key, policy.group))
        if earlier is None:
            return
        if not earlier._stopping.is_set():  # noqa: SLF001 - of the same class
            raise AgentStreamError(
                f"this process consumes {policy.stream} already: iterate over that in several tasks"
            )
        await earlier.ended()

    async def _consume(self, policy: Consumes) -> None:
        who = self._consumer
        reading = who.reading(policy.stream)
        dispatch = Dispatcher(
            agent=who.agent,
            policy=policy,
            consumer=who.name,
            concurrency=self._concurrency,
            read=self._payload,
            settle_call=who.write.call,
            control_call=who.control.call,
            on_doubt=lambda: fetcher.doubt(),  # noqa: PLW0108 - is made below
            on_delayed=lambda seconds: fetcher.look_after(seconds),  # noqa: PLW0108 - the same
            keyring=who.keyring,
            counters=who.counters.group(policy.stream, policy.group),
            replies=who.replies,
            renewal=who.renewal,
            nudge=self._nudge,
        )
        fetcher = Fetcher(
            reading=reading,
            control=who.control,
            calls=dispatch.calls,
            leases=dispatch.leases,
            capacity=dispatch.capacity,
            accept=dispatch.accept,
            refresh=lambda: self._refresh(dispatch),
            pod_prefix=who.pod_prefix,
        )
        unlisten = who.subscriptions.listen(who.nudges, lambda word: self._nudged(word, fetcher))
        self._dispatch = dispatch
        self._opened.set()
        who.renewal.add(dispatch.leases)
        fetching = asyncio.create_task(fetcher.run())
        turning = asyncio.create_task(dispatch.order_poller.run())
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            done, _ = await asyncio.wait({fetching, turning, stopping}, return_when=asyncio.FIRST_COMPLETED)
            # only a mistake in this package ends fetching or asking by itself
            self._error = next((task.exception() for task in done if task.exception()), self._error)
        finally:
            self.stop()
            unlisten()
            for task in (fetching, turning, stopping):
                task.cancel()
            await asyncio.gather(fetching, turning, stopping, return_exceptions=True)
            await reading.close()
            handed_back = await fetcher.release_strays(dispatch.settler.release) + len(dispatch.leases)
            self._reads_nothing.set()
            await dispatch.hand_back()
            if handed_back:
                await self._nudge()
            await dispatch.ended()
            who.renewal.remove(dispatch.leases)

    async def _nudge(self) -> None:
        """Tells the agent's consumers that there is something to claim."""
        with contextlib.suppress(AgentStreamError, TimeoutError):
            async with asyncio.timeout(_NUDGE_PATIENCE):
                await self._consumer.control.call("PUBLISH", self._consumer.nudges, Nudge.SWEEP)

    def _nudged(self, word: bytes, fetcher: Fetcher) -> None:
        """What this process would find out by itself, only later."""
        if word == Nudge.SWEEP.encode():
            fetcher.sweep_now()
        elif word == Nudge.ROUTES.encode():
            self._consumer.directory.forget()
            fetcher.look_again()

    async def _refresh(self, dispatch: Dispatcher) -> None:
        """Follows changes of the group's policy; a group that is not declared any more keeps its last one."""
        with contextlib.suppress(NoConsumerGroup):
            policy = await self._consumer.directory.consumed(self._stream, self._group, 0)
            if policy.key == dispatch.policy.key:
                try:
                    self._contract = await self._consumer.contracts.of(policy)
                except SettingsError as error:
                    # what cannot be checked is not handled either
                    self._error = error
                    self.stop()
                    raise
                dispatch.follow(policy)

    def _payload(self, message: Message) -> Any:
        """The payload as the handler wants it, which needs not be what the contract is about.

        Raises:
            InvalidMessage: no handler takes the message, or its payload is not what it must be.
        """
        self._contract.check(message)
        return self._read(message)


class Deliveries(AsyncIterator[Delivery[Payload]], Generic[Payload]):
    """The deliveries of one group: iterate over them, from as many tasks as are to work at the same time.

    Iteration ends when the agent stops. Leaving it hands back what was read ahead: at once with `aclose`, or
    where `async with` ends, and soon after nothing refers to the iterator any more.
    """

    def __init__(self, consumption: Consumption) -> None:
        self._consumption = consumption
        self._loop: asyncio.AbstractEventLoop | None = None

    def __aiter__(self) -> Self:
        """Itself; the task that iterates is known from here on."""
        self._consumption.worked_on()
        return self

    async def __anext__(self) -> Delivery[Payload]:
        """The next delivery.

        Raises:
            NoConsumerGroup: the agent consumes no such group; the message says what is declared.
            SettingsError: the stream has contracts, and what checks them is not installed.
        """
        delivery = self._consumption.take()
        if delivery is not None:
            return delivery
        self._loop = asyncio.get_running_loop()
        return await self._consumption.next()

    async def aclose(self) -> None:
        """Ends the iteration, and hands back everything that is not settled."""
        await self._consumption.aclose()

    async def __aenter__(self) -> Self:
        """The deliveries; closes them at the end."""
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
