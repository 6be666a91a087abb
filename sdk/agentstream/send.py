"""Sending: a message is on its stream once, whatever happens on the way, or the caller gets an error."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Any

import msgspec

from agentstream.backoff import Pause
from agentstream.directory import Directory
from agentstream.errors import AccessDenied, AgentStreamError, InvalidMessage, NoRoute, StreamMissing
from agentstream.keys import StreamKeys
from agentstream.message import BROADCAST, VERSION, Message, MessageType, encode
from agentstream.wire import Wire

DEFAULT_TIMEOUT = 30.0
_ROUTE_PATIENCE = 10.0
# How much longer than the caller the server remembers a message, in ms: what is repeated last may travel a while.
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
        agent: its name.
        wire: the connection to send with.
        directory: where routes are looked up.
    """

    def __init__(self, agent: str, wire: Wire, directory: Directory) -> None:
        self._agent = agent
        self._wire = wire
        self._directory = directory

    async def send(
        self,
        to: str | None,
        kind: MessageType,
        payload: Any,
        stream: str | None,
        correlation_id: str | None,
        reply_to: str | None,
        expires_at: float | None,
        timeout: float,  # noqa: ASYNC109 - the deadline decides what is repeated, so it is no mere cancellation
    ) -> SentMessage:
        """See `Agent.send_message`."""
        if to is None and stream is None:
            raise InvalidMessage("a message needs an addressee, a stream, or both: to= or stream=")
        message = Message(
            v=VERSION,
            id=str(uuid.uuid4()),
            sender=self._agent,
            to=to or BROADCAST,
            type=kind,
            payload=payload,
            timestamp=time.time(),
            correlation_id=correlation_id,
            reply_to=reply_to,
            expires_at=expires_at,
        )
        data = encode(message)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        pause = Pause(0.02, 1.0)
        while True:
            try:
                return await self._try(message.id, data, to, stream, deadline, timeout)
            except NoRoute:
                raise
            except AgentStreamError as error:
                if isinstance(error, AccessDenied | StreamMissing):
                    self._directory.forget()
                delay = pause.next()
                if loop.time() + delay >= deadline:
                    raise
            await asyncio.sleep(delay)

    async def _try(
        self, message_id: str, data: bytes, to: str | None, stream: str | None, deadline: float, remembered: float
    ) -> SentMessage:
        """One try. It may be repeated: the server knows by the message's id what it has already."""
        patience = min(_ROUTE_PATIENCE, deadline - asyncio.get_running_loop().time())
        produces = await self._directory.target(to, stream, patience)
        keys = StreamKeys(produces.key)
        once = (keys.once(message_id), int(remembered * 1000) + _REMEMBERED)
        entry = await self._wire.call("FCALL", "as1_add", 1, keys.stream, keys.gate, *once, "m", data)
        return SentMessage(message_id, produces.stream, entry.decode())
