"""Knows callers on this machine by a token: whoever can read the file with it is its owner.

A page of another site can send requests to 127.0.0.1, and by DNS rebinding also under a name of its own: the
headers Host and Origin show it (https://en.wikipedia.org/wiki/DNS_rebinding).
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection

from agentstream_operator.queue_api.ports import Caller, Forbidden, Unauthenticated, Verb

_NAMES: Final = frozenset({"127.0.0.1", "localhost", "::1"})


@dataclass(frozen=True, slots=True)
class LoopbackAuthenticator:
    """Knows the one user who has the token, at an address of this machine with this port."""

    token: str = field(repr=False)
    user: str
    port: int

    async def authenticate(self, request: HTTPConnection) -> Caller:
        """Returns the user.

        Raises:
            Forbidden: the request comes through a name, or from a site, that is not this machine's.
            Unauthenticated: it has not the token.
        """
        hosts = request.headers.getlist("host")
        if len(hosts) != 1 or not self._is_ours(f"http://{hosts[0]}"):
            raise Forbidden("the header Host names another machine than this one")
        if any(not self._is_ours(origin) for origin in request.headers.getlist("origin")):
            raise Forbidden("the request comes from a page of another site")
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not given:
            raise Unauthenticated("there is no token; .agentstream/console has it")
        if not hmac.compare_digest(given.strip().encode(), self.token.encode()):
            raise Unauthenticated("the token is not that of this run; .agentstream/console has it")
        return Caller(self.user)

    def _is_ours(self, url: str) -> bool:
        try:
            parts = urlsplit(url)
            port = parts.port or 80
        except ValueError:
            return False
        plain = parts.scheme == "http" and not (parts.path or parts.query or parts.fragment or parts.username)
        return plain and parts.hostname in _NAMES and port == self.port


class OwnerMayAll:
    """Allows everything: on a laptop, everything belongs to the user."""

    async def allow(self, caller: Caller, verb: Verb, resource: str, namespace: str, name: str) -> bool:
        """Returns that the caller may do this."""
        del caller, verb, resource, namespace, name
        return True
