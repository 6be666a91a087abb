"""Notifications: told to whoever listens just now, and to nobody else.

They are published, not kept. One that is published while a listener is away, connecting or too slow is lost
to it, and nobody is told. What must arrive is a message on a stream.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from types import TracebackType
from typing import Any, Self

import msgspec

from agentstream.errors import InvalidMessage
from agentstream.protocol.envelope import check_numbers
from agentstream.transport.subscriptions import Subscriptions

DEFAULT_BUFFER = 1_000
_log = logging.getLogger("agentstream")


class Notification(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent told others.

    Attributes:
        sender: the agent that says it sent it; `from` in JSON. Any agent of the namespace could say so.
        payload: the data: a JSON object.
        timestamp: when it was sent, in seconds since 1970.
    """

    sender: str = msgspec.field(name="from")
    payload: dict[str, Any]
    timestamp: float


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Notification)


def notification(sender: str, payload: dict[str, Any]) -> bytes:
    """The JSON of a notification that is sent now.

    Raises:
        InvalidMessage: the payload is no JSON object.
    """
    try:
        data = _encoder.encode(Notification(sender=sender, payload=payload, timestamp=time.time()))
        _decoder.decode(data)
        check_numbers(payload, data)
    except (msgspec.MsgspecError, TypeError, ValueError, RecursionError) as error:
        raise InvalidMessage(f"the notification is no JSON: {error}") from error
    return data


class Mailbox:
    """What came for one listener and was not taken yet: the newest ones, as many as it holds.

    Args:
        size: how many it holds.
        on_drop: called when one has to make room for a newer one.

    Attributes:
        dropped: how many had to make room for newer ones.
    """

    def __init__(self, size: int, on_drop: Callable[[], object]) -> None:
        self._on_drop = on_drop
        self._kept: deque[bytes] = deque(maxlen=size)
        self._changed = asyncio.Event()
        self._ends: list[Any] = []
        self._over = False
        self.dropped: int = 0

    @property
    def is_over(self) -> bool:
        """Whether it takes nothing more."""
        return self._over

    def listen(self, subscriptions: Subscriptions, channels: Iterable[str]) -> None:
        """Takes what is published on these channels from soon on."""
        self._ends = [subscriptions.listen(channel, self._came) for channel in channels]

    def end(self) -> None:
        """Takes nothing more; what is here can still be taken."""
        if not self._over:
            self._over = True
            for end in self._ends:
                end()
            self._changed.set()

    async def take(self) -> bytes | None:
        """The oldest one; None when there will be no more."""
        while not self._kept:
            if self._over:
                return None
            self._changed.clear()
            await self._changed.wait()
        return self._kept.popleft()

    def _came(self, data: bytes) -> None:
        if len(self._kept) == self._kept.maxlen:
            self.dropped += 1
            self._on_drop()
        self._kept.append(data)
        self._changed.set()


class Notifications(AsyncIterator[Notification]):
    """The notifications to one agent, and to all: an asynchronous iterator that ends when the agent stops.

    A listener that is slow keeps the newest ones; those that had to make room are counted, not delivered.
    Listening ends with `aclose`, where `async with` ends, and soon after nothing refers to it any more.
    """

    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox
        self._loop = asyncio.get_running_loop()

    @property
    def dropped(self) -> int:
        """How many were lost because this listener was slow; those lost on the way are not known."""
        return self._mailbox.dropped

    async def __anext__(self) -> Notification:
        """The next notification. It raises nothing but StopAsyncIteration."""
        while (data := await self._mailbox.take()) is not None:
            try:
                return _decoder.decode(data)
            except (msgspec.MsgspecError, ValueError, RecursionError) as error:
                _log.warning("somebody published what is no notification: %s", error)
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Ends listening."""
        self._mailbox.end()

    async def __aenter__(self) -> Self:
        """The notifications; ends listening at the end."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends listening."""
        await self.aclose()

    def __del__(self) -> None:
        """Ends listening for a loop that was left with `break`."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._mailbox.end)
