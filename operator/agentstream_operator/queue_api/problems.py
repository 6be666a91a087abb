"""Errors as `application/problem+json`: what is wrong, where, and what to do about it.

https://www.rfc-editor.org/rfc/rfc9457
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from agentstream.errors import AgentStreamError
from agentstream.printable import printable
from agentstream_operator.queue_api.documents import Mistake, Problem
from agentstream_operator.queue_api.ports import Forbidden, ReplayRefused, Unauthenticated, Unavailable

MEDIA_TYPE = "application/problem+json"

_log = logging.getLogger(__name__)
_MOST_MISTAKES = 20
_LONGEST_POINTER, _LONGEST_DETAIL = 200, 500
_SEE_CALLS = "GET /openapi.json describes every call"
_AGAIN = "try again in some seconds; the conditions of the resources say more: kubectl describe"
_REFUSED = {
    HTTPStatus.FORBIDDEN: "ask for the right to it, or let somebody do it who has it",
    HTTPStatus.CONFLICT: "look at it with GET /queue/replays, and try again",
}


class Refusal(Exception):  # noqa: N818 - named after what it is
    """A request that is answered with a problem: the status, what is wrong, and what to do about it."""

    def __init__(
        self, status: HTTPStatus, detail: str, remedy: str, *mistakes: Mistake, headers: Any = None
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.remedy = remedy
        self.mistakes = mistakes
        self.headers: Mapping[str, str] = headers or {}

    @property
    def problem(self) -> Problem:
        """The document."""
        return Problem(
            title=self.status.phrase,
            status=self.status,
            detail=printable(self.detail)[:_LONGEST_DETAIL],
            remedy=self.remedy,
            errors=self.mistakes,
        )

    def response(self) -> Response:
        """Builds the answer."""
        return Response(self.problem.model_dump_json(), self.status, self.headers, MEDIA_TYPE)


def not_found(what: str, remedy: str) -> Refusal:
    """Something that the path or the query names is not there."""
    return Refusal(HTTPStatus.NOT_FOUND, f"{what} does not exist", remedy)


def invalid(pointer: str, detail: str, remedy: str) -> Refusal:
    """A part of the request is not what it should be."""
    mistake = Mistake(pointer=pointer, detail=detail)
    return Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, f"{pointer}: {detail}", remedy, mistake)


def no_stream(what: str) -> Refusal:
    """A resource has no place on the server: its stream is missing, or belongs to another resource."""
    detail = f"{what} has no stream, or another resource has its place"
    remedy = "its conditions say why: kubectl describe"
    return Refusal(HTTPStatus.CONFLICT, detail, remedy)


def busy(what: str) -> Refusal:
    """Too much of something is under way."""
    remedy = "wait for what is under way, then try again"
    return Refusal(HTTPStatus.TOO_MANY_REQUESTS, what, remedy, headers={"Retry-After": "1"})


def unavailable(what: str) -> Refusal:
    """Something that is needed does not answer."""
    return Refusal(HTTPStatus.SERVICE_UNAVAILABLE, what, _AGAIN, headers={"Retry-After": "5"})


def failure_of(error: Exception) -> Refusal:
    """Returns the failure of a request that an error means; an unexpected one is logged."""
    if isinstance(error, Refusal):
        return error
    for kind, build in _BUILDERS.items():
        if isinstance(error, kind):
            return build(error)
    _log.error("a request failed", exc_info=error)
    detail, remedy = "an error of this server", "its log says more; please report it"
    return Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, detail, remedy)


def add_handlers(app: FastAPI) -> None:
    """Answers every error with a problem."""

    async def answer(request: Request, error: Exception) -> Response:
        del request
        return failure_of(error).response()

    kinds: tuple[type[Exception], ...] = (Refusal, *_BUILDERS, Exception)
    for kind in kinds:
        app.add_exception_handler(kind, answer)


def _unauthenticated(error: Exception) -> Refusal:
    remedy = "send the header Authorization: Bearer TOKEN, with a token of somebody known"
    challenge = {"WWW-Authenticate": 'Bearer realm="agentstream"'}
    return Refusal(HTTPStatus.UNAUTHORIZED, str(error), remedy, headers=challenge)


def _forbidden(error: Exception) -> Refusal:
    remedy = "send the request to the address that the server was started with, from no other site"
    return Refusal(HTTPStatus.FORBIDDEN, str(error), remedy)


def _refused(error: Any) -> Refusal:
    status = HTTPStatus(error.status)
    return Refusal(status, str(error), _REFUSED.get(status, _SEE_CALLS))


def _mistaken_request(error: Any) -> Refusal:
    return _mistaken(error.errors())


def _of_path(error: Any) -> Refusal:
    status = HTTPStatus(error.status_code)
    if status is HTTPStatus.NOT_FOUND:
        return Refusal(status, "there is nothing at this path", _SEE_CALLS)
    if status is HTTPStatus.METHOD_NOT_ALLOWED:
        headers = error.headers or {}
        remedy = f"use {headers.get('Allow', 'another method')}; {_SEE_CALLS}"
        return Refusal(status, "this path does not take this method", remedy, headers=headers)
    remedy = "send a body that is JSON" if status is HTTPStatus.BAD_REQUEST else _SEE_CALLS
    return Refusal(status, str(error.detail), remedy)


def _mistaken(errors: Iterable[Any]) -> Refusal:
    mistakes = [
        Mistake(
            pointer=printable("/".join(map(str, error["loc"])))[:_LONGEST_POINTER],
            detail=printable(error["msg"])[:_LONGEST_DETAIL],
        )
        for error in errors
    ][:_MOST_MISTAKES]
    first = mistakes[0]
    detail = f"{first.pointer}: {first.detail}" + (
        f", and {len(mistakes) - 1} more" if len(mistakes) > 1 else ""
    )
    remedy = f"correct what `errors` lists; {_SEE_CALLS}"
    return Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, detail, remedy, *mistakes)


_BUILDERS: Mapping[type[Exception], Callable[[Any], Refusal]] = {
    Unauthenticated: _unauthenticated,
    Forbidden: _forbidden,
    ReplayRefused: _refused,
    Unavailable: lambda error: unavailable(str(error)),
    AgentStreamError: lambda error: unavailable(f"Redis or Valkey does not answer: {error}"),
    TimeoutError: lambda _: unavailable("this took too long"),
    RequestValidationError: _mistaken_request,
    HTTPException: _of_path,
}
