"""The HTTPS server: it knows whose certificate each connection has shown, and can end its connections."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

_KEEP_ALIVE = 90
"""Seconds for which a connection may idle; the API server's own wait as long."""

_END_WITHIN = 10


class TlsServer:
    """Serves an application.

    Args:
        app: which. It finds the common names of the client's certificate in the state `peer` of a request,
            and None there without one.
        context: the server's certificate, and whose of clients are accepted.
    """

    def __init__(self, app: ASGIApp, context: ssl.SSLContext) -> None:
        config = uvicorn.Config(
            app,
            http=_Protocol,
            ws="none",
            lifespan="off",
            interface="asgi3",
            loop="none",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE,
            timeout_graceful_shutdown=_END_WITHIN,
            ssl_context_factory=lambda *_: context,
        )
        self._server = _Uvicorn(config)

    @contextlib.asynccontextmanager
    async def serving(self, listener: socket.socket) -> AsyncIterator[None]:
        """Serves on a socket; at the end requests that are under way are answered.

        Args:
            listener: which; it is closed in the end.
        """
        task = asyncio.create_task(self._server.serve([listener]), name="serve")
        try:
            yield
        finally:
            self._server.should_exit = True
            await task

    def drop_connections(self) -> None:
        """Ends all connections, those with a request under way after its answer."""
        for connection in tuple(self._server.server_state.connections):
            connection.shutdown()


class _Uvicorn(uvicorn.Server):
    """Leaves signals to whom they are for."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Protocol(H11Protocol):
    """A connection that passes on what its certificate says."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # head and body are two writes; asyncio takes a socket that it did not make itself for none of TCP
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # a session of TLS 1.2 that is resumed brings along a certificate that is not verified again
        resumed = transport.get_extra_info("ssl_object").session_reused
        shown = None if resumed else transport.get_extra_info("peercert")
        self.app = _Named(self.app, common_names(shown))


class _Named:
    def __init__(self, app: Any, peer: tuple[str, ...] | None) -> None:
        self._app = app
        self._peer = peer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"]["peer"] = self._peer
        await self._app(scope, receive, send)


def common_names(certificate: dict[str, Any] | None) -> tuple[str, ...] | None:
    """The common names in a certificate that was verified; None without one."""
    if not certificate:
        return None
    return tuple(
        value for part in certificate.get("subject", ()) for name, value in part if name == "commonName"
    )
