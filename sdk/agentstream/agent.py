"""The agent: what a program sends with and consumes from."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
import time
import uuid
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from agentstream.consume import Consumer, Consumption, Deliveries
from agentstream.counters import Counters
from agentstream.directory import Directory
from agentstream.errors import NoRoute
from agentstream.health import Health
from agentstream.intake import READ_TIMEOUT
from agentstream.keys import nudge_channel, routes_key
from agentstream.message import BROADCAST, Message, MessageType
from agentstream.send import DEFAULT_TIMEOUT, Sender, SentMessage
from agentstream.pushes import Pushes
from agentstream.settings import Settings
from agentstream.signals import on_termination
from agentstream.signing import Keyring
from agentstream.wire import Wire

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_SIGNAL_EXIT = 128
# Milliseconds since 1970 at which agents of this process started, no two the same.
_starts = itertools.count(int(time.time() * 1000))


class Agent:
    """One agent of a namespace, as an asynchronous context manager.

    Nothing is connected before it is needed, and everything is connected again when it breaks: a server that
    is away delays, it is no error until a deadline is over. Where the settings have a port for probes, the
    agent answers them from entering to leaving, and connects at once.

    Attributes:
        name: the agent's name.
        namespace: its namespace.
    """

    def __init__(self, settings: Settings, *, ends_on_signals: bool) -> None:
        self.name = settings.agent
        self.namespace = settings.namespace
        self._settings = settings
        self._ends_on_signals = ends_on_signals
        self._write = self._wire("write")
        self._control = self._wire("control")
        directory = Directory(self._write, routes_key(settings.installation, self.namespace), self.name)
        directory = Directory(self._write, routes_key(settings.installation, self.namespace), self.name)
        self._counters = Counters()
        keyring = Keyring(settings.keys_of)
        self._sender = Sender(self._write, directory, keyring)
        self._sender = Sender(self._write, directory)
        self._pushes = Pushes(lambda **listening: self._wire("push", **listening))
        self._consumer = Consumer(
            agent=self.name,
            name=f"{settings.pod}.{base36(next(_starts))}",
            pod_prefix=f"{settings.pod}.",
            directory=directory,
            write=self._write,
            control=self._control,
            pushes=self._pushes,
            nudges=nudge_channel(settings.installation, self.namespace, self.name),
            keyring=keyring,
            counters=self._counters,
            reading=lambda stream: self._wire(f"read-{stream}", READ_TIMEOUT),
            consumed={},
        )
        self._consumptions: list[Consumption] = []
        self._stopping = False
        self._entered = contextlib.AsyncExitStack()
        self._task: asyncio.Task[Any] | None = None
        self._ended_by: signal.Signals | None = None

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Agent:
        """The agent that the environment names; see `Settings.from_env`.

        In the main thread it takes care of SIGTERM and SIGINT: the first one calls `stop`, so that iterations
        over `stream_consume` end after the message in hand. A program that consumes nothing at that moment is
        cancelled.

        Raises:
            SettingsError: something is missing or wrong; the message says what.
        """
        return cls(Settings.from_env(environ), ends_on_signals=True)

    @classmethod
    def connect(cls, settings: Settings) -> Agent:
        """The agent that the settings name. Signals are left to the application."""
        return cls(settings, ends_on_signals=False)

    async def send_message(
        self,
        *,
        type: MessageType,  # noqa: A002 - the envelope's name
        payload: dict[str, Any],
        to: str | None = None,
        stream: str | None = None,
        correlation_id: str | None = None,
        reply_to: str | None = None,
        expires_at: float | None = None,
        timeout: float = DEFAULT_TIMEOUT,  # noqa: ASYNC109 - the deadline decides what is repeated
    ) -> SentMessage:
        """Sends one message. It is on the stream exactly once when this returns.

        Args:
            type: `task_request`, `task_result` or `event`.
            payload: the data: what JSON can hold.
            to: the agent that is to handle it; `broadcast` for all groups of the broadcast stream.
            stream: name of the AgentStream, where several lead to the addressee; alone, for all its groups.
            correlation_id: id of the message that this one answers or belongs to.
            reply_to: where an answer is expected.
            expires_at: when it loses its meaning, in seconds since 1970.
            timeout: for how many seconds to try; up to ten of them for a route that is not declared yet.

        Raises:
            InvalidMessage: an argument does not fit the envelope's schema.
            NoRoute: no declared stream leads to the addressee, or several do.
            Backpressure: the stream was full until the deadline.
            StreamMissing: the stream did not exist until the deadline.
            ConnectionLost: the server did not answer until the deadline; whether it has the message is not
                known.
            AccessDenied: the server refused credentials or rights until the deadline.
            ServerRefused: the server refused for another reason until the deadline.
        """
        if to is None and stream is None:
            raise NoRoute("a message needs an addressee, a stream, or both: to= or stream=")
        message = Message(
            v=1,
            id=str(uuid.uuid4()),
            sender=self.name,
            to=to or BROADCAST,
            type=type,
            payload=payload,
            timestamp=time.time(),
            correlation_id=correlation_id,
            reply_to=reply_to,
            expires_at=expires_at,
        )
        return await self._sender.send(message, stream, timeout)

    def stream_consume(self, stream: str, *, group: str | None = None, concurrency: int = 64) -> Deliveries:
        """The messages that the agent's group on a stream is to handle, as an asynchronous iterator.

        Iterate over it from as many tasks as are to work at the same time. From its third attempt on a
        message is handed out alone: the iterator waits until it is settled.

        Args:
            stream: name of the AgentStream.
            group: name of the ConsumerGroup, where the agent has several on the stream.
            concurrency: how many messages this process holds at most, running and read ahead.

        Raises:
            ValueError: the concurrency is not positive.
        """
        if concurrency < 1:
            raise ValueError("concurrency must be at least 1")
        consumption = Consumption(self._consumer, stream, group, concurrency)
        if self._stopping:
            consumption.stop()
        self._consumptions = [*(c for c in self._consumptions if not c.is_over), consumption]
        return Deliveries(consumption)

    def stop(self) -> None:
        """Ends all iterations over `stream_consume`. What is in hand can be settled, and messages be sent."""
        self._stopping = True
        for consumption in self._consumptions:
            consumption.stop()

    async def __aenter__(self) -> Self:
        """The agent.

        Raises:
            SettingsError: the port for probes cannot be listened on.
        """
        if self._settings.health_port is not None:
            health = Health(
                self.name,
                self._settings.health_port,
                lambda: self._write.call("PING"),
                lambda: self._stopping,
            )
            await self._entered.enter_async_context(health)
        if self._ends_on_signals:
            self._task = asyncio.current_task()
            self._entered.enter_context(on_termination(self._asked_to_end))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Hands back what is not settled, and closes the connections."""
        self._stopping = True
        try:
            await asyncio.gather(*(consumption.aclose() for consumption in self._consumptions))
            await asyncio.gather(self._write.close(), self._control.close(), self._pushes.close())
        finally:
            await self._entered.aclose()
        if self._ended_by is not None and isinstance(error, asyncio.CancelledError):
            raise SystemExit(_SIGNAL_EXIT + self._ended_by) from None

    async def _crash(self) -> None:
        """Ends as by SIGKILL, for tests: nothing more is said to the server, so that nothing is handed back."""
        await asyncio.gather(self._write.close(), self._control.close())
        for consumption in self._consumptions:
            consumption.cancel_workers()
        await self.__aexit__(None, None, None)

    def _asked_to_end(self, number: signal.Signals) -> None:
        consuming = any(not consumption.is_over for consumption in self._consumptions)
        self.stop()
        if not consuming and self._task is not None:
            self._ended_by = number
            self._task.cancel()

    def _wire(self, role: str, timeout: float = 5.0, **listening: Any) -> Wire:
        name = f"agentstream:{self.namespace}.{self.name}:{role}"
        return Wire(self._settings.endpoint, name=name, timeout=timeout, **listening)


def base36(number: int) -> str:
    """A number in the digits 0-9 and a-z."""
    digits = ""
    while True:
        number, digit = divmod(number, len(_DIGITS))
        digits = _DIGITS[digit] + digits
        if not number:
            return digits
