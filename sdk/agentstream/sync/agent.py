"""The agent for programs without an event loop."""

from __future__ import annotations

import atexit
import contextlib
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NoReturn, Self, TypeVar

from agentstream import agent
from agentstream.handlers.declare import DEFAULT_MAX_WAIT
from agentstream.identity.settings import Settings
from agentstream.payloads.types import Payload
from agentstream.protocol.envelope import MessageType
from agentstream.sending import notifications, receipts
from agentstream.sending.notifications import DEFAULT_BUFFER, Notification
from agentstream.sending.outgoing import DEFAULT_TIMEOUT, OutgoingMessage
from agentstream.sent import SentMessage
from agentstream.signals import SIGNAL_EXIT, on_signal
from agentstream.sync.delivery import SyncDeliveries
from agentstream.sync.handlers import adapted
from agentstream.sync.loop import Ended, LoopThread
from agentstream.sync.mirror import Call, SyncFace, SyncIterator, mirrors, mirrors_by, shares

_Handler = TypeVar("_Handler", bound=Callable[..., Any])


class SyncReceipt(SyncFace[receipts.Receipt], of=receipts.Receipt):
    """As `agentstream.Receipt`.

    Attributes:
        sent: the message.
        expected: the groups that were declared when it was sent.
    """

    sent: SentMessage
    expected: tuple[str, ...]

    @mirrors(receipts.Receipt.status)
    def status(self) -> None: ...

    @mirrors(receipts.Receipt.wait)
    def wait(self) -> None: ...


def _receipt(loop: LoopThread, call: Call[receipts.Receipt]) -> SyncReceipt:
    return SyncReceipt(loop.run(call), loop)


class SyncNotifications(
    SyncIterator[notifications.Notifications], Iterator[Notification], of=notifications.Notifications
):
    """As `agentstream.Notifications`: an iterator that ends when the agent stops.

    The subscription ends with `close`, at the end of `with`, and soon after the last reference is gone.
    """

    dropped: int

    def __next__(self) -> Notification:
        return self._next(self._original.__anext__)


class SyncAgent(SyncFace[agent.Agent], of=agent.Agent):
    """As `agentstream.Agent`, as a context manager, for any number of threads.

    From entering to leaving, a thread of its own runs the event loop. Any thread may call the methods, and a
    signal handler may call `stop`. Before entering, after leaving and in a forked process, methods raise
    AgentStreamError: make another agent there.

    Attributes:
        name: the agent's name.
        namespace: its namespace.
    """

    name: str
    namespace: str
    is_consuming: bool
    ends_when_stopped: bool

    def __init__(self, original: agent.Agent, *, ends_on_signals: bool = False) -> None:
        super().__init__(original, LoopThread(f"agentstream {original.namespace}.{original.name}"))
        self._ends_on_signals = ends_on_signals
        self._signals = contextlib.ExitStack()

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Self:
        """Makes the agent that the environment names; see `Settings.from_env`.

        Entered in the main thread, the agent handles SIGTERM and SIGINT: the first signal ends `run` and
        iterations over `stream_consume` after the message in hand. In a program that consumes nothing at that
        moment, the signal raises SystemExit in the main thread.

        Raises:
            SettingsError: something is missing or wrong; the message says what.
        """
        return cls(agent.Agent.connect(Settings.from_env(environ)), ends_on_signals=True)

    @classmethod
    def connect(cls, settings: Settings) -> Self:
        return cls(agent.Agent.connect(settings))

    @mirrors(agent.Agent.send_message)
    def send_message(self) -> None: ...

    def send_many(
        self, messages: Iterable[OutgoingMessage], *, timeout: float = DEFAULT_TIMEOUT
    ) -> list[SentMessage]:
        # the caller's thread iterates: the loop's thread must not wait for a generator
        return self._loop.run(self._original.send_many, list(messages), timeout=timeout)

    @mirrors_by(_receipt, agent.Agent.broadcast)
    def broadcast(self) -> None: ...

    @mirrors(agent.Agent.request)
    def request(self) -> None: ...

    @mirrors(agent.Agent.notify)
    def notify(self) -> None: ...

    def notifications(self, *, buffer: int = DEFAULT_BUFFER) -> SyncNotifications:
        listening = self._loop.call(self._original.notifications, buffer=buffer)
        return SyncNotifications(listening, self._loop)

    def stream_consume(
        self,
        stream: str,
        *,
        payload: type[Payload] = dict,  # type: ignore[assignment]
        group: str | None = None,
        concurrency: int = 64,
    ) -> SyncDeliveries[Payload]:
        deliveries = self._loop.call(
            self._original.stream_consume, stream, payload=payload, group=group, concurrency=concurrency
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
        declare = self._original.on(
            type, stream=stream, group=group, version=version, batch_size=batch_size, max_wait=max_wait
        )

        def decorate(function: _Handler) -> _Handler:
            declare(adapted(function, self._loop))
            return function

        return decorate

    @shares(agent.Agent.upcast)
    def upcast(self) -> None: ...

    @mirrors(agent.Agent.run)
    def run(self) -> None: ...

    @contextlib.contextmanager
    def running(self, *, concurrency: int = 64) -> Iterator[None]:
        beside = self._original.running(concurrency=concurrency)
        self._loop.run(beside.__aenter__)
        with contextlib.ExitStack() as leaving:
            leaving.push(lambda *error: self._loop.complete(beside.__aexit__, *error))
            yield

    def stop(self) -> None:
        self._loop.soon(self._original.stop)

    def __enter__(self) -> Self:
        self._loop.start()
        try:
            self._loop.run(self._original.__aenter__)
        except BaseException:
            self._loop.end()
            raise
        # the interpreter ends daemon threads at any point of their work
        atexit.register(self._close)
        if self._ends_on_signals:
            self._signals.enter_context(on_signal(self._asked_to_end))
        return self

    async def __aenter__(self) -> NoReturn:
        """Refuses `async with`.

        Raises:
            TypeError: always, as this agent is for programs without an event loop.
        """
        raise TypeError("a synchronous agent is entered by `with`; for `async with`, use agentstream.Agent")

    async def __aexit__(self, *error: object) -> NoReturn:
        """Refuses `async with`, for which Python asks for this method, too.

        Raises:
            TypeError: always.
        """
        raise TypeError("a synchronous agent is left by `with`")

    def __exit__(self, *error: object) -> None:
        """Waits for what `run` has in hand, hands back the rest, closes connections, and ends the thread."""
        self._close()

    def _close(self) -> None:
        try:
            # in a forked process, the connections are the parent's
            with contextlib.suppress(Ended):
                self._loop.complete(self._original.__aexit__, None, None, None)
        finally:
            self._loop.end()
            self._signals.close()
            atexit.unregister(self._close)

    def _asked_to_end(self, number: signal.Signals) -> None:
        ends = self.ends_when_stopped
        self.stop()
        if not ends:
            raise SystemExit(SIGNAL_EXIT + number)
