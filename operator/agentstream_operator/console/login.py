"""Logs browsers in: with a token, or on a laptop with a code that works once."""

from __future__ import annotations

from http import HTTPStatus
from urllib.parse import parse_qs

from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import Scope

from agentstream_operator.console.pages import ShownPage, render
from agentstream_operator.console.visitors import Visitors, fits, forget, remember
from agentstream_operator.queue_api.ports import Unauthenticated

ROOT = "/console"
LOGIN = f"{ROOT}/login"


async def login(visitors: Visitors, scope: Scope, body: bytes) -> Response:
    """Shows the form, or remembers who a token belongs to.

    Raises:
        Forbidden, Unavailable: as the authenticator.
    """
    query = parse_qs(scope["query_string"].decode("latin-1"))
    form = parse_qs(body.decode("latin-1"))
    following = _ours([*query.get("next", ()), *form.get("next", ()), ROOT][0])
    code = query.get("code")
    if scope["method"] != "POST" and code is None:
        return _form(following)
    if code is not None:
        found = visitors.codes.redeem(code[0])
        token, problem = (
            found or "",
            "this link was used before, or is too old: `agentstream console` makes a new one",
        )
    else:
        token, problem = form.get("token", [""])[0].strip(), "this is no token"
    if not fits(token):
        return _form(following, problem)
    try:
        await visitors.login(scope, token)
    except Unauthenticated as error:
        return _form(following, str(error))
    response = RedirectResponse(following, HTTPStatus.SEE_OTHER)
    return remember(response, token, secure=scope["scheme"] == "https")


def logout() -> Response:
    """Forgets who a browser belongs to."""
    return forget(RedirectResponse(LOGIN, HTTPStatus.SEE_OTHER))


def _form(following: str, problem: str | None = None) -> Response:
    page = ShownPage("login.html", "Log in", {"next": following, "problem": problem})
    status = HTTPStatus.OK if problem is None else HTTPStatus.FORBIDDEN
    return HTMLResponse(render(page, None, LOGIN), status)


def _ours(address: str) -> str:
    """Returns an address if it is one of the console; else the first page: a login leads to no other site."""
    path = address.partition("?")[0].partition("#")[0]
    is_ours = path == ROOT or path.startswith(f"{ROOT}/")
    return address if is_ours and address.isprintable() and "\\" not in address else ROOT
