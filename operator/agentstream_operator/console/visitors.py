"""Knows who looks at pages: by a cookie with the token of the login, or as the API knows callers.

The cookie is `SameSite=Strict`, so that no other site sends it, and scripts cannot read it.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from typing import Any, Final

from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.types import Scope

from agentstream_operator.queue_api.ports import Authenticator, Caller

COOKIE: Final = "agentstream-token"
CODE_LIVES: Final = 60.0
"""Seconds for which a code works."""

_MOST_CODES: Final = 100
_LARGEST: Final = 4_000
"""Bytes of a token that fits a cookie."""


@dataclass(slots=True, eq=False)
class OneTimeCodes:
    """Codes for links that log a browser in: each stands for a token, works once, and for a minute."""

    now: Callable[[], float] = time.monotonic
    _codes: dict[str, tuple[str, float]] = field(init=False, default_factory=dict, repr=False)

    def new(self, token: str) -> str:
        """Returns a new code for a token."""
        at = self.now()
        for old in [code for code, (_, end) in self._codes.items() if end <= at]:
            del self._codes[old]
        while len(self._codes) >= _MOST_CODES:
            del self._codes[next(iter(self._codes))]
        code = secrets.token_urlsafe(16)
        self._codes[code] = token, at + CODE_LIVES
        return code

    def redeem(self, code: str) -> str | None:
        """Returns the token for a code, which then is used up; None for anything else."""
        token, end = self._codes.pop(code, ("", 0.0))
        return token if token and self.now() < end else None


@dataclass(frozen=True, slots=True, eq=False)
class Visitors:
    """Knows visitors, and logs them in."""

    authenticator: Authenticator
    codes: OneTimeCodes

    async def caller(self, scope: Scope) -> Caller:
        """Returns who sends a request, by its headers or by its cookie.

        Raises:
            Unauthenticated, Forbidden, Unavailable: as the authenticator.
        """
        token = _cookie(HTTPConnection(scope))
        return await self.authenticator.authenticate(Request(_bearing(scope, token) if token else scope))

    async def login(self, scope: Scope, token: str) -> Caller:
        """Returns whose a token is. Raises as `caller`."""
        return await self.authenticator.authenticate(Request(_bearing(scope, token)))


def remember(response: Response, token: str, *, secure: bool) -> Response:
    """Sets the cookie of a login, until the browser is closed."""
    response.set_cookie(COOKIE, token, httponly=True, samesite="strict", secure=secure, path="/console")
    return response


def forget(response: Response) -> Response:
    """Ends a login."""
    response.delete_cookie(COOKIE, path="/console")
    return response


def fits(token: str) -> bool:
    """Whether a token can be remembered: it is short enough for a cookie, and nothing in it ends one."""
    return (
        0 < len(token) <= _LARGEST
        and token.isascii()
        and token.isprintable()
        and not set(token) & set('",; \\')
    )


def _cookie(request: HTTPConnection) -> str | None:
    jar: SimpleCookie = SimpleCookie()
    for header in request.headers.getlist("cookie"):
        try:
            jar.load(header)
        except CookieError:
            continue
    return jar[COOKIE].value or None if COOKIE in jar else None


def _bearing(scope: Scope, token: str) -> dict[str, Any]:
    """Returns the scope of the same request with a bearer token, unless it has one."""
    headers = list(scope["headers"])
    if not any(name == b"authorization" for name, _ in headers):
        headers.append((b"authorization", f"Bearer {token}".encode()))
    return {**scope, "headers": headers}
