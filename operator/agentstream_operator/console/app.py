"""The application of the console: which page is where, who may come in, and what browsers are told."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from importlib.resources import files
from typing import Final, TypeVar
from urllib.parse import parse_qs, quote

from starlette.datastructures import Headers
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import compile_path
from starlette.types import Message, Receive, Scope, Send

from agentstream_operator.console import letters, messages, queues, replays
from agentstream_operator.console.history import History
from agentstream_operator.console.inner import InnerApi, Refused
from agentstream_operator.console.login import LOGIN, ROOT, login, logout
from agentstream_operator.console.pages import ShownPage, render, render_main
from agentstream_operator.console.visit import Visit
from agentstream_operator.console.visitors import OneTimeCodes, Visitors, fits
from agentstream_operator.queue_api.documents import Answer, Problem
from agentstream_operator.queue_api.events import LiveEvent, LiveViews
from agentstream_operator.queue_api.gate import Gate
from agentstream_operator.queue_api.limits import Turns, received, whole_body
from agentstream_operator.queue_api.ports import Caller, Unauthenticated
from agentstream_operator.queue_api.problems import Refusal, failure_of, invalid, not_found

_POLICY: Final = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
_HEADERS: Final = (
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    # without it, browsers send forms without saying from where
    (b"referrer-policy", b"same-origin"),
    (b"content-security-policy", _POLICY.encode()),
)
_FILES: Final = {"console.css": "text/css", "console.js": "text/javascript", "icon.svg": "image/svg+xml"}
_OF_ALL, _OF_ONE = 100, 20
"""Pages that are shown anew each second: altogether, and of one visitor; others reload."""

View = Callable[[Visit], Awaitable[ShownPage]]
Action = Callable[[Visit], Awaitable[str]]
Found = TypeVar("Found", View, Action)

_PAGES: Final[Mapping[str, View]] = {
    ROOT: queues.overview,
    f"{ROOT}/streams/{{namespace}}/{{name}}": queues.stream,
    f"{ROOT}/groups/{{namespace}}/{{name}}": queues.group,
    f"{ROOT}/groups/{{namespace}}/{{name}}/deadletters": letters.grouped,
    f"{ROOT}/groups/{{namespace}}/{{name}}/deadletters/list": letters.listed,
    f"{ROOT}/messages/{{namespace}}/{{stream}}/{{entry}}": messages.message,
    f"{ROOT}/conversations/{{namespace}}/{{correlation:path}}": messages.conversation,
    f"{ROOT}/replays": replays.listed,
    f"{ROOT}/replays/{{namespace}}/{{name}}": replays.one,
    f"{ROOT}/replay": replays.tried,
}
_ACTIONS: Final[Mapping[str, Action]] = {
    f"{ROOT}/replay": replays.start,
    f"{ROOT}/replays/{{namespace}}/{{name}}": replays.change,
}


class Fragment(Answer):
    """The part of a page that changes."""

    html: str
    """Its HTML."""


class _LivePage(StreamingResponse):
    """Sends frames, and gives back a turn when it ends, however it does."""

    def __init__(self, frames: AsyncIterator[bytes], turn: ExitStack) -> None:
        super().__init__(frames, media_type="text/event-stream")
        self._turn = turn

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._turn:
            await super().__call__(scope, receive, send)


@dataclass(slots=True, eq=False)
class Console:
    """Answers what is below `ROOT`, and passes on everything else to the API."""

    gate: Gate
    live: LiveViews
    codes: OneTimeCodes = field(default_factory=OneTimeCodes)
    _history: History = field(init=False, default_factory=History)
    _turns: Turns = field(init=False, default_factory=lambda: Turns(_OF_ONE, _OF_ALL, "live pages"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        path = scope.get("path", "")
        if scope["type"] != "http" or (path not in {"/", ROOT} and not path.startswith(f"{ROOT}/")):
            await self.gate(scope, receive, send)
            return

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.gate.count(message["status"])
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)

        body = b""
        try:
            body = await whole_body(receive)
            response = await self._respond(scope, body)
        except Exception as error:  # noqa: BLE001 - it is shown, and logged if it is unexpected
            response = _failed(failure_of(error).problem, None, scope)
        await response(scope, received(body, receive), sending)

    async def _respond(self, scope: Scope, body: bytes) -> Response:
        path: str = scope["path"]
        visitors = Visitors(self.gate.authenticator, self.codes)
        if path == f"{ROOT}/code" and scope["method"] == "POST":
            return await self._link(visitors, scope)
        if path == "/":
            return RedirectResponse(ROOT, HTTPStatus.SEE_OTHER)
        if path.startswith(f"{ROOT}/static/"):
            return _file(path.removeprefix(f"{ROOT}/static/"))
        if path == LOGIN:
            return await login(visitors, scope, body)
        return await self._admitted(visitors, scope, body)

    async def _admitted(self, visitors: Visitors, scope: Scope, body: bytes) -> Response:
        try:
            user = await visitors.caller(scope)
        except Unauthenticated:
            return RedirectResponse(f"{LOGIN}?next={quote(_address(scope))}", HTTPStatus.SEE_OTHER)
        try:
            return await self._page(scope, user, body)
        except (Refused, Refusal) as refused:
            return _failed(refused.problem, user, scope)

    async def _page(self, scope: Scope, user: Caller, body: bytes) -> Response:
        path: str = scope["path"]
        query = parse_qs(scope["query_string"].decode("latin-1"))
        if scope["method"] == "POST":
            if path == f"{ROOT}/logout":
                return logout()
            form = parse_qs(body.decode(errors="replace"))
            act, visit = _find(_ACTIONS, path, self._visit(user, form))
            return RedirectResponse(await act(visit), HTTPStatus.SEE_OTHER)
        if path == f"{ROOT}/live":
            return self._live(user, query.get("page", [ROOT])[0])
        view, visit = _find(_PAGES, path, self._visit(user, query))
        return _shown(await view(visit), user, scope)

    async def _link(self, visitors: Visitors, scope: Scope) -> Response:
        """Makes a link that logs a browser in, for the command line: it gets problems as JSON."""
        token = Headers(scope=scope).get("authorization", "").partition(" ")[2].strip()
        try:
            await visitors.caller(scope)
        except Exception as error:  # noqa: BLE001 - it is answered, and logged if it is unexpected
            return failure_of(error).response()
        if not fits(token):
            why = "there is no token that a browser can keep"
            return invalid("header/Authorization", why, "log in by hand").response()
        return JSONResponse({"path": f"{LOGIN}?code={self.codes.new(token)}"})

    def _live(self, user: Caller, address: str) -> Response:
        """Sends a page anew whenever it has changed."""
        path, _, query = address.partition("?")
        view, visit = _find(_PAGES, path, self._visit(user, parse_qs(query)))
        shown = ""

        async def look() -> list[LiveEvent]:
            nonlocal shown
            try:
                html = render_main(await view(visit))
            except Refused as refused:
                problem = refused.problem
                raise Refusal(HTTPStatus(problem.status), problem.detail, problem.remedy) from refused
            if html == shown:
                return []
            shown = html
            return [LiveEvent("page", Fragment(html=html))]

        turn = ExitStack()
        # now: it is refused while it can be said
        turn.enter_context(self._turns.of(user))
        return _LivePage(self.live.frames(look), turn)

    def _visit(self, user: Caller, query: Mapping[str, list[str]]) -> Visit:
        return Visit(InnerApi(self.gate.app, user), {}, query, self._history)


def _find(pages: Mapping[str, Found], path: str, visit: Visit) -> tuple[Found, Visit]:
    """Returns what is at a path, and the visit with the names in it.

    Raises:
        Refusal: 404: there is nothing.
    """
    for pattern, found in pages.items():
        matched = compile_path(pattern)[0].match(path)
        if matched is not None:
            return found, replace(visit, places=matched.groupdict())
    raise not_found(f"the page {path}", "start at /console")


def _file(name: str) -> Response:
    if name not in _FILES:
        raise not_found(f"the file {name}", "start at /console")
    content = files("agentstream_operator.console").joinpath("static", name).read_bytes()
    return Response(content, media_type=_FILES[name])


def _shown(page: ShownPage, user: Caller | None, scope: Scope) -> Response:
    name = user.name if user is not None else None
    return HTMLResponse(render(page, name, _address(scope)), page.status)


def _failed(problem: Problem, user: Caller | None, scope: Scope) -> Response:
    page = ShownPage("problem.html", problem.title, {"problem": problem}, status=problem.status)
    return _shown(page, user, scope)


def _address(scope: Scope) -> str:
    query = scope["query_string"].decode("latin-1")
    return f"{scope['path']}?{query}" if query else str(scope["path"])
