"""Notifications: published to the processes that listen now (Pub/Sub), and not kept.

A listener that is away, connecting or too slow misses them, without an error. Send what must arrive as a
message.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, Self

import msgspec

from agentstream.errors import InvalidMessage
from agentstream.protocol.envelope import check_numbers
from agentstream.transport.subscriptions import Subscriptions

DEFAULT_BUFFER = 1_000
_MOST_BYTES = 16 << 20
"""Bytes that a buffer keeps: any agent of the namespace may publish as much as the server lets it."""

_log = logging.getLogger("agentstream")


class Notification(msgspec.Struct, frozen=True, kw_only=True):
    """A notification.

    Attributes:
        sender: the agent that claims to have sent it; `from` in JSON. It is not verified.
        payload: the data: a JSON object.
        timestamp: when it was sent, in seconds since 1970.
    """

    sender: str = msgspec.field(name="from")
    payload: dict[str, Any]
    timestamp: float


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Notification)


def notification(sender: str, payload: dict[str, Any]) -> bytes:
    """Encodes a notification that is sent now. Raises InvalidMessage if the payload is no JSON object."""
    try:
        data = _encoder.encode(Notification(sender=sender, payload=payload, timestamp=time.time()))
        _decoder.decode(data)
        check_numbers(payload, data)
    except (msgspec.MsgspecError, TypeError, ValueError, RecursionError) as error:
        raise InvalidMessage(f"the notification is no JSON: {error}") from error
    return data


class Mailbox:
    """Buffers the notifications of one listener; when it is full, drops and counts the oldest ones.

    It is full at `size` of them, or where several have more than 16 MiB together.
    """

    def __init__(self, size: int, on_drop: Callable[[], object]) -> None:
        self._on_drop = on_drop
        self._size = size
        self._bytes = 0
        self._buffer: deque[bytes] = deque()
        self._changed = asyncio.Event()
        self._ends: list[Any] = []
        self.is_over: bool = False
        self.dropped: int = 0

    def listen(self, subscriptions: Subscriptions, channels: Iterable[str]) -> None:
        """Subscribes to channels."""
        self._ends = [subscriptions.listen(channel, self._receive) for channel in channels]

    def end(self) -> None:
        """Unsubscribes; what is in the buffer can still be taken."""
        if not self.is_over:
            self.is_over = True
            for end in self._ends:
                end()
            self._changed.set()

    async def take(self) -> bytes | None:
        """Waits for the oldest notification; None when the mailbox is closed and empty."""
        while not self._buffer:
            if self.is_over:
                return None
            self._changed.clear()
            await self._changed.wait()
        return self._pop()

    def _pop(self) -> bytes:
        oldest = self._buffer.popleft()
        self._bytes -= len(oldest)
        return oldest

    def _receive(self, data: bytes) -> None:
        while self._buffer and (len(self._buffer) >= self._size or self._bytes + len(data) > _MOST_BYTES):
            self._pop()
            self.dropped += 1
            self._on_drop()
        self._buffer.append(data)
        self._bytes += len(data)
        self._changed.set()


class Notifications(AsyncIterator[Notification]):
    """The notifications to one agent and to all agents: an asynchronous iterator, until the agent stops.

    While the iterator is slow, the oldest notifications are dropped and counted. The subscription ends with
    `aclose`, at the end of `async with`, and soon after the last reference to the iterator is gone.
    """

    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox
        self._loop = asyncio.get_running_loop()

    @property
    def dropped(self) -> int:
        """How many notifications were dropped because the iterator was slow."""
        return self._mailbox.dropped

    async def __anext__(self) -> Notification:
        """Waits for the next notification. Raises nothing but StopAsyncIteration."""
        while (data := await self._mailbox.take()) is not None:
            try:
                return _decoder.decode(data)
            except (msgspec.MsgspecError, ValueError, RecursionError) as error:
                _log.warning("dropped what was published and is no notification: %s", error)
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Ends the subscription."""
        self._mailbox.end()

    async def __aenter__(self) -> Self:
        """Returns the iterator; ends the subscription at the end."""
        return self

    async def __aexit__(self, *error: object) -> None:
        """Ends the subscription."""
        await self.aclose()

    def __del__(self) -> None:
        """Ends the subscription of a loop that was left with `break`."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._mailbox.end)
