"""Accepts the connections of an HTTP server: only as many as it has memory for, and none that waits for ever.

asyncio and uvicorn accept every connection, give each its buffers (with TLS 256 KiB), and wait for its first
request as long as the client likes: https://github.com/Kludex/uvicorn/issues/160
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

_log = logging.getLogger(__name__)

STRANGERS, ALL = 100, 300
"""Connections at a time: without a client certificate, and altogether."""

FIRST_REQUEST = 10.0
"""Seconds for the TLS handshake, and then for the head of the first request."""

KEEP_ALIVE = 90
"""Seconds for the head of the next request; the API server keeps idle connections as long."""

LARGEST_HEAD = 65_536
"""Bytes of a request's head: the API server sends a header for each group of a user."""

_GOODBYE = 2.0
"""Seconds for the client's part in the end of TLS."""

_PAUSE = 1.0
"""Seconds until another try to accept: without a file descriptor, or a place."""

_SAY_AGAIN = 60.0
_LENGTHS = frozenset({b"content-length", b"transfer-encoding"})


class Peer(Enum):
    """What is known of the client of a connection."""

    UNKNOWN = auto()
    """Nothing: the TLS handshake is not finished."""
    STRANGER = auto()
    """It has shown no certificate."""
    VERIFIED = auto()
    """Its certificate has been verified."""


GRACE = {Peer.UNKNOWN: 0.5, Peer.STRANGER: 0.25}
"""Seconds that a connection has before it may have to give way: for its handshake, then for its request."""


@dataclass(slots=True, eq=False)
class Place:
    """The place that a connection takes: whose it is, and since when (monotonic seconds) that is known."""

    since: float
    caller: Peer = Peer.UNKNOWN

    @property
    def kept_until(self) -> float:
        """When it may have to give way; a verified client's never has to."""
        return self.since + GRACE.get(self.caller, float("inf"))


def giving_way(places: Collection[Place], now: float) -> tuple[Place | None, float]:
    """Chooses whose place a new connection takes when all are taken: never that of a verified client.

    Returns it and 0. Else returns None and the seconds to wait; 0 if a place is free.
    """
    others = [place for place in places if place.caller is not Peer.VERIFIED]
    if len(others) < STRANGERS and len(places) < ALL:
        return None, 0.0
    first = min(others, key=lambda place: place.kept_until, default=None)
    wait = first.kept_until - now if first is not None else _PAUSE
    return (None, wait) if wait > 0 else (first, 0.0)


