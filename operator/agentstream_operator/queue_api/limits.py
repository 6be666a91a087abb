"""What a caller may take of this server: bodies, the time of a call, and calls at a time."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus

from fastapi import Depends
from starlette.requests import Request
from starlette.types import Message, Receive

from agentstream_operator.queue_api.ports import Caller
from agentstream_operator.queue_api.problems import Refusal, busy

LARGEST_BODY = 256 * 1024
"""Bytes of a request's body."""

LONGEST_QUERY = 4_096
"""Bytes of a request's query."""

BODY_WITHIN = 10.0
"""Seconds for a request's body."""


async def whole_body(receive: Receive) -> bytes:
    """Reads the body of a request.

    Raises:
        Refusal: 413: it is too large; 408: it does not come.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_WITHIN):
            while True:
                message = await receive()
                body += message.get("body", b"")
                if len(body) > LARGEST_BODY:
                    detail = f"the body has more than {LARGEST_BODY:,} bytes"
                    raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail, "send less at a time")
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError:
        detail = f"the body did not come within {BODY_WITHIN:g} s"
        raise Refusal(HTTPStatus.REQUEST_TIMEOUT, detail, "send it at once") from None


def received(body: bytes, receive: Receive) -> Receive:
    """Returns a `receive` for a request whose body has been read."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return waiting.pop() if waiting else await receive()

    return again


@dataclass(slots=True, eq=False)
class Turns:
    """Counts what runs at a time: so many for one caller, and so many altogether."""

    each: int
    all: int
    what: str
    _running: Counter[str] = field(init=False, default_factory=Counter)

    @contextmanager
    def of(self, caller: Caller) -> Iterator[None]:
        """Takes a turn.

        Raises:
            Refusal: 429: all of them are taken.
        """
        if self._running[caller.name] >= self.each:
            raise busy(f"{self.each} {self.what} of yours are under way")
        if self._running.total() >= self.all:
            raise busy(f"{self.all} {self.what} are under way")
        self._running[caller.name] += 1
        try:
            yield
        finally:
            self._running[caller.name] -= 1
            if not self._running[caller.name]:
                del self._running[caller.name]


async def _search(request: Request) -> AsyncIterator[None]:
    turns: Turns = request.app.state.searches
    with turns.of(request.state.caller):
        yield


async def _view(request: Request) -> AsyncIterator[None]:
    turns: Turns = request.app.state.views
    with turns.of(request.state.caller):
        yield


SEARCH = Depends(_search)
"""Declares that a route searches entries, which costs the server time."""

VIEW = Depends(_view)
"""Declares that a route answers for minutes."""
