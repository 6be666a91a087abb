"""Knows who sends a request: by a token of the cluster, or as a trusted proxy says."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection

from agentstream_operator.queue_api.ports import Caller, Forbidden, Unauthenticated
from agentstream_operator.queue_server.tokens import TokenReviews
from agentstream_operator.serve.request_header import NotFromProxy, RequestHeaderConfig

_HERE: Final = frozenset({"127.0.0.1", "localhost", "::1"})
"""What a forwarded port is called on the machine that it is forwarded to."""


@dataclass(frozen=True, slots=True, eq=False)
class ClusterAuthenticator:
    """Knows callers by bearer tokens, and those whom a proxy names that shows a certificate of its CA.

    `hosts` are the names that requests may come to. `proxies` returns what is trusted of proxies; None: none.
    """

    tokens: TokenReviews
    hosts: Collection[str]
    proxies: Callable[[], RequestHeaderConfig | None]

    async def authenticate(self, request: HTTPConnection) -> Caller:
        """Returns who sends a request. A proxy's word comes before a token that it may pass on.

        Raises:
            Forbidden: the request comes through a name, or from a site, that is not the server's.
            Unauthenticated: nothing says who sends it, or what says so does not hold.
            Unavailable: the API server cannot say whose the token is.
        """
        self._check_names(request)
        if (proxied := self._proxied(request)) is not None:
            return proxied
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise Unauthenticated("there is no bearer token")
        return await self.tokens.caller(token.strip())

    def _proxied(self, request: HTTPConnection) -> Caller | None:
        """Returns whom a proxy names; None if no proxy sends the request."""
        peer, trusted = request.scope.get("state", {}).get("peer"), self.proxies()
        if peer is None or trusted is None:
            return None
        try:
            user = trusted.authenticate(peer, request.scope["headers"])
        except NotFromProxy as error:
            raise Unauthenticated(
                "the client certificate is not that of a trusted proxy, or the proxy names no user"
            ) from error
        return Caller(user.name, user.groups, user.uid, user.extra)

    def _check_names(self, request: HTTPConnection) -> None:
        hosts = request.headers.getlist("host")
        if len(hosts) != 1 or not self._is_ours(f"https://{hosts[0]}"):
            raise Forbidden("the header Host has no name of this server: see queueServer.hosts of the chart")
        # a page of another service on this machine, or of another name of this one, is another site, too
        if any(origin != f"https://{hosts[0]}" for origin in request.headers.getlist("origin")):
            raise Forbidden("the request comes from a page of another site")

    def _is_ours(self, url: str) -> bool:
        try:
            parts = urlsplit(url)
            host = parts.hostname
        except ValueError:
            return False
        plain = not (parts.path or parts.query or parts.fragment or parts.username)
        return plain and host is not None and (host in _HERE or host in self.hosts)
