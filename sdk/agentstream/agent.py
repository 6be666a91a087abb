"""The agent: what a program sends with and consumes from."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, overload

from agentstream.consume import Consumer, Consumption, Deliveries
from agentstream.contracts import Contracts
from agentstream.counters import Counters
from agentstream.directory import Directory
from agentstream.errors import NoRoute
from agentstream.handlers import DEFAULT_WITHIN, Handlers, Subscription
from agentstream.health import Health
from agentstream.intake import READ_TIMEOUT
from agentstream.keys import notify_channel, nudge_channel, reply_key, routes_key
from agentstream.message import BROADCAST, Message, MessageType, new_id
from agentstream.notifications import DEFAULT_BUFFER, Mailbox, Notifications, notification
from agentstream.payloads import Payload, payload_of, version_of
from agentstream.pushes import Pushes
from agentstream.receipts import Receipt, broadcast_stream
from agentstream.replies import Replies
from agentstream.requests import DEFAULT_TIMEOUT as REQUEST_TIMEOUT
from agentstream.requests import READ_TIMEOUT as ANSWER_TIMEOUT
from agentstream.requests import Requests
from agentstream.running import run
from agentstream.send import DEFAULT_TIMEOUT, Letter, OnFull, Outgoing, Sender, SentMessage
from agentstream.settings import Settings
from agentstream.signals import on_termination
from agentstream.signing import Keyring
from agentstream.upcasting import Read, Upcast, message_reader
from agentstream.wire import Wire

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_SIGNAL_EXIT = 128
_Handler = TypeVar("_Handler", bound=Callable[..., Any])
_Upcast = TypeVar("_Upcast", bound=Upcast)
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
        self._pushes = Pushes(lambda **listening: self._wire("push", **listening))
        directory = Directory(self._write, routes_key(settings.installation, self.namespace), self.name)
        self._counters = Counters()
        keyring = Keyring(settings.keys_of)
        self._directory = directory
        contracts = Contracts(self._write.call)
        self._sender = Sender(self._write, directory, keyring, self._counters, contracts)
        answers = reply_key(self.namespace, self.name, secrets.token_hex(16))
        self._requests = Requests(answers, self._wire("answers", ANSWER_TIMEOUT))
        self._consumer = Consumer(
            agent=self.name,
            name=f"{settings.pod}.{base36(next(_starts))}",
            pod_prefix=f"{settings.pod}.",
            directory=directory,
            write=self._write,
            control=self._control,
            pushes=self._pushes,
            nudges=nudge_channel(settings.installation, self.namespace, self.name),
            reading=lambda stream: self._wire(f"read-{stream}", READ_TIMEOUT),
            consumed={},
            keyring=keyring,
            counters=self._counters,
            contracts=contracts,
            replies=Replies(
                self.namespace,
                self.name,
                self._write.call,
                lambda message, timeout: self._sender.send(message, None, timeout),
            ),
        )
        self._handlers = Handlers()
        self._mailboxes: list[Mailbox] = []
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

    @overload
    async def send_message(
        self,
        *,
        type: MessageType,  # noqa: A002 - the envelope's name
        payload: Any,
        to: str | None = None,
        stream: str | None = None,
        correlation_id: str | None = None,
        reply_to: str | None = None,
        expires_at: float | None = None,
        key: str | None = None,
        schema_version: int | None = None,
        once: str | None = None,
        on_full: Literal["wait", "raise"] = "wait",
        timeout: float = DEFAULT_TIMEOUT,  # noqa: ASYNC109 - the deadline decides what is repeated
    ) -> SentMessage: ...

    @overload
    async def send_message(
        self,
        *,
        type: MessageType,  # noqa: A002 - the envelope's name
        payload: Any,
        to: str | None = None,
        stream: str | None = None,
        correlation_id: str | None = None,
        reply_to: str | None = None,
        expires_at: float | None = None,
        key: str | None = None,
        schema_version: int | None = None,
        once: str | None = None,
        on_full: Literal["shed"],
        timeout: float = DEFAULT_TIMEOUT,  # noqa: ASYNC109 - the deadline decides what is repeated
    ) -> SentMessage | None: ...

    async def send_message(
        self,
        *,
        type: MessageType,  # noqa: A002 - the envelope's name
        payload: Any,
        to: str | None = None,
        stream: str | None = None,
        correlation_id: str | None = None,
        reply_to: str | None = None,
        expires_at: float | None = None,
        key: str | None = None,
        schema_version: int | None = None,
        once: str | None = None,
        on_full: OnFull = "wait",
        timeout: float = DEFAULT_TIMEOUT,  # noqa: ASYNC109 - the deadline decides what is repeated
    ) -> SentMessage | None:
        """Sends one message. It is on the stream exactly once when this returns.

        Args:
            type: `task_request`, `task_result` or `event`.
            payload: the data: a dict, msgspec.Struct, dataclass or pydantic model.
            to: the agent that is to handle it; `broadcast` for all groups of the broadcast stream.
            stream: name of the AgentStream, where several lead to the addressee; alone, for all its groups.
            correlation_id: id of the message that this one answers or belongs to.
            reply_to: where an answer is expected.
            expires_at: when it loses its meaning, in seconds since 1970.
            key: messages with the same ordering key are handled one after the other in each group.
            schema_version: version of the payload's schema, where there are several.
            once: a key of your own: within an hour, another message with it is not added to the same stream,
                and the first one's entry is returned. So a handler that runs again sends its results once.
            on_full: what to do when the stream is full: `wait` for room until the timeout, `raise` at once,
                or `shed`, which drops an event, counts it and returns None.
            timeout: for how many seconds to try; up to ten of them for a route that is not declared yet. What
                is under way by then is waited for up to a second longer.

        Raises:
            InvalidMessage: an argument does not fit the envelope's schema, or is not an event and to be shed.
            NoRoute: no declared stream leads to the addressee, or several do.
            Backpressure: the stream was full until the deadline, or is and that was to raise.
            MessageExpired: `expires_at` was over before the message could be sent.
            StreamMissing: the stream did not exist until the deadline.
            ConnectionLost: the server did not answer until the deadline; whether it has the message is not
                known.
            AccessDenied: the server refused credentials or rights until the deadline.
            ServerRefused: the server refused for another reason until the deadline.
        """
        message = self._message(
            to=_addressee(to, stream),
            type=type,
            payload=payload,
            correlation_id=correlation_id,
            reply_to=reply_to,
            expires_at=expires_at,
            key=key,
            schema_version=schema_version,
        )
        return await self._sender.send(message, stream, timeout, once=once, on_full=on_full)

    async def send_many(
        self,
        messages: Iterable[Outgoing],
        *,
        timeout: float = DEFAULT_TIMEOUT,  # noqa: ASYNC109 - the deadline decides what is repeated
    ) -> list[SentMessage]:
        """Sends many messages in few round trips, each as `send_message` does, waiting where a stream is full.

        Args:
            messages: what to send; those for the same stream keep their order.
            timeout: for how many seconds to try.

        Raises:
            InvalidMessage, NoRoute: one of them names neither addressee nor stream, or does not fit the
                envelope's schema. None was sent.
            SendFailed: some were not sent; it says which ones, and why.
        """
        letters = [
            Letter(
                self._message(
                    to=_addressee(one.to, one.stream),
                    type=one.type,
                    payload=one.payload,
                    correlation_id=one.correlation_id,
                    reply_to=one.reply_to,
                    expires_at=one.expires_at,
                    key=one.key,
                    schema_version=one.schema_version,
                ),
                one.stream,
                one.once,
                timeout,
            )
            for one in messages
        ]
        return await self._sender.send_many(letters)

    async def broadcast(
        self,
        *,
        type: MessageType,  # noqa: A002 - the envelope's name
        payload: Any,
        stream: str | None = None,
        correlation_id: str | None = None,
        expires_at: float | None = None,
        key: str | None = None,
        schema_version: int | None = None,
        once: str | None = None,
        on_full: Literal["wait", "raise"] = "wait",
        timeout: float = DEFAULT_TIMEOUT,  # noqa: ASYNC109 - the deadline decides what is repeated
    ) -> Receipt:
        """Sends one message to all groups of a broadcast stream. Returns who is to acknowledge it.

        Args:
            type: `task_request`, `task_result` or `event`.
            payload: the data: a dict, msgspec.Struct, dataclass or pydantic model.
            stream: name of the AgentStream, where the agent produces to several broadcast streams.
            correlation_id: id of the message that this one belongs to.
            expires_at: when it loses its meaning, in seconds since 1970.
            key: messages with the same ordering key are handled one after the other in each group.
            schema_version: version of the payload's schema, where there are several.
            once: a key of your own, as for `send_message`.
            on_full: what to do when the stream is full: `wait` for room until the timeout, or `raise` at once.
            timeout: for how many seconds to try.

        Raises:
            NoRoute: the agent produces to no broadcast stream, or to several; or the one named is none.
            InvalidMessage, Backpressure, MessageExpired, StreamMissing, ConnectionLost, AccessDenied,
                ServerRefused: as `send_message`.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        produces = await broadcast_stream(self._directory, stream, timeout)
        message = self._message(
            to=BROADCAST,
            type=type,
            payload=payload,
            correlation_id=correlation_id,
            expires_at=expires_at,
            key=key,
            schema_version=schema_version,
        )
        left = max(deadline - loop.time(), 0)
        sent = await self._sender.send(message, produces.stream, left, once=once, on_full=on_full)
        return Receipt(self._write.call, sent, produces)

    async def request(
        self,
        *,
        to: str,
        payload: Any,
        type: MessageType = "task_request",  # noqa: A002 - the envelope's name
        stream: str | None = None,
        correlation_id: str | None = None,
        expires_at: float | None = None,
        key: str | None = None,
        schema_version: int | None = None,
        timeout: float = REQUEST_TIMEOUT,  # noqa: ASYNC109 - at the deadline it says that nobody answered
    ) -> Message:
        """Sends a message and waits for the answer, which a handler gives with `Delivery.reply`.

        Should whoever handles it be gone before it answers, another consumer gets the request when its lease
        has run out, and answers. Of several answers the first one counts.

        Args:
            to: the agent that is to answer.
            payload: the data: a dict, msgspec.Struct, dataclass or pydantic model.
            type: what kind of message it is.
            stream: name of the AgentStream, where several lead to the addressee.
            correlation_id: id of the message that the request belongs to.
            expires_at: when nobody is to begin with it any more, in seconds since 1970; once the timeout is
                over if None.
            key: messages with the same ordering key are handled one after the other in each group.
            schema_version: version of the payload's schema, where there are several.
            timeout: for how many seconds to wait.

        Returns:
            The answer, a `task_result`.

        Raises:
            NoReply: nobody answered in time. Somebody may still be at it.
            RequestFailed: the request became a dead letter.
            InvalidMessage, NoRoute, Backpressure, MessageExpired, StreamMissing, ConnectionLost,
                AccessDenied, ServerRefused: as `send_message`.
        """
        message = self._message(
            to=to,
            type=type,
            payload=payload,
            correlation_id=correlation_id,
            reply_to=self._requests.key,
            expires_at=time.time() + timeout if expires_at is None else expires_at,
            key=key,
            schema_version=schema_version,
        )
        return await self._requests.ask(message, lambda: self._sender.send(message, stream, timeout), timeout)

    async def notify(self, to: str, payload: Any) -> int:
        """Tells whoever listens just now, at most once: what nobody hears is lost. See `notifications`.

        Args:
            to: the agent whose processes are to hear it, or `broadcast` for those of all agents of the
                namespace.
            payload: the data: a dict, msgspec.Struct, dataclass or pydantic model.

        Returns:
            How many processes it was sent to; in a cluster, those connected to the same node.

        Raises:
            InvalidMessage: the payload is not what JSON can hold.
            ConnectionLost: the server cannot be reached, or did not answer; it is not tried again.
            AccessDenied, ServerRefused: the server refuses.
        """
        channel = notify_channel(self._settings.installation, self.namespace, to)
        return int(await self._write.call("PUBLISH", channel, notification(self.name, payload_of(payload))))

    def notifications(self, *, buffer: int = DEFAULT_BUFFER) -> Notifications:
        """The notifications to this agent and to all, from soon on, as an asynchronous iterator.

        They are lossy on purpose: what is published while this process connects, is away, or is slower than
        the buffer allows is lost to it. Each such iterator gets all of them.

        Args:
            buffer: how many are kept for a listener that is slow; the oldest ones are dropped for newer ones.

        Raises:
            ValueError: the buffer holds nothing.
        """
        if buffer < 1:
            raise ValueError("buffer must be at least 1")
        mailbox = Mailbox(buffer)
        installation = self._settings.installation
        if self._stopping:
            mailbox.end()
        else:
            to = (self.name, BROADCAST)
            mailbox.listen(self._pushes, (notify_channel(installation, self.namespace, name) for name in to))
        self._mailboxes = [*(m for m in self._mailboxes if not m.is_over), mailbox]
        return Notifications(mailbox)

    def stream_consume(
        self,
        stream: str,
        *,
        payload: type[Payload] = dict,  # type: ignore[assignment]
        group: str | None = None,
        concurrency: int = 64,
    ) -> Deliveries[Payload]:
        """The messages that the agent's group on a stream is to handle, as an asynchronous iterator.

        Iterate over it from as many tasks as are to work at the same time. From its third attempt on a
        message is handed out alone: the iterator waits until it is settled.

        Args:
            stream: name of the AgentStream.
            payload: what `Delivery.payload` is to be: a msgspec.Struct, dataclass, TypedDict or pydantic
                model, in the version that it names as `__schema_version__`. A message that does not fit
                becomes a dead letter.
            group: name of the ConsumerGroup, where the agent has several on the stream.
            concurrency: how many messages this process holds at most, running and read ahead.

        Raises:
            ValueError: the concurrency is not positive.
            TypeError: no payload has such a type.
        """
        read = message_reader(payload, None, self._handlers.upcasters)
        return self._consume(Subscription(stream, group), read, concurrency)

    def on(
        self,
        type: MessageType,  # noqa: A002 - the envelope's name
        *,
        stream: str | None = None,
        group: str | None = None,
        version: int | None = None,
        batch: int | None = None,
        within: float = DEFAULT_WITHIN,
    ) -> Callable[[_Handler], _Handler]:
        """Declares the decorated function the handler of one type of message; see docs/handlers.md.

        It takes (payload), (payload, delivery), (delivery) or (message), as its annotations say, and is
        asynchronous, or runs in a thread. What it returns is the answer, unless it is None.

        Args:
            type: `task_request`, `task_result` or `event`.
            stream: name of the AgentStream; may be left out where the agent consumes only one.
            group: name of the ConsumerGroup, where the agent has several on the stream.
            version: the version of payloads that it knows; by default that which their type names as
                `__schema_version__`, or the first.
            batch: how many messages it gets at most, in a list; by default it gets them one by one.
            within: for how many seconds after the first a batch waits for others.

        Raises:
            ValueError: there is no such type or it has a handler already, or a number is not positive.
            TypeError: the function takes something else.
        """

        def declare(function: _Handler) -> _Handler:
            self._handlers.add(
                function, type, Subscription(stream, group), version=version, batch=batch, within=within
            )
            return function

        return declare

    def upcast(
        self,
        type: MessageType,  # noqa: A002 - the envelope's name
        *,
        from_version: int,
    ) -> Callable[[_Upcast], _Upcast]:
        """Declares that the decorated function makes the payload of the next version out of an older one.

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
            NotConsumer: the agent consumes no such stream or group, or several where none is named.
            SettingsError: a stream has contracts, and what checks them is not installed.
        """
        await run(self._handlers, self._consume, concurrency)

    def _consume(self, subscription: Subscription, read: Read, concurrency: int) -> Deliveries[Any]:
        if concurrency < 1:
            raise ValueError("concurrency must be at least 1")
        consumption = Consumption(self._consumer, *subscription, concurrency, read)
        if self._stopping:
            consumption.stop()
        self._consumptions = [*(c for c in self._consumptions if not c.is_over), consumption]
        return Deliveries(consumption)

    def stop(self) -> None:
        """Ends all iterations over `stream_consume` and `notifications`.

        What is in hand can be settled, and messages be sent.
        """
        self._stopping = True
        for mailbox in self._mailboxes:
            mailbox.end()
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
        self.stop()
        try:
            await asyncio.gather(*(consumption.aclose() for consumption in self._consumptions))
            await self._requests.close(self._write.call)
            await self._sender.close()
            await asyncio.gather(self._write.close(), self._control.close(), self._pushes.close())
        finally:
            await self._entered.aclose()
        if self._ended_by is not None and isinstance(error, asyncio.CancelledError):
            raise SystemExit(_SIGNAL_EXIT + self._ended_by) from None

    async def _crash(self) -> None:
        """Ends as by SIGKILL, for tests: nothing more is said to the server, so that nothing is handed back."""
        await asyncio.gather(self._sender.close(), self._write.close(), self._control.close())
        for consumption in self._consumptions:
            consumption.cancel_workers()
        await self.__aexit__(None, None, None)

    def _asked_to_end(self, number: signal.Signals) -> None:
        consuming = any(not consumption.is_over for consumption in self._consumptions)
        self.stop()
        if not consuming and self._task is not None:
            self._ended_by = number
            self._task.cancel()

    def _message(self, *, payload: Any, schema_version: int | None = None, **fields: Any) -> Message:
        return Message(
            v=1,
            id=new_id(),
            sender=self.name,
            timestamp=time.time(),
            payload=payload_of(payload),
            schema_version=version_of(payload) if schema_version is None else schema_version,
            **fields,
        )

    def _wire(self, role: str, timeout: float = 5.0, **listening: Any) -> Wire:
        name = f"agentstream:{self.namespace}.{self.name}:{role}"
        return Wire(self._settings.endpoint, name=name, timeout=timeout, **listening)


def _addressee(to: str | None, stream: str | None) -> str:
    if to is None and stream is None:
        raise NoRoute("a message needs an addressee, a stream, or both: to= or stream=")
    return to or BROADCAST


def base36(number: int) -> str:
    """A number in the digits 0-9 and a-z."""
    digits = ""
    while True:
        number, digit = divmod(number, len(_DIGITS))
        digits = _DIGITS[digit] + digits
        if not number:
            return digits
