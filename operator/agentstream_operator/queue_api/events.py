"""Live views as server-sent events: what changes, once a second, until the client goes.

https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import NamedTuple

from agentstream_operator.queue_api.documents import Answer
from agentstream_operator.queue_api.problems import failure_of

EVERY = 1.0
"""Seconds between two looks."""

ALIVE_AFTER = 15.0
"""Seconds of silence after which a comment shows that the connection lives; proxies end silent ones."""

LIFETIME = 30.0
"""Seconds after which a view ends; the client connects again, and shows anew who it is."""

_RETRY = b"retry: 2000\n\n"
_ALIVE = b": nothing new\n\n"


class LiveEvent(NamedTuple):
    """An event: its name, its data, and an id with which a client that comes back goes on from it."""

    name: str
    data: Answer
    id: str = ""

    def encode(self) -> bytes:
        """Encodes it; its JSON has no line breaks."""
        id_ = f"id: {self.id}\n" if self.id else ""
        return f"{id_}event: {self.name}\ndata: {self.data.model_dump_json()}\n\n".encode()


Look = Callable[[], Awaitable[Iterable[LiveEvent]]]
"""Looks once, and returns what is new since the last look."""


@dataclass(slots=True, eq=False)
class LiveViews:
    """All live views that are open; times in seconds."""

    every: float = EVERY
    alive_after: float = ALIVE_AFTER
    lifetime: float = LIFETIME
    _closing: asyncio.Event = field(init=False, default_factory=asyncio.Event)

    def close(self) -> None:
        """Ends all views: a server that stops waits for its answers to end."""
        self._closing.set()

    async def frames(self, look: Look) -> AsyncIterator[bytes]:
        """Yields what a client of a view gets.

        An error of a look is an event `problem`; what may pass is looked at again, anything else is the end.
        """
        clock = asyncio.get_running_loop().time
        yield _RETRY
        end = (spoken := clock()) + self.lifetime
        while clock() < end and not self._closing.is_set():
            try:
                found = await look()
            except Exception as error:  # noqa: BLE001 - it is shown, and logged if it is unexpected
                failure = failure_of(error)
                yield LiveEvent("problem", failure.problem).encode()
                if failure.status < HTTPStatus.INTERNAL_SERVER_ERROR:
                    return
                found, spoken = (), clock()
            for event in found:
                yield event.encode()
                spoken = clock()
            if clock() - spoken >= self.alive_after:
                yield _ALIVE
                spoken = clock()
            await self._pause()

    async def _pause(self) -> None:
        try:
            await asyncio.wait_for(self._closing.wait(), self.every)
        except TimeoutError:
            return
