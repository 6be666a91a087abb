"""Serves ASGI applications with uvicorn in the caller's event loop: an answer shows that the loop turns.

One server for plain HTTP (probes, metrics) and for TLS with client certificates (external metrics).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping

import uvicorn
from fastapi import FastAPI, Response
from starlette.types import ASGIApp

from agentstream_operator.serve.connections import KEEP_ALIVE, LARGEST_HEAD, Acceptor, Connection

Reply = tuple[int, str, bytes]
"""Status, content type and body of a response."""


class ListenError(OSError):
    """A port cannot be listened on; the message names the port and the cause."""


def listening(port: int) -> socket.socket:
    """Opens a socket on all interfaces, for IPv6 and IPv4 with one port where there is IPv6; 0: any free one.

    Raises:
        ListenError: the port is in use, or not permitted.
    """
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", port))
    except OSError as error:
        raise ListenError(f"cannot listen on port {port}: {error.strerror}") from error


@contextlib.asynccontextmanager
async def serving(
    port: int, replies: Mapping[str, Callable[[], Reply | Awaitable[Reply]]]
) -> AsyncIterator[int]:
    """Answers GET requests over plain HTTP on all interfaces, by path. Yields the port: for 0, any free one.

    Calls the reply of the path in the event loop for each request.

    Raises:
        ListenError: the port is in use, or not permitted.
    """
    app = FastAPI(openapi_url=None, redirect_slashes=False)
    for path, reply in replies.items():
        app.add_api_route(path, _endpoint(reply), methods=["GET", "HEAD"])
    with listening(port) as listener:
        async with HttpServer(app, graceful_shutdown=1).serving(listener):
            yield int(listener.getsockname()[1])


class HttpServer:
    """Serves an ASGI application, over plain HTTP or with TLS.

    The state `peer` of a request has the common names of the verified client certificate, None without one.
    Running requests get `graceful_shutdown` seconds to finish.
    """

    def __init__(
        self, app: ASGIApp, *, tls: ssl.SSLContext | None = None, graceful_shutdown: int = 10
    ) -> None:
        config = uvicorn.Config(
            app,
            ws="none",
            lifespan="off",
            interface="asgi3",
            loop="none",
            log_config=None,
            # a warning for each malformed request would be in the hands of its sender
            log_level="error",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE,
            h11_max_incomplete_event_size=LARGEST_HEAD,
            timeout_graceful_shutdown=graceful_shutdown,
        )
        self._server = _UvicornServer(config)
        state = self._server.server_state
        self._acceptor = Acceptor(lambda place: Connection(config, state, place), tls)

    @contextlib.asynccontextmanager
    async def serving(self, listener: socket.socket) -> AsyncIterator[None]:
        """Serves on a listening socket, and closes it at the end, after running requests were answered."""
        serving = asyncio.create_task(self._server.serve([]), name="serve")
        accepting = asyncio.create_task(self._acceptor.accept(listener), name="accept")
        try:
            yield
        finally:
            accepting.cancel()
            await asyncio.wait((accepting,))
            listener.close()
            self._acceptor.drop_unknown()
            self._server.should_exit = True
            await serving
            await self._acceptor.close()

    def drop_connections(self) -> None:
        """Closes every connection: idle ones at once, others after the response to their request."""
        self._acceptor.drop_unknown()
        for connection in tuple(self._server.server_state.connections):
            connection.shutdown()


class _UvicornServer(uvicorn.Server):
    """Leaves signals to the process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def probe_reply(problem: str | None, well: str = "ok") -> Reply:
    """Answers a probe: 503 with the problem, or 200."""
    text = well if problem is None else problem
    return (200 if problem is None else 503), "text/plain; charset=utf-8", f"{text}\n".encode()


def _endpoint(reply: Callable[[], Reply | Awaitable[Reply]]) -> Callable[[], Awaitable[Response]]:
    # not a plain function, which FastAPI would call in a thread: then a blocked loop would seem alive
    async def endpoint() -> Response:
        found = reply()
        status, content_type, body = await found if isinstance(found, Awaitable) else found
        return Response(body, status, headers={"Content-Type": content_type})

    return endpoint
