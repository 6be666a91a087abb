"""The agent: a program sends and consumes messages with it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

from agentstream.consuming.attempt import CURRENT
from agentstream.consuming.fetch import READ_TIMEOUT
from agentstream.consuming.group import Consumer, ConsumerConnections, ConsumerIdentity, ConsumerServices
from agentstream.consuming.presence import Presence
from agentstream.consuming.renewal import Renewal
from agentstream.consuming.session import Consumption, Deliveries
from agentstream.errors import AgentStreamError
from agentstream.handlers.declare import DEFAULT_MAX_WAIT, Handlers, Subscription
from agentstream.handlers.run import Runs, run_cancelled
from agentstream.identity.settings import Settings
from agentstream.payloads.types import Payload
from agentstream.payloads.upcasting import Read, Upcast, message_reader
from agentstream.protocol.envelope import MessageType
from agentstream.protocol.keys import cancel_channel, nudge_channel
from agentstream.sending.producer import Producer
from agentstream.sending.replies import Replies
from agentstream.signals import SIGNAL_EXIT, on_termination
from agentstream.telemetry.health import Health
from agentstream.telemetry.metrics import Observed
from agentstream.transport.client import LARGEST_REPLY

_Handler = TypeVar("_Handler", bound=Callable[..., Any])
_Upcast = TypeVar("_Upcast", bound=Upcast)


class Agent(Producer):
    """One agent of a namespace, as an asynchronous context manager.

    Connections are made when they are first needed, and again when they break: while the server is away,
    calls are delayed and fail only when their deadline is over. Where the settings have a port for probes,
    the agent answers them from entering to leaving, and connects at once.

    Attributes:
        name: the agent's name.
        namespace: its namespace.
    """

    def __init__(self, settings: Settings, *, ends_on_signals: bool) -> None:
        super().__init__(settings)
        self._ends_on_signals = ends_on_signals
        self._control = self._client("control", largest_reply=LARGEST_REPLY)
        self._renewal = Renewal(settings.endpoint, f"agentstream:{self.namespace}.{self.name}:renew")
        self._consumer = Consumer(
            ConsumerIdentity(
                agent=self.name,
                presence=Presence(settings.pod),
                nudges=nudge_channel(settings.installation, self.namespace, self.name),
                cancellations=cancel_channel(settings.installation, self.namespace, self.name),
            ),
            ConsumerConnections(
                write=self._write,
                control=self._control,
                subscriptions=self._subscriptions,
                reading=lambda stream: self._client(
                    f"read-{stream}", READ_TIMEOUT, largest_reply=LARGEST_REPLY
                ),
            ),
            ConsumerServices(
                directory=self._directory,
                keyring=self._keyring,
                contracts=self._contracts,
                replies=Replies(
                    self.namespace, self.name, self._write.call, self._sender.send, self._keyring
                ),
                counters=self._counters,
                renewal=self._renewal,
            ),
            consumed={},
        )
        self._handlers = Handlers()
        self._runs = Runs(self._handlers)
        self._consumptions: list[Consumption] = []
        # those of `running`, beside which the program does something else
        self._beside = weakref.WeakSet[Consumption]()
        self._entered = contextlib.AsyncExitStack()
        self._was_entered = False
        self._task: asyncio.Task[Any] | None = None
        self._ended_by: signal.Signals | None = None

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Self:
        """Makes the agent that the environment names; see `Settings.from_env`.

        In the main thread it handles SIGTERM and SIGINT: the first one calls `stop`, so that iterations over
        `stream_consume` end after the current message. A program that consumes nothing at that moment is
        cancelled.

        Raises:
            SettingsError: something is missing or wrong; the message says what.
        """
        return cls(Settings.from_env(environ), ends_on_signals=True)

    @classmethod
    def connect(cls, settings: Settings) -> Self:
        """Makes the agent that the settings name. Signals are left to the application."""
        return cls(settings, ends_on_signals=False)

    def stream_consume(
        self,
        stream: str,
        *,
        payload: type[Payload] = dict,  # type: ignore[assignment]
        group: str | None = None,
        concurrency: int = 64,
    ) -> Deliveries[Payload]:
        """Consumes a stream: returns an asynchronous iterator over the messages of the agent's group.

        Iterate over it from as many tasks as are to work at the same time. A message of which two attempts
        ended unsettled, as by a crash, is handled alone: the iterator waits until it is settled.

        Args:
            stream: name of the AgentStream.
            payload: the type of `Delivery.payload`: a msgspec.Struct, dataclass, TypedDict or pydantic
                model, in the version that it names as `__schema_version__`. A message that does not fit
                becomes a dead letter.
            group: name of the ConsumerGroup, where the agent has several on the stream.
            concurrency: how many messages this process holds at most, running and prefetched, apart from
                those that wait for others with the same key; what comes beyond that is handed back at once.

        Raises:
            ValueError: the concurrency is not positive.
            TypeError: it is no type of payloads.
        """
        _check(concurrency)
        read = message_reader(payload, None, self._handlers.upcasters)
        return Deliveries(self._consume(Subscription(stream, group), read, concurrency))

    def on(
        self,
        type: MessageType,  # noqa: A002 - the envelope's name
        *,
        stream: str | None = None,
        group: str | None = None,
        version: int | None = None,
        batch_size: int | None = None,
        max_wait: float = DEFAULT_MAX_WAIT,
    ) -> Callable[[_Handler], _Handler]:
        """Declares the decorated function the handler of one type of message; see docs/handlers.md.

        It takes (payload), (payload, delivery), (delivery) or (message), as its annotations say.
        It is asynchronous, or runs in a thread. Its result is the reply, unless it is None.

        Args:
            type: `task_request`, `task_result` or `event`.
            stream: name of the AgentStream; may be left out where the agent consumes only one.
            group: name of the ConsumerGroup, where the agent has several on the stream.
            version: the version of payloads that it takes; by default the `__schema_version__` of their type,
                or the first.
            batch_size: how many messages a call gets at most, in a list; by default one, not in a list.
            max_wait: how many seconds after its first message a batch is handled although it is not full.

        Raises:
            ValueError: there is no such type or it has a handler already, or a number is not positive.
            TypeError: the function's parameters are not those of a handler.
        """

        def declare(function: _Handler) -> _Handler:
            self._handlers.add(
                function,
                type,
                Subscription(stream, group),
                version=version,
                batch_size=batch_size,
                max_wait=max_wait,
            )
            return function

        return declare

    def upcast(
        self,
        type: MessageType,  # noqa: A002 - the envelope's name
        *,
        from_version: int,
    ) -> Callable[[_Upcast], _Upcast]:
        """Declares the decorated function the upcaster of payloads from one version to the next.

        Args:
            type: `task_request`, `task_result` or `event`.
            from_version: the version of the payload that it gets.

        Raises:
            ValueError: there is one already, or there is no such version.
            TypeError: the function is asynchronous.
        """

        def declare(function: _Upcast) -> _Upcast:
            self._handlers.upcasters.add(type, from_version, function)
            return function

        return declare

    async def run(self, *, concurrency: int = 64) -> None:
        """Consumes all streams that have handlers, until the agent stops.

        Args:
            concurrency: how many messages of each stream this process holds at most, and how many handlers
                run at the same time; at least as many as the largest batch has.

        Raises:
            ValueError: there are no handlers, or the concurrency is not positive.
            NoConsumerGroup: the agent consumes no such stream or group, or several where none is named.
            SettingsError: a stream has contracts, and the library that checks them is not installed.
        """
        _check(concurrency)
        await self._runs.run(self._consume, concurrency)

    @contextlib.asynccontextmanager
    async def running(self, *, concurrency: int = 64) -> AsyncIterator[None]:
        """Runs the handlers beside the block, as in a web application; see docs/web-applications.md.

            async with agent, agent.running():
                await serve()

        The end of the block does what SIGTERM does: the agent stops, and what handlers have in hand is
        finished first. Cancelled meanwhile, it hands that back. A signal that the agent handles (`from_env`)
        cancels the block. If `run` ends by itself, that is logged and the agent is not ready from then on,
        but the block goes on: its end raises the error.

        Args:
            concurrency: as of `run`.

        Raises:
            ValueError, NoConsumerGroup, SettingsError: as `run`.
        """
        _check(concurrency)
        self._write.bind()
        running = asyncio.create_task(self._run_beside(concurrency), name="run handlers")
        try:
            yield
        finally:
            self.stop()
            try:
                await asyncio.wait({running})
            except asyncio.CancelledError:
                running.cancel()
                await asyncio.wait({running})
                raise
            finally:
                # an error is logged already: that of the block goes first
                running.cancelled() or running.exception()
        await running

    async def _run_beside(self, concurrency: int) -> None:
        try:
            await self._runs.run(self._consume_beside, concurrency)
        except asyncio.CancelledError:
            if self._stopping:
                raise
            error = run_cancelled()
            self._runs.failed(error)
            raise error from None

    def _consume_beside(self, subscription: Subscription, read: Read, concurrency: int) -> Consumption:
        consumption = self._consume(subscription, read, concurrency)
        self._beside.add(consumption)
        return consumption

    def _consume(self, subscription: Subscription, read: Read, concurrency: int) -> Consumption:
        consumption = Consumption(self._consumer, *subscription, concurrency, read)
        if self._stopping:
            consumption.stop()
        self._consumptions = [*(c for c in self._consumptions if not c.is_over), consumption]
        return consumption

    def stop(self) -> None:
        """Ends `run` and all iterations over `stream_consume` and `notifications`.

        Messages that handlers have can still be settled, and messages can be sent. Any thread may call it, as
        may the handler of a signal.
        """
        self._stopping = True
        self._write.in_loop(self._end_iterations)

    def _end_iterations(self) -> None:
        for mailbox in self._mailboxes:
            mailbox.end()
        for consumption in self._consumptions:
            consumption.stop()

    async def __aenter__(self) -> Self:
        """Starts probes, metrics and signal handling.

        Raises:
            SettingsError: the port for probes cannot be listened on.
            AgentStreamError: it was entered before, or another event loop uses the agent, or the process that
                this one was forked off.
        """
        self._write.bind()
        if self._was_entered:
            # a handler that left the agent would wait for its own end
            raise AgentStreamError("the agent is entered once, around all that uses it: make another one")
        self._was_entered = True
        if self._settings.health_port is not None:
            health = Health(
                self.name,
                self._settings.health_port,
                lambda: self._write.call("PING"),
                lambda: "is stopping" if self._stopping else self._runs.failure,
            )
            await self._entered.enter_async_context(health)
        observed = Observed(self.namespace, self.name, self._counters, self._holding)
        self._entered.enter_context(observed)
        if self._ends_on_signals:
            self._task = asyncio.current_task()
            self._entered.enter_context(on_termination(self._asked_to_end))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Waits for what the handlers of `run` have in hand, hands back the rest, and closes the connections.

        The log says how many messages that were in hand are handed back: those of iterations, and those of
        `run` if this is cancelled.

        Raises:
            SystemExit: a signal ended the program, which waited for something else than messages.
        """
        self.stop()
        try:
            await self._runs.ended()
        finally:
            await self._close()
        if self._ended_by is not None and isinstance(error, asyncio.CancelledError):
            raise SystemExit(SIGNAL_EXIT + self._ended_by) from None

    async def _close(self) -> None:
        try:
            await asyncio.gather(*(consumption.aclose() for consumption in self._consumptions))
            self._renewal.close()
            self._consumer.identity.presence.close()
            await self._requests.close(self._write.call)
            await self._sender.close()
            await asyncio.gather(self._write.close(), self._control.close(), self._subscriptions.close())
        finally:
            await self._entered.aclose()

    @property
    def is_consuming(self) -> bool:
        """Whether messages are consumed: by `run`, `running` or `stream_consume`. Any thread may ask."""
        return any(not consumption.is_over for consumption in self._consumptions)

    @property
    def ends_when_stopped(self) -> bool:
        """Whether `stop` would end `run` or an iteration that the program waits for. Any thread may ask."""
        return any(not c.is_over for c in self._consumptions if c not in self._beside)

    def _asks_itself(self, key: str) -> contextlib.AbstractContextManager[object]:
        noting = contextlib.ExitStack()
        if (attempt := CURRENT.get()) is not None and not attempt.verb:
            for consumption in self._consumptions:
                noting.enter_context(consumption.asks_itself(attempt, key))
        return noting

    def _holding(self) -> Iterator[tuple[str, str, int, int]]:
        return filter(None, [consumption.holding for consumption in self._consumptions])

    def _asked_to_end(self, number: signal.Signals) -> None:
        ends = self.ends_when_stopped
        self.stop()
        if not ends and self._task is not None:
            self._ended_by = number
            self._task.cancel()


def _check(concurrency: int) -> None:
    if concurrency < 1:
        raise ValueError("concurrency must be at least 1")
