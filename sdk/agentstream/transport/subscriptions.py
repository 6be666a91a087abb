"""What is published to the channels of this agent: one connection for all who listen to any of them.

It is made when the first one listens, and lasts until the last one has ended. What is published while it is
away is lost: a channel carries what only makes things faster, or what is declared lossy.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from agentstream.transport.client import Client

_SILENCE = 15.0
"""Seconds after which a connection on which nothing comes is asked for a sign of life, and for how long."""


class Subscriptions:
    """The channels that this process listens to.

    Args:
        connect: makes a wire that listens, given `channels`, `on_push` and `timeout` as `Client` takes them.
    """

    def __init__(self, connect: Callable[..., Client]) -> None:
        self._connect = connect
        self._handlers: dict[str, list[Callable[[bytes], None]]] = {}
        self._subscribed: frozenset[str] = frozenset()
        self._client: Client | None = None
        self._following: asyncio.Task[None] | None = None

    def listen(self, channel: str, handler: Callable[[bytes], None]) -> Callable[[], None]:
        """Has a handler called in the event loop with whatever is published on a channel from soon on.

        Returns:
            What ends that.
        """
        self._handlers.setdefault(channel, []).append(handler)
        self._follow()

        def end() -> None:
            self._handlers[channel].remove(handler)
            if not self._handlers[channel]:
                del self._handlers[channel]
            self._follow()

        return end

    async def close(self) -> None:
        """Closes the connection."""
        self._handlers.clear()
        self._follow()
        if self._following is not None:
            await self._following

    def _follow(self) -> None:
        """Lets the connection be as handlers want it, once all of this tick have said so."""
        if self._following is None:
            self._following = asyncio.create_task(self._reconnect(), name="follow channels")

    async def _reconnect(self) -> None:
        # a channel that nobody listens to any more costs nothing until the next connect
        while not self._subscribed >= self._handlers.keys() or (self._client and not self._handlers):
            client, self._client = self._client, None
            if client is not None:
                await client.close()
            self._subscribed = frozenset(self._handlers)
            if self._subscribed:
                channels = sorted(self._subscribed)
                self._client = self._connect(
                    channels=lambda channels=channels: channels, on_push=self._published, timeout=_SILENCE
                )
                self._client.open()
        self._following = None

    def _published(self, channel: bytes, data: bytes) -> None:
        for handler in tuple(self._handlers.get(channel.decode(), ())):
            handler(data)
