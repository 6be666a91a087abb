"""The agent, for threads that wait."""

from __future__ import annotations

import atexit
import contextlib
import signal
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

from agentstream import agent
from agentstream.handlers.declare import DEFAULT_MAX_WAIT
from agentstream.identity.settings import Settings
from agentstream.payloads.types import Payload
from agentstream.payloads.upcasting import Upcast
from agentstream.protocol.envelope import Message, MessageType
from agentstream.sending.notifications import DEFAULT_BUFFER
from agentstream.sending.sender import DEFAULT_TIMEOUT, MessageOptions, OutgoingMessage, SendOptions
from agentstream.sent import SentMessage
from agentstream.signals import SIGNAL_EXIT, on_signal
from agentstream.sync.delivery import SyncDeliveries
from agentstream.sync.handlers import Exit, adapted
from agentstream.sync.loop import Ended, LoopThread
from agentstream.sync.producer import SyncNotifications, SyncReceipt

_Result = TypeVar("_Result")
_Handler = TypeVar("_Handler", bound=Callable[..., Any])
_Upcast = TypeVar("_Upcast", bound=Upcast)


class SyncAgent:
    """As `agentstream.Agent`, as a context manager, for any number of threads.

    From entering to leaving, a thread of its own runs it. In a process that is forked off, whatever is called
    raises AgentStreamError: make an agent there. So it does before entering and after leaving.

    Attributes:
        name: the agent's name.
        namespace: its namespace.
    """

    def __init__(self, settings: Settings, *, ends_on_signals: bool) -> None:
        self.name: str = settings.agent
        self.namespace: str = settings.namespace
        self._agent = agent.Agent.connect(settings)
        self._loop = LoopThread(f"agentstream {self.namespace}.{self.name}")
        self._ends_on_signals = ends_on_signals
        self._signals = contextlib.ExitStack()

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> SyncAgent:
        """As `agentstream.Agent.from_env`.

        Entered in the main thread, it takes care of SIGTERM and SIGINT likewise: the first one ends `run` and
        iterations over `stream_consume` after the message in hand. In a program that consumes nothing at that
        moment it raises SystemExit in the main thread.

        Raises:
            SettingsError: something is missing or wrong; the message says what.
        """
        return cls(Settings.from_env(environ), ends_on_signals=True)

    @classmethod
    def connect(cls, settings: Settings) -> SyncAgent:
        """The agent that the settings name. Signals are left to the application."""
        return cls(settings, ends_on_signals=False)

    def send_message(
        self,
        *,
        type: MessageType,  # noqa: A002 - the envelope's name
        payload: Any,
        to: str | None = None,
        reply_to: str | None = None,
        **options: Unpack[SendOptions],
    ) -> SentMessage:
        """As `agentstream.Agent.send_message`.

        Raises:
            InvalidMessage, InvalidPayload, SettingsError, NoRoute, Backpressure, MessageExpired,
                StreamMissing, ConnectionLost, AccessDenied, ServerRefused: as there.
        """
        return self._loop.run(
            self._agent.send_message, type=type, payload=payload, to=to, reply_to=reply_to, **options
        )

    def send_many(
        self, messages: Iterable[OutgoingMessage], *, timeout: float = DEFAULT_TIMEOUT
    ) -> list[SentMessage]:
        """As `agentstream.Agent.send_many`.

        Raises:
            InvalidMessage, NoRoute, SendFailed: as there.
        """
        return self._loop.run(self._agent.send_many, list(messages), timeout=timeout)

    def broadcast(
        self,
        *,
        type: MessageType,  # noqa: A002 - the envelope's name
        payload: Any,
        **options: Unpack[SendOptions],
    ) -> SyncReceipt:
        """As `agentstream.Agent.broadcast`.

        Raises:
            NoRoute, InvalidMessage, InvalidPayload, SettingsError, Backpressure, MessageExpired,
                StreamMissing, ConnectionLost, AccessDenied, ServerRefused: as there.
        """
        receipt = self._loop.run(self._agent.broadcast, type=type, payload=payload, **options)
        return SyncReceipt(receipt, self._loop)

    def request(
        self,
        *,
        to: str,
        payload: Any,
        type: MessageType = "task_request",  # noqa: A002 - the envelope's name
        **options: Unpack[MessageOptions],
    ) -> Message:
        """As `agentstream.Agent.request`.

        Raises:
            NoReply, RequestFailed, InvalidMessage, InvalidPayload, SettingsError, NoRoute, Backpressure,
                MessageExpired, StreamMissing, ConnectionLost, AccessDenied, ServerRefused: as there.
        """
        return self._loop.run(self._agent.request, to=to, payload=payload, type=type, **options)

    def notify(self, to: str, payload: Any) -> int:
        """As `agentstream.Agent.notify`.

        Raises:
            InvalidMessage, ConnectionLost, AccessDenied, ServerRefused: as there.
        """
        return self._loop.run(self._agent.notify, to, payload)

    def notifications(self, *, buffer: int = DEFAULT_BUFFER) -> SyncNotifications:
        """As `agentstream.Agent.notifications`.

        Raises:
            ValueError: the buffer holds nothing.
        """
        return SyncNotifications(self._in_loop(lambda: self._agent.notifications(buffer=buffer)), self._loop)

    def stream_consume(
        self,
        stream: str,
        *,
        payload: type[Payload] = dict,  # type: ignore[assignment]
        group: str | None = None,
        concurrency: int = 64,
    ) -> SyncDeliveries[Payload]:
        """As `agentstream.Agent.stream_consume`: iterate over it in as many threads as are to work.

        Raises:
            ValueError: the concurrency is not positive.
            TypeError: no payload has such a type.
        """
        deliveries = self._in_loop(
            lambda: self._agent.stream_consume(stream, payload=payload, group=group, concurrency=concurrency)
        )
        return SyncDeliveries(deliveries, self._loop)

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
        """As `agentstream.Agent.on`. The function is not asynchronous, and takes `agentstream.sync.Delivery`.

        Raises:
            ValueError, TypeError: as there.
        """
        declare = self._agent.on(
            type, stream=stream, group=group, version=version, batch_size=batch_size, max_wait=max_wait
        )

        def decorate(function: _Handler) -> _Handler:
            declare(adapted(function, self._loop))
            return function

        return decorate

    def upcast(
        self,
        type: MessageType,  # noqa: A002 - the envelope's name
        *,
        from_version: int,
    ) -> Callable[[_Upcast], _Upcast]:
        """As `agentstream.Agent.upcast`.

        Raises:
            ValueError, TypeError: as there.
        """
        return self._agent.upcast(type, from_version=from_version)

    def run(self, *, concurrency: int = 64) -> None:
        """As `agentstream.Agent.run`: handlers run in threads of their own, as many as the concurrency.

        Raises:
            ValueError, NoConsumerGroup, SettingsError: as there.
            SystemExit, KeyboardInterrupt: a handler raised it; its message is handed back.
        """
        try:
            self._loop.run(self._agent.run, concurrency=concurrency)
        except Exit as end:
            raise end.error from None

    @property
    def is_consuming(self) -> bool:
        """As `agentstream.Agent.is_consuming`."""
        return self._agent.is_consuming

    def stop(self) -> None:
        """As `agentstream.Agent.stop`. Any thread may call it, and a signal's handler."""
        self._loop.soon(self._agent.stop)

    def __enter__(self) -> Self:
        """The agent.

        Raises:
            SettingsError: the port for probes cannot be listened on.
        """
        self._loop.start()
        try:
            self._loop.run(self._agent.__aenter__)
        except BaseException:
            self._loop.end()
            raise
        # a daemon that is still at work when the interpreter goes would be cut off anywhere
        atexit.register(self._close)
        if self._ends_on_signals:
            self._signals.enter_context(on_signal(self._asked_to_end))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Hands back what is not settled, closes the connections, and ends the thread."""
        self._close()

    def _crash(self) -> None:
        """Ends as by SIGKILL, for tests; see `agentstream.Agent`."""
        self._loop.complete(self._agent._crash)  # noqa: SLF001 - two faces of one thing
        self._loop.end()

    def _close(self) -> None:
        try:
            # what a process has that was forked off is its parent's
            with contextlib.suppress(Ended):
                self._loop.complete(self._agent.__aexit__, None, None, None)
        finally:
            self._loop.end()
            self._signals.close()
            atexit.unregister(self._close)

    def _in_loop(self, call: Callable[[], _Result]) -> _Result:
        async def called() -> _Result:
            return call()

        return self._loop.run(called)

    def _asked_to_end(self, number: signal.Signals) -> None:
        consuming = self.is_consuming
        self.stop()
        if not consuming:
            raise SystemExit(SIGNAL_EXIT + number)
