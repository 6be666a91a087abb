"""What an agent says to others: messages, broadcasts, requests and notifications."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Iterable
from functools import partial
from typing import Any, Literal, overload

from agentstream.errors import NoRoute
from agentstream.identity.keyring import Keyring
from agentstream.identity.settings import Settings
from agentstream.payloads.contracts import Contracts
from agentstream.payloads.types import payload_of, version_of
from agentstream.protocol.envelope import BROADCAST, Message, MessageType, new_id
from agentstream.protocol.keys import notify_channel, reply_key, routes_key
from agentstream.routing.directory import Directory
from agentstream.sending.notifications import DEFAULT_BUFFER, Mailbox, Notifications, notification
from agentstream.sending.receipts import Receipt, broadcast_stream
from agentstream.sending.requests import DEFAULT_TIMEOUT as REQUEST_TIMEOUT
from agentstream.sending.requests import READ_TIMEOUT as ANSWER_TIMEOUT
from agentstream.sending.requests import Requests
from agentstream.sending.sender import DEFAULT_TIMEOUT, OnFull, OutgoingMessage, OutgoingRecord, Sender
from agentstream.sent import SentMessage
from agentstream.telemetry.counters import NOTIFICATIONS_DROPPED, RECONNECTS, Counters
from agentstream.telemetry.tracing import spans
from agentstream.transport.client import Client
from agentstream.transport.subscriptions import Subscriptions


class Producer:
    """The half of an agent that sends; see `Agent`.

    Attributes:
        name: the agent's name.
        namespace: its namespace.
    """

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
        self._keyring = Keyring(settings.keys_of)
        self._contracts = Contracts(self._write.call)
        self._sender = Sender(self._write, self._directory, self._keyring, self._counters, self._contracts)
        answers = reply_key(self.namespace, self.name, secrets.token_hex(16))
        client = self._client("answers", ANSWER_TIMEOUT)
        self._requests = Requests(answers, client, self._keyring, self._counters)
        self._mailboxes: list[Mailbox] = []

    @overload
    async def send_message(
        self,
        *,
        type: MessageType,
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
        type: MessageType,
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
            key: messages of a stream with the same ordering key are handled one after the other, in the order
                in which they were added, by whichever consumers of a group; see docs/messaging.md.
            schema_version: version of the payload's schema, where there are several.
            once: a key of your own: within an hour, another message with it is not added to the same stream,
                and the first one's entry is returned. So a handler that runs again sends its results once.
            on_full: what to do when the stream is full: `wait` for room until the timeout, `raise` at once,
                or `shed`, which drops an event, counts it and returns None.
            timeout: for how many seconds to try; up to ten of them for a route that is not declared yet. What
                is under way by then is waited for up to a second longer.

        Raises:
            InvalidMessage: an argument does not fit the envelope's schema, or is not an event and to be shed;
                or the message is larger than the server takes.
            InvalidPayload: the payload is no JSON object, or violates the stream's contract.
            SettingsError: the stream has contracts, and what checks them is not installed.
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
        messages: Iterable[OutgoingMessage],
        *,
        timeout: float = DEFAULT_TIMEOUT,  # noqa: ASYNC109 - the deadline decides what is repeated
    ) -> list[SentMessage]:
        """Sends many messages in few round trips, each as `send_message` does; waits where a stream is full.

        Args:
            messages: what to send; those for the same stream keep their order.
            timeout: for how many seconds to try.

        Raises:
            InvalidMessage, NoRoute: one of them names neither addressee nor stream, or does not fit the
                envelope's schema. None was sent.
            SendFailed: some were not sent; it says which ones, and why.
        """
        now = asyncio.get_running_loop().time()
        records = [
            OutgoingRecord(
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
                since=now,
                timeout=timeout,
            )
            for one in messages
        ]
        return await self._sender.send_many(records)

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
            on_full: what to do when the stream is full: `wait` for room until the timeout, or `raise`.
            timeout: for how many seconds to try.

        Raises:
            NoRoute: the agent produces to no broadcast stream, or to several; or the one named is none.
            InvalidMessage, InvalidPayload, SettingsError, Backpressure, MessageExpired, StreamMissing,
                ConnectionLost, AccessDenied, ServerRefused: as `send_message`.
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
            NoReply: nobody answered in time. Somebody may still be at it, and on a stream that requires
                signatures, answers without a valid one do not count.
            RequestFailed: the request became a dead letter.
            InvalidMessage, InvalidPayload, SettingsError, NoRoute, Backpressure, MessageExpired,
                StreamMissing, ConnectionLost, AccessDenied, ServerRefused: as `send_message`.
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
        now = asyncio.get_running_loop().time()
        record = OutgoingRecord(message, stream, None, since=now, timeout=timeout)
        asking = self._requests.ask(record, self._sender.post, timeout)
        tracing = spans()
        return await (asking if tracing is None else tracing.asked(message, asking))

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

    def _message(
        self,
        *,
        to: str,
        type: MessageType,  # noqa: A002 - the envelope's name
        payload: Any,
        correlation_id: str | None = None,
        reply_to: str | None = None,
        expires_at: float | None = None,
        key: str | None = None,
        schema_version: int | None = None,
    ) -> Message:
        return Message(
            v=1,
            id=new_id(),
            sender=self.name,
            to=to,
            type=type,
            payload=payload_of(payload),
            timestamp=time.time(),
            correlation_id=correlation_id,
            reply_to=reply_to,
            expires_at=expires_at,
            key=key,
            schema_version=version_of(payload) if schema_version is None else schema_version,
        )

    def _client(self, role: str, timeout: float = 5.0, **listening: Any) -> Client:
        name = f"agentstream:{self.namespace}.{self.name}:{role}"
        reconnected = partial(self._counters.add, RECONNECTS, role.partition("-")[0])
        return Client(
            self._settings.endpoint, name=name, timeout=timeout, on_reconnect=reconnected, **listening
        )


def _addressee(to: str | None, stream: str | None) -> str:
    if to is None and stream is None:
        raise NoRoute("a message needs an addressee, a stream, or both: to= or stream=")
    return to or BROADCAST
