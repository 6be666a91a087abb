"""Lets in only requests of known callers, within bounds, and answers what goes wrong on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agentstream_operator.queue_api.limits import LONGEST_QUERY, received, whole_body
from agentstream_operator.queue_api.ports import Authenticator
from agentstream_operator.queue_api.problems import Refusal, failure_of

_HEADERS = (
    # payloads are nobody's to keep
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
)


@dataclass(frozen=True, slots=True, eq=False)
class Gate:
    """Passes on the requests of known callers, with their bodies read; calls `count` with every status."""

    app: ASGIApp
    authenticator: Authenticator
    count: Callable[[int], object]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        started = answered = False

        async def sending(message: Message) -> None:
            nonlocal started, answered
            if message["type"] == "http.response.start":
                started = True
                self.count(message["status"])
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)
            answered = message["type"] == "http.response.body" and not message.get("more_body", False)

        try:
            receive = await self._admit(scope, receive)
            await self.app(scope, receive, sending)
        except Exception as error:
            if answered:
                # Starlette raises again what it has answered
                return
            if started:
                raise
            await failure_of(error).response()(scope, receive, sending)

    async def _admit(self, scope: Scope, receive: Receive) -> Receive:
        if len(scope["query_string"]) > LONGEST_QUERY:
            detail = f"the query has more than {LONGEST_QUERY:,} bytes"
            raise Refusal(HTTPStatus.REQUEST_URI_TOO_LONG, detail, "ask for less at a time")
        scope.setdefault("state", {})["caller"] = await self.authenticator.authenticate(Request(scope))
        return received(await whole_body(receive), receive)
