"""The sending half of an agent: messages, broadcasts, requests and notifications."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable
from functools import partial
from typing import Any, Unpack

import msgspec

from agentstream.errors import check_timeout
from agentstream.identity.keyring import Keyring
from agentstream.identity.settings import Settings
from agentstream.payloads.contracts import Contracts
from agentstream.payloads.types import payload_of
from agentstream.protocol.envelope import BROADCAST, Message, MessageType, check_addressee
from agentstream.protocol.keys import cancel_channel, notify_channel, reply_key, routes_key
from agentstream.routing.directory import Directory
from agentstream.sending.notifications import DEFAULT_BUFFER, Mailbox, Notifications, notification
from agentstream.sending.outgoing import (
    DEFAULT_TIMEOUT,
    FAR,
    ROUTE_PATIENCE,
    MessageOptions,
    OnFull,
    OutgoingMessage,
    SendOptions,
    record_of,
)
from agentstream.sending.receipts import Receipt, ReceiptPoller, broadcast_stream
from agentstream.sending.requests import DEFAULT_TIMEOUT as REQUEST_TIMEOUT
from agentstream.sending.requests import READ_TIMEOUT as ANSWER_TIMEOUT
from agentstream.sending.requests import Requests
from agentstream.sending.sender import Sender
from agentstream.sent import SentMessage
from agentstream.telemetry.counters import NOTIFICATIONS_DROPPED, RECONNECTS, Counters
from agentstream.telemetry.tracing import spans
from agentstream.transport.client import LARGEST_REPLY, Client
from agentstream.transport.subscriptions import Subscriptions


class Producer:
    """The half of an agent that sends; see `Agent`."""

    def __init__(self, settings: Settings) -> None:
        self.name: str = settings.agent
        self.namespace: str = settings.namespace
        self._settings = settings
        self._stopping = False
        self._counters = Counters()
        self._write = self._client("write")
        self._subscriptions = Subscriptions(lambda **listening: self._client("push", **listening))
        routes = routes_key(settings.installation, self.namespace)
        self._directory = Directory(self._write, routes, self.name)
        self._keyring = Keyring(settings.signing_of)
        self._contracts = Contracts(self._write.call)
        self._sender = Sender(self._write, self._directory, self._keyring, self._counters, self._contracts)
        client = self._client("answers", ANSWER_TIMEOUT, largest_reply=LARGEST_REPLY)
        answers = partial(reply_key, self.namespace, self.name)
        self._requests = Requests(answers, client, self._keyring, self._counters, self._cancel)
        self._receipts = ReceiptPoller(self._write.call)
        self._mailboxes: list[Mailbox] = []

    async def send_message(
        self,
        *,
        type: MessageType,  # noqa: A002 - the envelope's name
        payload: Any,
        to: str | None = None,
        reply_to: str | None = None,
        on_full: OnFull = "wait",
        timeout: float = DEFAULT_TIMEOUT,
        **options: Unpack[SendOptions],
    ) -> SentMessage:
        """Sends one message. It is on the stream exactly once when this returns.

        Args:
            type: `task_request`, `task_result` or `event`.
            payload: the data: a dict, msgspec.Struct, dataclass or pydantic model.
            to: the agent that is to handle it; `broadcast` for all groups of the broadcast stream.
            reply_to: where a reply is expected.
            on_full: what to do when the stream is full: `wait` for room until the timeout, `raise`
                Backpressure at once, or `shed`: drop the event, count it, and return a SentMessage that is
                `shed`.
            timeout: seconds to try; up to ten of them for a route that is not declared yet. A batch that is
                in flight at the deadline gets up to a second more.
            options: any of the following.
            stream: name of the AgentStream, where several lead to the addressee; alone, for all its groups.
            correlation_id: id of the message that this one answers or belongs to.
            expires_at: when the message expires, in seconds since 1970.
            key: ordering key: each group handles the messages of a stream with the same key one after the
                other, in the order in which they were added; see docs/messaging.md.
            schema_version: version of the payload's schema, where there are several.
            once: idempotency key: within an hour, no other message of this agent to the same addressee is
                added to the stream with this key, and sending one returns the entry of the first. So a
                handler that runs again sends its results once.

        Raises:
            InvalidMessage: an argument does not fit the envelope's schema, or is not an event and to be shed;
                or the message is larger than the server takes.
            InvalidPayload: the payload is no JSON object, or violates the stream's contract.
            SettingsError: the stream has contracts, and the library that checks them is not installed.
            NoRoute: no declared stream leads to the addressee, or several do.
            Backpressure: the stream was full until the deadline, or at once with `on_full="raise"`.
            MessageExpired: `expires_at` passed before the message could be sent.
            StreamMissing: the stream did not exist until the deadline.
            ConnectionLost: the server did not answer until the deadline; it may have the message.
            AccessDenied: the server refused credentials or rights until the deadline.
            ServerRefused: the server refused for another reason until the deadline.
        """
        one = OutgoingMessage(type=type, payload=payload, to=to, reply_to=reply_to)
        if options:
            # most messages have none: merging even an empty dict doubles the time of the line above
            one = msgspec.structs.replace(one, **options)
        return await self._sender.send(record_of(self.name, one, timeout, on_full))

    async def send_many(
        self, messages: Iterable[OutgoingMessage], *, timeout: float = DEFAULT_TIMEOUT
    ) -> list[SentMessage]:
        """Sends many messages in few round trips, each as `send_message` does; waits while a stream is full.

        Args:
            messages: what to send; messages for the same stream keep their order.
            timeout: seconds to try.

        Raises:
            InvalidMessage, NoRoute: a message names neither addressee nor stream, or does not fit the
                envelope's schema. None was sent.
            SendFailed: some messages were not sent; `results` says which ones, and why.
        """
        return await self._sender.send_many([record_of(self.name, one, timeout) for one in messages])

    async def broadcast(
        self,
        *,
        type: MessageType,  # noqa: A002 - the envelope's name
        payload: Any,
        on_full: OnFull = "wait",
        timeout: float = DEFAULT_TIMEOUT,
        **options: Unpack[SendOptions],
    ) -> Receipt:
        """Sends one message to all groups of a broadcast stream. Returns a receipt of their acknowledgements.

        Args:
            type: `task_request`, `task_result` or `event`.
            payload: the data: a dict, msgspec.Struct, dataclass or pydantic model.
            on_full: as of `send_message`; the receipt of an event that was shed expects no groups.
            timeout: seconds to try.
            options: as of `send_message`; `stream` names the AgentStream, where the agent produces to several
                broadcast streams.

        Raises:
            NoRoute: the agent produces to no broadcast stream, or to several; or the one named is none.
            InvalidMessage, InvalidPayload, SettingsError, Backpressure, MessageExpired, StreamMissing,
                ConnectionLost, AccessDenied, ServerRefused: as `send_message`.
        """
        check_timeout(timeout)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        produces = await broadcast_stream(self._directory, options.get("stream"), timeout)
        options["stream"] = produces.stream
        one = OutgoingMessage(type=type, payload=payload, **options)
        sent = await self._sender.send(record_of(self.name, one, max(deadline - loop.time(), 0), on_full))
        return Receipt(self._receipts, sent, produces)

    async def request(
        self,
        *,
        to: str,
        payload: Any,
        type: MessageType = "task_request",  # noqa: A002 - the envelope's name
        timeout: float = REQUEST_TIMEOUT,
        **options: Unpack[MessageOptions],
    ) -> Message:
        """Sends a request and waits for the reply, which a handler gives with `Delivery.reply`.

        If the consumer dies before it replies, another consumer gets the request when the lease has run out.
        Of several replies the first one counts.

        Args:
            to: the agent that is to reply.
            payload: the data: a dict, msgspec.Struct, dataclass or pydantic model.
            type: `task_request`, `task_result` or `event`.
            timeout: seconds to wait for the reply.
            options: as of `send_message`, but for `once`; `expires_at` is the end of the timeout by default.

        Returns:
            The reply, a `task_result`.

        Raises:
            NoReply: no reply came in time; a consumer may still be handling the request. On a stream that
                requires signatures, replies without a valid one do not count. At once where the agent asks
                itself, and all handlers of this process wait for such replies.
            RequestFailed: the request became a dead letter.
            InvalidMessage, InvalidPayload, SettingsError, NoRoute, Backpressure, MessageExpired,
                StreamMissing, ConnectionLost, AccessDenied, ServerRefused: as `send_message`.
        """
        if "once" in options:
            raise TypeError("a request takes no once=: the reply would be that to the first request")
        check_timeout(timeout)
        if options.get("expires_at") is None and timeout < FAR:
            options["expires_at"] = time.time() + timeout
        one = OutgoingMessage(type=type, payload=payload, to=to, reply_to=self._requests.key, **options)
        record = record_of(self.name, one, timeout)
        self._write.bind()
        asking = self._requests.ask(record, self._sender.send, timeout)
        tracing = spans()
        asking = asking if tracing is None else tracing.asked(record.message, asking)
        if to != self.name:
            return await asking
        try:
            produces = await self._directory.target(to, record.stream, min(timeout, ROUTE_PATIENCE))
            with self._asks_itself(produces.key):
                return await asking
        finally:
            asking.close()

    async def notify(self, to: str, payload: Any) -> int:
        """Publishes a notification to the processes that listen now, at most once; see `notifications`.

        Args:
            to: the agent whose processes are to get it, or `broadcast` for those of all agents of the
                namespace.
            payload: the data: a dict, msgspec.Struct, dataclass or pydantic model.

        Returns:
            How many processes it was sent to; in a cluster, those connected to the same node.

        Raises:
            InvalidMessage: the payload is not what JSON can hold, or `to` is no name of an agent.
            ConnectionLost: the server cannot be reached, or did not answer; it is not tried again.
            AccessDenied, ServerRefused: the server refuses.
        """
        check_addressee(to)
        channel = notify_channel(self._settings.installation, self.namespace, to)
        return int(await self._write.call("PUBLISH", channel, notification(self.name, payload_of(payload))))

    def _asks_itself(self, key: str) -> contextlib.AbstractContextManager[object]:  # noqa: ARG002 - see Agent
        """Notes that a handler waits for an answer of its own agent, by the stream with this key."""
        return contextlib.nullcontext()

    async def _cancel(self, to: str, notice: bytes) -> None:
        channel = cancel_channel(self._settings.installation, self.namespace, to)
        await self._write.call("PUBLISH", channel, notice)

    def notifications(self, *, buffer: int = DEFAULT_BUFFER) -> Notifications:
        """Subscribes to notifications to this agent and to all agents. Returns an asynchronous iterator.

        Notifications are lossy on purpose: the iterator misses what is published while this process connects
        or is away, and the oldest ones while its buffer is full. Several iterators get all of them each.

        Args:
            buffer: how many are kept while the iterator is slow, up to 16 MiB.

        Raises:
            ValueError: the buffer is smaller than 1.
        """
        if buffer < 1:
            raise ValueError("buffer must be at least 1")
        mailbox = Mailbox(buffer, partial(self._counters.add, NOTIFICATIONS_DROPPED))
        installation = self._settings.installation
        if self._stopping:
            mailbox.end()
        else:
            to = (self.name, BROADCAST)
            mailbox.listen(
                self._subscriptions, (notify_channel(installation, self.namespace, name) for name in to)
            )
        self._mailboxes = [*(m for m in self._mailboxes if not m.is_over), mailbox]
        return Notifications(mailbox)

    def _client(self, role: str, timeout: float = 5.0, **more: Any) -> Client:
        name = f"agentstream:{self.namespace}.{self.name}:{role}"
        reconnected = partial(self._counters.add, RECONNECTS, role.partition("-")[0])
        return Client(self._settings.endpoint, name=name, timeout=timeout, on_reconnect=reconnected, **more)
