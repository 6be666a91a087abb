"""Sending: a message is on its stream once, whatever happens on the way, or the caller gets an error."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, overload

import msgspec

from agentstream.backoff import Pause
from agentstream.contracts import Contracts
from agentstream.counters import SHED, Counters
from agentstream.directory import Directory
from agentstream.errors import (
    AgentStreamError,
    Backpressure,
    ConnectionLost,
    InvalidMessage,
    MessageExpired,
    NoRoute,
    SendFailed,
    SettingsError,
)
from agentstream.keys import StreamKeys
from agentstream.message import Message, MessageType, decode, encode, is_reference
from agentstream.outbox import Outbox, Parcel
from agentstream.routes import OFF, Produces
from agentstream.signing import KeyMissing, Keyring
from agentstream.wire import Argument, Wire, WireClosed

DEFAULT_TIMEOUT = 30.0
_ROUTE_PATIENCE = 10.0

OnFull = Literal["wait", "raise", "shed"]
"""What becomes of a message that finds its stream full."""


class SentMessage(msgspec.Struct, frozen=True):
    """A message that the server has.

    Attributes:
        id: the message's.
        stream: name of the AgentStream that it is on.
        entry: its id on the stream.
    """

    id: str
    stream: str
    entry: str


class Outgoing(msgspec.Struct, frozen=True, kw_only=True):
    """One of several messages to send; see `Agent.send_message` for its fields."""

    type: MessageType
    payload: Any
    to: str | None = None
    stream: str | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    expires_at: float | None = None
    key: str | None = None
    schema_version: int | None = None
    once: str | None = None


class Letter:
    """A message that fits the schema, and how it is to be sent.

    Args:
        message: the message.
        stream: name of the AgentStream, if the sender names one.
        once: a key of the sender's own, under which only one message is added within an hour.

    Raises:
        InvalidMessage: it does not fit.
    """

    __slots__ = ("data", "message", "once", "stream")

    def __init__(self, message: Message, stream: str | None = None, once: str | None = None) -> None:
        if once is not None and not is_reference(once):
            raise InvalidMessage("once= is a string of 1 to 512 characters")
        self.message = message
        self.data = encode(message)
        self.stream = stream
        self.once = once


class Sender:
    """Sends the messages of one agent.

    Args:
        wire: the connection to send with.
        directory: where routes are looked up.
        keyring: the keys of signed streams.
        counters: where events that were shed are counted.
        contracts: what payloads must be.
    """

    def __init__(
        self, wire: Wire, directory: Directory, keyring: Keyring, counters: Counters, contracts: Contracts
    ) -> None:
        self._wire = wire
        self._directory = directory
        self._keyring = keyring
        self._counters = counters
        self._contracts = contracts
        self._outboxes: dict[str, tuple[Outbox, StreamKeys]] = {}

    @overload
    async def send(
        self,
        message: Message,
        stream: str | None,
        timeout: float,
        *,
        once: str | None = None,
        on_full: Literal["wait", "raise"] = "wait",
    ) -> SentMessage: ...

    @overload
    async def send(
        self, message: Message, stream: str | None, timeout: float, *, once: str | None, on_full: OnFull
    ) -> SentMessage | None: ...

    async def send(
        self,
        message: Message,
        stream: str | None,
        timeout: float,
        *,
        once: str | None = None,
        on_full: OnFull = "wait",
    ) -> SentMessage | None:
        """Puts a message on the stream that leads to its addressee; see `Agent.send_message`."""
        if on_full == "shed" and message.type != "event":
            raise InvalidMessage(f"only events may be shed, and this is a {message.type}")
        deadline = asyncio.get_running_loop().time() + timeout
        return await self._send(Letter(message, stream, once), deadline, on_full)

    async def send_many(self, letters: Sequence[Letter], timeout: float) -> list[SentMessage]:
        """Puts messages on the streams that lead to their addressees; see `Agent.send_many`."""
        deadline = asyncio.get_running_loop().time() + timeout
        results = await asyncio.gather(
            *(self._send(letter, deadline, "wait") for letter in letters), return_exceptions=True
        )
        sent = [result for result in results if isinstance(result, SentMessage)]
        if len(sent) < len(results):
            raise SendFailed(results)
        return sent

    async def _send(self, letter: Letter, deadline: float, on_full: OnFull) -> SentMessage | None:
        """Tries until the deadline. What the outbox cannot say whether it was sent is not tried again here."""
        loop = asyncio.get_running_loop()
        message = letter.message
        pause = None
        while True:
            now = loop.time()
            try:
                produces = self._directory.known(message.to, letter.stream, now)
                if produces is None:
                    patience = min(_ROUTE_PATIENCE, deadline - now)
                    produces = await self._directory.target(message.to, letter.stream, patience)
                if produces.contracts:
                    contract = await self._contracts.of(produces)
                    # what is sent, which a payload that holds more than JSON becomes only in JSON
                    contract.check(decode(letter.data))
                entry = self._put(letter, produces, deadline)
            except KeyMissing as error:
                # it may be on its way
                trouble: AgentStreamError = error
            except (NoRoute, InvalidMessage, SettingsError, WireClosed):
                raise
            except AgentStreamError as error:
                trouble = error
            else:
                try:
                    return SentMessage(message.id, produces.stream, await entry)
                except (ConnectionLost, MessageExpired):
                    raise
                except AgentStreamError as error:
                    trouble = error
            if not isinstance(trouble, Backpressure):
                self._directory.forget()
            elif on_full == "shed":
                self._counters.add(SHED, produces.stream)
                return None
            elif on_full == "raise":
                raise trouble
            pause = pause or Pause(0.02, 1.0)
            delay = pause.next()
            if loop.time() + delay >= deadline:
                raise trouble
            await asyncio.sleep(delay)

    async def close(self) -> None:
        """Sends nothing more."""
        await asyncio.gather(*(outbox.close() for outbox, _ in self._outboxes.values()))

    def _put(self, letter: Letter, produces: Produces, deadline: float) -> asyncio.Future[str]:
        known = self._outboxes.get(produces.key)
        if known is None:
            keys = StreamKeys(produces.key)
            known = self._outboxes[produces.key] = Outbox(self._wire.call, keys), keys
        outbox, keys = known
        message = letter.message
        options: tuple[Argument, ...] = ()
        if letter.once is not None:
            options += ("once", keys.once(letter.once))
        if message.key is not None:
            options += ("key", message.key)
        sign = None
        if produces.signatures != OFF:
            sign = partial(self._keyring.signature, produces, letter.data)
        return outbox.put(Parcel(letter.data, options, deadline, message.expires_at, sign))
