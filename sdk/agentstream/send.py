"""Sending: a message is on its stream once, whatever happens on the way, or the caller gets an error."""

from __future__ import annotations

import asyncio

import msgspec

from agentstream.backoff import Pause
from agentstream.directory import Directory
from agentstream.errors import AgentStreamError, Backpressure, NoRoute
from agentstream.keys import StreamKeys
from agentstream.message import Message, encode
from agentstream.routes import Produces
from agentstream.signing import Keyring
from agentstream.wire import Wire, WireClosed

DEFAULT_TIMEOUT = 30.0
_ROUTE_PATIENCE = 10.0
# How much longer than the caller the server remembers a message, in ms: what is repeated last may travel a
# while.
_REMEMBERED = 5_000


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


class Sender:
    """Sends the messages of one agent.

    Args:
        wire: the connection to send with.
        directory: where routes are looked up.
        keyring: the keys of signed streams.
    """

    def __init__(self, wire: Wire, directory: Directory, keyring: Keyring) -> None:
        self._wire = wire
        self._directory = directory
        self._keyring = keyring

    async def send(self, message: Message, stream: str | None, timeout: float) -> SentMessage:  # noqa: ASYNC109 - it decides what is repeated
        """Puts a message on the stream that leads to its addressee; see `Agent.send_message`."""
        data = encode(message)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        remembered = int(timeout * 1000) + _REMEMBERED
        pause = Pause(0.02, 1.0)
        while True:
            try:
                patience = min(_ROUTE_PATIENCE, deadline - loop.time())
                produces = await self._directory.target(message.to, stream, patience)
                return await self._add(produces, message.id, data, remembered)
            except (NoRoute, WireClosed):
                raise
            except AgentStreamError as error:
                if not isinstance(error, Backpressure):
                    self._directory.forget()
                delay = pause.next()
                if loop.time() + delay >= deadline:
                    raise
            await asyncio.sleep(delay)

    async def _add(self, produces: Produces, message_id: str, data: bytes, remembered: int) -> SentMessage:
        """May be repeated for `remembered` ms: the server knows by the message's id what it has."""
        keys = StreamKeys(produces.key)
        once = (keys.once(message_id), remembered)
        fields = ("m", data, *self._keyring.signature(produces, data))
        entry = await self._wire.call("FCALL", "as1_add", 1, keys.stream, keys.gate, *once, *fields)
        return SentMessage(message_id, produces.stream, entry.decode())
