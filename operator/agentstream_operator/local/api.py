"""The HTTP API of `agentstream dev`: in its process, on 127.0.0.1, for whoever can read its file."""

from __future__ import annotations

import getpass
import os
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec

from agentstream_operator.broker.broker import Broker
from agentstream_operator.console.app import Console
from agentstream_operator.console.login import LOGIN
from agentstream_operator.console.visitors import OneTimeCodes
from agentstream_operator.local.bindings import write_private
from agentstream_operator.local.replays import LocalReplays
from agentstream_operator.local.screen.output import LocalError, cannot
from agentstream_operator.queue_api.app import application
from agentstream_operator.queue_api.events import LiveViews
from agentstream_operator.queue_api.lag import LagReader
from agentstream_operator.queue_api.loopback import LoopbackAuthenticator, OwnerMayAll
from agentstream_operator.queue_api.reading import sources_of_server
from agentstream_operator.reconcile.engine import Engine
from agentstream_operator.serve.http import HttpServer


class LocalApi(NamedTuple):
    """Where the API is."""

    url: str
    link: Callable[[], str]
    """Returns a link that logs a browser in to the console, once."""


@asynccontextmanager
async def serving_api(
    engine: Engine, broker: Broker, replays: LocalReplays, console: Path, port: int | None
) -> AsyncIterator[LocalApi]:
    """Serves the HTTP API and the console on 127.0.0.1, on any free port if none is given.

    The file `console` has the address, and a token that is new for each run; it goes with the API.

    Raises:
        LocalError: the port is in use, or the file cannot be written.
    """
    with _listening(port) as listener:
        at = int(listener.getsockname()[1])
        url, token = f"http://127.0.0.1:{at}", secrets.token_urlsafe(32)
        lags, live = LagReader(engine.resources, broker, engine.status_of), LiveViews()
        app = application(
            sources_of_server(lags),
            replays,
            LoopbackAuthenticator(token, _user(), at),
            OwnerMayAll(),
            live,
        )
        codes = OneTimeCodes()
        async with HttpServer(Console(app, live, codes), graceful_shutdown=1).serving(listener):
            try:
                with _written(console, {"url": url, "token": token}):
                    yield LocalApi(url, lambda: f"{url}{LOGIN}?code={codes.new(token)}")
            finally:
                live.close()
                await lags.close()


def _listening(port: int | None) -> socket.socket:
    try:
        return socket.create_server(("127.0.0.1", port or 0))
    except OSError as error:
        why = os.strerror(error.errno) if error.errno is not None else str(error)
        raise LocalError(
            f"--api-port: cannot listen on 127.0.0.1:{port or 0}: {why}; leave it out for any free port"
        ) from error


@contextmanager
def _written(path: Path, content: dict[str, str]) -> Iterator[None]:
    """Keeps a file as long as it is entered."""
    try:
        write_private(path, msgspec.json.encode(content).decode())
    except OSError as error:
        raise cannot(f"write to {path}", error) from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # this uid has no name
        return "owner"
