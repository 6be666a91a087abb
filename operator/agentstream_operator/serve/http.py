"""A small HTTP server in the operator's own event loop: that it answers shows that the loop turns."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

from aiohttp import web

Answer = Callable[[], tuple[int, str, bytes]]
"""Returns status, content type and body."""


@asynccontextmanager
async def serving(port: int, answers: Mapping[str, Answer]) -> AsyncIterator[int]:
    """Answers GET requests on all interfaces.

    Args:
        port: where; 0 for any free port.
        answers: by path.

    Yields:
        The port.

    Raises:
        OSError: the port is taken.
    """
    app = web.Application()
    for path, answer in answers.items():
        app.router.add_get(path, _handler(answer))
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    with listening(port) as listener:
        await runner.setup()
        try:
            await web.SockSite(runner, listener).start()
            yield int(listener.getsockname()[1])
        finally:
            await runner.cleanup()


def listening(port: int) -> socket.socket:
    """A socket on all interfaces, for both families of addresses if there are two, with one port for both.

    Raises:
        OSError: the port is taken.
    """
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


def _handler(answer: Answer) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def handle(request: web.Request) -> web.StreamResponse:
        del request
        status, content_type, body = answer()
        return web.Response(status=status, body=body, headers={"Content-Type": content_type})

    return handle