class Connection(H11Protocol):
    """A connection with deadlines, which passes the client certificate's common names to the application.

    Attributes:
        ended: set when it has ended.
    """

    def __init__(self, config: uvicorn.Config, state: ServerState, place: Place) -> None:
        super().__init__(config, state, {})
        self.ended = asyncio.Event()
        self._place = place

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Notes who calls, and waits for the first request."""
        super().connection_made(transport)
        # head and body are two writes; asyncio sets this only on sockets that it has made itself
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        session = transport.get_extra_info("ssl_object")
        # a resumed session of TLS 1.2 brings along a certificate that is not verified again
        verified = session is not None and not session.session_reused
        names = common_names(transport.get_extra_info("peercert")) if verified else None
        self.app = _with_peer(self.app, names)
        self._place.since = self.loop.time()
        self._place.caller = Peer.STRANGER if names is None else Peer.VERIFIED
        self.timeout_keep_alive_task = self.loop.call_later(FIRST_REQUEST, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets the connection."""
        super().connection_lost(exc)
        # the base class does this only without an error
        self._unset_keepalive_if_required()
        self.ended.set()

    def data_received(self, data: bytes) -> None:
        """Takes bytes; unlike in the base class, they prolong no deadline: only a whole head ends it."""
        self.conn.receive_data(data)
        self.handle_events()

    def on_response_complete(self) -> None:
        """Waits for the next request, unless the body of this one is still to come, or has two lengths."""
        # a proxy may take another one of two for the length: https://www.rfc-editor.org/rfc/rfc9112#section-6.1
        if self.cycle.more_body or _LENGTHS.issubset(name for name, _ in self.headers):
            self.transport.close()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Answers what is no request; while another is being answered, it only ends the connection."""
        if self.cycle is None or self.cycle.response_complete:
            super().send_400_response(msg)
        else:
            # the base class would answer twice, and log the failure of the application
            self.cycle.keep_alive = False
            self.flow.pause_reading()

    def timeout_keep_alive_handler(self) -> None:
        """Ends the connection of a client that has not sent a request in time, however much it has sent."""
        self.transport.abort()


class Acceptor:
    """Accepts connections on a listening socket, and ends one for the next where all places are taken.

    `protocol` makes the protocol of a connection in a place.
    """

    def __init__(self, protocol: Callable[[Place], Connection], tls: ssl.SSLContext | None) -> None:
        self._protocol = protocol
        deadlines = {"ssl_handshake_timeout": FIRST_REQUEST, "ssl_shutdown_timeout": _GOODBYE}
        self._tls: dict[str, Any] = {"ssl": tls, **deadlines} if tls is not None else {}
        self._open: dict[Place, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._dropped, self._said = 0, float("-inf")

    async def accept(self, listener: socket.socket) -> None:
        """Accepts connections; never returns."""
        listener.setblocking(False)
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, _ = await loop.sock_accept(listener)
            except OSError as error:
                _log.warning("cannot accept a connection: %s", error)
                await asyncio.sleep(_PAUSE)
                continue
            with contextlib.ExitStack() as stack:
                stack.callback(accepted.close)
                await self._make_room()
                stack.pop_all()
            self._start(accepted)

    def drop_unknown(self) -> None:
        """Ends the connections whose handshake is not finished."""
        for place in [place for place in self._open if place.caller is Peer.UNKNOWN]:
            self._drop(place)

    async def close(self) -> None:
        """Ends every connection at once."""
        for place in tuple(self._open):
            self._drop(place)
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _make_room(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            place, wait = giving_way(self._open, clock())
            if place is not None:
                self._drop(place)
                self._say(clock())
            elif wait > 0:
                await asyncio.sleep(wait)
            else:
                return

    def _start(self, accepted: socket.socket) -> None:
        place = Place(asyncio.get_running_loop().time())
        task = asyncio.create_task(self._serve(place, accepted), name="serve a connection")
        self._open[place] = task
        self._tasks.add(task)

        def end(_: asyncio.Task[None]) -> None:
            self._open.pop(place, None)
            self._tasks.discard(task)
            accepted.close()

        # also of a task that is cancelled before it has begun
        task.add_done_callback(end)

    async def _serve(self, place: Place, accepted: socket.socket) -> None:
        """Serves a connection to its end; cancelled, ends it at once."""
        protocol = self._protocol(place)
        loop = asyncio.get_running_loop()
        # a handshake that fails is the client's affair
        with contextlib.suppress(OSError):
            transport, _ = await loop.connect_accepted_socket(lambda: protocol, accepted, **self._tls)
            try:
                await protocol.ended.wait()
            finally:
                # one that closed by itself cannot be ended any more
                if not protocol.ended.is_set():
                    transport.abort()

    def _drop(self, place: Place) -> None:
        self._open.pop(place).cancel()

    def _say(self, now: float) -> None:
        self._dropped += 1
        if now >= self._said + _SAY_AGAIN:
            _log.warning(
                "too many connections without a client certificate (at most %d): ended %d to make room; "
                "a NetworkPolicy keeps strangers away",
                STRANGERS,
                self._dropped,
            )
            self._dropped, self._said = 0, now


def _with_peer(app: Any, names: tuple[str, ...] | None) -> ASGIApp:
    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"]["peer"] = names
        await app(scope, receive, send)

    return call


def common_names(certificate: dict[str, Any] | None) -> tuple[str, ...] | None:
    """Returns the common names in the subject of a verified certificate; None without a certificate."""
    if not certificate:
        return None
    return tuple(
        value for part in certificate.get("subject", ()) for name, value in part if name == "commonName"
    )
