"""Subscriptions of one agent: one connection serves all handlers of all channels.

It is made for the first handler, and closed after the last one. What is published while it is broken is lost:
channels carry hints that make things faster, and notifications, which are declared lossy.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from agentstream.transport.client import Client

_SILENCE = 15.0
"""Seconds without a published message after which the connection is checked, and for how long."""


class Subscriptions:
    """Calls handlers with what is published on their channels; the `Listener` of its own client.

    Args:
        connect: makes a client, given `listener` and `timeout` as `Client` takes them.
    """

    def __init__(self, connect: Callable[..., Client]) -> None:
        self._connect = connect
        self._handlers: dict[str, list[Callable[[bytes], None]]] = {}
        self._subscribed: frozenset[str] = frozenset()
        self._client: Client | None = None
        self._following: asyncio.Task[None] | None = None

    def listen(self, channel: str, handler: Callable[[bytes], None]) -> Callable[[], None]:
        """Calls a handler in the event loop with each message published on a channel, from soon on.

        Returns:
            A function that ends the subscription.
        """
        self._handlers.setdefault(channel, []).append(handler)
        self._follow()

        def end() -> None:
            self._handlers[channel].remove(handler)
            if not self._handlers[channel]:
                del self._handlers[channel]
            self._follow()

        return end

    def channels(self) -> Sequence[str]:
        """The channels that the connection subscribes to."""
        return sorted(self._subscribed)

    def pushed(self, channel: bytes, data: bytes) -> None:
        """Calls the handlers of a channel."""
        for handler in tuple(self._handlers.get(channel.decode(), ())):
            handler(data)

    async def close(self) -> None:
        """Closes the connection."""
        self._handlers.clear()
        self._follow()
        if self._following is not None:
            await self._following

    def _follow(self) -> None:
        """Subscribes to the channels of all handlers, once this tick is over."""
        if self._following is None:
            self._following = asyncio.create_task(self._reconnect(), name="follow channels")

    async def _reconnect(self) -> None:
        # a channel without handlers stays subscribed until the next connect, as it costs nothing
        while not self._subscribed >= self._handlers.keys() or (self._client and not self._handlers):
            client, self._client = self._client, None
            if client is not None:
                await client.close()
            self._subscribed = frozenset(self._handlers)
            if self._subscribed:
                self._client = self._connect(listener=self, timeout=_SILENCE)
                self._client.open()
        self._following = None
