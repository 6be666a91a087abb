"""Sends requests to the HTTP API within the process, in the name of a visitor whose identity is known.

Pages ask nothing else: what a visitor may see, and how much of the server they may take, is decided once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import TypeVar
from urllib.parse import quote, urlencode

import msgspec
from pydantic import BaseModel
from starlette.types import ASGIApp, Message

from agentstream_operator.queue_api.documents import Problem
from agentstream_operator.queue_api.ports import Caller

Document = TypeVar("Document", bound=BaseModel)
Query = Mapping[str, object]
"""Parameters of a query; those that are None or empty are left out."""


class Refused(Exception):  # noqa: N818 - named after what happened
    """An answer of the API that is an error."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.problem = problem


@dataclass(frozen=True, slots=True, eq=False)
class InnerApi:
    """Asks the API as one caller."""

    app: ASGIApp
    caller: Caller

    async def get(self, path: str, document: type[Document], query: Query | None = None) -> Document:
        """Gets a document.

        Raises:
            Refused: the API answers with an error.
        """
        return document.model_validate_json(await self._send("GET", path, query))

    async def post(self, path: str, body: Mapping[str, object], document: type[Document]) -> Document:
        """Posts a body. Raises as `get`."""
        return document.model_validate_json(await self._send("POST", path, None, body))

    async def patch(self, path: str, body: Mapping[str, object], query: Query | None = None) -> None:
        """Changes what a path names. Raises as `get`."""
        await self._send("PATCH", path, query, body)

    async def delete(self, path: str, query: Query | None = None) -> None:
        """Deletes what a path names. Raises as `get`."""
        await self._send("DELETE", path, query)

    async def _send(
        self, method: str, path: str, query: Query | None = None, body: Mapping[str, object] | None = None
    ) -> bytes:
        given = {name: value for name, value in (query or {}).items() if value not in (None, "")}
        data = msgspec.json.encode(body) if body is not None else b""
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": quote(path).encode(),
            "root_path": "",
            "query_string": urlencode(given, doseq=True).encode(),
            "headers": [(b"content-type", b"application/json")] if body is not None else [],
            "state": {"caller": self.caller},
        }
        status, said = 0, bytearray()

        async def receive() -> Message:
            return {"type": "http.request", "body": data, "more_body": False}

        async def send(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            said.extend(message.get("body", b""))

        await self.app(scope, receive, send)
        if status >= HTTPStatus.BAD_REQUEST:
            raise Refused(Problem.model_validate_json(bytes(said)))
        return bytes(said)
