"""Asks the HTTP API, and says in a line what came of it where that was not an answer."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Self, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from agentstream_operator.commands.failure import BAD_INPUT, NOT_SO, UNREACHABLE, CommandFailed
from agentstream_operator.commands.options import ApiTarget
from agentstream_operator.queue_api.documents import Problem

Document = TypeVar("Document", bound=BaseModel)
Query = Mapping[str, object]
"""Parameters of a query; those that are None are left out, a tuple or list is one parameter for each."""

_CONNECT, _ANSWER, _SILENT = 5.0, 30.0, 60.0
"""Seconds to connect, until an answer goes on, and of silence of a stream of events."""

_TITLES = {
    401: "the API does not know who asks",
    403: "not allowed",
    409: "it is in the way of something else",
    422: "the request is not valid",
    429: "the API has too much to do",
    503: "the API cannot answer now",
}
_UNKNOWN_CALLER = "is the token valid? `kubectl auth whoami`, or --token-file for --api"


class SentEvent(NamedTuple):
    """A server-sent event."""

    name: str
    data: str
    id: str
    """Of the latest event that had one: a view of messages goes on from it."""


class QueueClient:
    """Sends requests to the API.

    What goes wrong is a `CommandFailed`: with exit code 1 for what is not there, not allowed or in the way, 2
    for a request that makes no sense, 3 where the API or the server behind it does not answer.
    """

    def __init__(self, target: ApiTarget, transport: httpx.BaseTransport | None = None) -> None:
        self._target = target
        self._http = httpx.Client(
            base_url=target.url,
            auth=_Bearer(target),
            verify=target.verify,
            timeout=httpx.Timeout(_ANSWER, connect=_CONNECT),
            # else a proxy would get requests for this machine, and a .netrc would speak for the token
            trust_env=target.proxies,
            headers={"Accept": "application/json"},
            transport=transport,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def get(self, path: str, document: type[Document], query: Query | None = None) -> Document:
        """Gets a document; `path` as `url` builds it."""
        return self._parse(self._send("GET", path, query), document)

    def post(
        self, path: str, body: object, document: type[Document], *, headers: Mapping[str, str] | None = None
    ) -> Document:
        """Posts a body, which is converted to JSON."""
        return self._parse(self._send("POST", path, None, body, headers), document)

    def patch(
        self, path: str, body: object, document: type[Document], query: Query | None = None
    ) -> Document:
        """Changes a part (RFC 7396)."""
        return self._parse(self._send("PATCH", path, query, body), document)

    def delete(self, path: str, query: Query | None = None) -> None:
        """Deletes what a path names."""
        self._send("DELETE", path, query)

    def events(self, path: str, query: Query | None = None, after: str = "") -> Iterator[SentEvent]:
        """Yields server-sent events until the API ends them; after the one with an id, if it is given."""
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": after} if after else {})
        timeout = httpx.Timeout(_SILENT, connect=_CONNECT)
        try:
            with self._http.stream(
                "GET", path, params=_params(query), headers=headers, timeout=timeout
            ) as response:
                if response.is_error:
                    response.read()
                    raise _refusal(response, self._target)
                yield from parse_events(response.iter_lines())
        except httpx.HTTPError as error:
            raise _silence(error, self._target) from error

    def _send(
        self,
        method: str,
        path: str,
        query: Query | None = None,
        body: object = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        try:
            response = self._http.request(
                method, path, params=_params(query), json=body, headers=dict(headers or {})
            )
        except httpx.HTTPError as error:
            raise _silence(error, self._target) from error
        if not response.is_success:
            raise _refusal(response, self._target)
        return response

    def _parse(self, response: httpx.Response, document: type[Document]) -> Document:
        try:
            return document.model_validate_json(response.content)
        except ValidationError as error:
            raise CommandFailed(
                f"{self._target.place} answered what this version does not understand: "
                "is it of the same version as `agentstream version`?",
                code=UNREACHABLE,
            ) from error


def url(*parts: str) -> str:
    """Builds a path of the API; each part is one segment, whatever is in it."""
    return "".join(f"/{quote(part, safe='')}" for part in parts)


def parse_events(lines: Iterable[str]) -> Iterator[SentEvent]:
    """Yields events from the lines of a `text/event-stream`."""
    name, data, id_ = "message", list[str](), ""
    for line in lines:
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            name = value
        elif field == "data":
            data.append(value)
        elif field == "id":
            id_ = value
        elif not line:
            if data:
                yield SentEvent(name, "\n".join(data), id_)
            name, data = "message", []


class _Bearer(httpx.Auth):
    """Adds the token; asks for it again, once, when it is not accepted: those of plugins expire."""

    def __init__(self, target: ApiTarget) -> None:
        self._target = target
        self._token = target.token()

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        if self._token is None:
            yield request
            return
        request.headers["Authorization"] = f"Bearer {self._token}"
        response = yield request
        if response.status_code == httpx.codes.UNAUTHORIZED:
            again = self._target.token()
            if again != self._token:
                self._token = again
                request.headers["Authorization"] = f"Bearer {again}"
                yield request


def _params(query: Query | None) -> dict[str, Any]:
    """The parameters that are given; true and false as JSON has them."""
    given = {name: value for name, value in (query or {}).items() if value is not None}
    return {name: json.dumps(value) if isinstance(value, bool) else value for name, value in given.items()}


def _silence(error: httpx.HTTPError, target: ApiTarget) -> CommandFailed:
    """The failure that no answer means."""
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return CommandFailed(f"{target.place} does not answer: {target.remedy}", code=UNREACHABLE)
    said = " ".join(str(error).split()) or type(error).__name__
    return CommandFailed(f"{target.place} gave no full answer: {said}", code=UNREACHABLE)


def _refusal(response: httpx.Response, target: ApiTarget) -> CommandFailed:
    """The failure that an answer without success means: one line, and one for each mistake of the request."""
    status = response.status_code
    try:
        problem = Problem.model_validate_json(response.content)
    except ValidationError:
        # not from the API, but from something before it
        return CommandFailed(f"{target.place} answered {status} {response.reason_phrase}", code=UNREACHABLE)
    title = _TITLES.get(status)
    said = problem.detail if title is None else f"{title}: {problem.detail}"
    remedy = problem.remedy or (_UNKNOWN_CALLER if status == httpx.codes.UNAUTHORIZED else "")
    lines = [f"{said.rstrip('.')}: {remedy}" if remedy else said]
    lines += [f"{each.pointer}: {each.detail}" for each in problem.errors]
    return CommandFailed(*lines, code=_code(status))


def _code(status: int) -> int:
    if status in {400, 413, 415, 422}:
        return BAD_INPUT
    # of 401 the token is at fault, which comes with the way to the API
    return UNREACHABLE if status in {401, 408, 429} or status >= 500 else NOT_SO  # noqa: PLR2004
