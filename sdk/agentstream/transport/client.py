"""One pipelining connection to the server, shared by many callers.

The commands of one event-loop tick leave in one write, without waiting for replies to earlier ones. None is
sent twice: when the connection breaks, every command without a reply fails with `ConnectionLost`, and its
caller decides whether it may be repeated. What the server would not take is refused here: it would close the
connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from agentstream.errors import AgentStreamError, ConnectionLost, SettingsError, WireClosed
from agentstream.protocol.commands import Argument
from agentstream.transport.connection import Queue, RespProtocol, connect
from agentstream.transport.endpoint import Endpoint
from agentstream.transport.retry import Backoff, FailureLog
from agentstream.transport.size_limit import SizeLimit, may_be_large

__all__ = ["LARGEST_REPLY", "Argument", "Client"]

LARGEST_REPLY = 32 << 20
"""Bytes beyond which a reply with entries breaks the connection: they are then read a few at a time."""


class Listener(Protocol):
    """Receives what is published on channels."""

    def channels(self) -> Sequence[str]:
        """The channels to subscribe to; asked for at every connect."""

    def pushed(self, channel: bytes, data: bytes) -> None:
        """Takes a published message; called in the event loop."""


def _nothing() -> None:
    """Wakes up a loop that calls it."""


class Client:
    """Sends commands over a connection that is made on first use, and again after it broke.

    With a listener it subscribes to channels, too: it then connects again by itself, and misses what is
    published meanwhile. Replies are those of RESP 2; with a listener those of RESP 3, which are the same for
    functions in Lua and differ for XREADGROUP, for example.

    Args:
        endpoint: called at every connect, so that changed credentials are used.
        name: the connection's name on the server.
        timeout: seconds without a reply after which the connection counts as broken; longer than any blocking
            command that is sent.
        listener: receives what is published.
        on_reconnect: called after each connect but the first.
        largest_reply: bytes of a reply beyond which the connection counts as broken.

    Attributes:
        connects: how often it was connected.
    """

    def __init__(
        self,
        endpoint: Callable[[], Endpoint],
        *,
        name: str,
        timeout: float = 5.0,
        listener: Listener | None = None,
        on_reconnect: Callable[[], object] = lambda: None,
        largest_reply: float = math.inf,
    ) -> None:
        self._largest_reply = largest_reply
        self._endpoint = endpoint
        self._name = name
        self._timeout = timeout
        self._listener = listener
        self._on_reconnect = on_reconnect
        self._queue: Queue = deque()
        self._due = False
        self._connection: RespProtocol | None = None
        self._connecting: asyncio.Task[RespProtocol] | None = None
        self._again: asyncio.TimerHandle | None = None
        self._backoff = Backoff(0.05, 2.0)
        self._failures = FailureLog(f"listen as {name}")
        self._size_limit = SizeLimit(self._takes)
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._process = os.getpid()
        self._earlier_writes = 0
        self.connects: int = 0

    @property
    def round_trips(self) -> int:
        """How often commands were written to the connection."""
        return self._earlier_writes + (self._connection.writes if self._connection is not None else 0)

    def bind(self) -> asyncio.AbstractEventLoop:
        """Returns the running event loop, from the first call on the only one, in this process alone.

        Raises:
            AgentStreamError: it is another one, or this process was forked off the one of the first call.
        """
        loop, process = asyncio.get_running_loop(), os.getpid()
        if self._loop is None:
            self._loop, self._process = loop, process
        elif self._process != process:
            raise AgentStreamError(
                f"process {self._process} uses the agent, and this one was forked off it, so nothing was"
                " sent: make an agent in each process, or use it only after the fork"
            )
        elif self._loop is not loop:
            raise AgentStreamError(
                "the agent belongs to another event loop, so nothing was sent: make an agent in each"
                " asyncio.run, or use agentstream.sync"
            )
        return loop

    def in_loop(self, call: Callable[[], object]) -> None:
        """Calls a function in the event loop that uses this: at once if this is its thread, else soon."""
        here = None
        with contextlib.suppress(RuntimeError):
            here = asyncio.get_running_loop()
        is_here = self._loop in (None, here)
        if is_here:
            call()
        if self._loop is not None:
            # a loop that waits is woken up, as it does not notice what the handler of a signal does;
            # one that is closed has nothing left to do
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(_nothing if is_here else call)

    async def call(self, command: Argument, *args: Argument) -> Any:
        """Sends one command and returns its reply: bytes, int, None or lists of these.

        If the caller is cancelled before the command leaves, it is not sent; afterwards it is carried out.

        Raises:
            ConnectionLost: no reply; whether the command was carried out is unknown.
            AccessDenied: credentials or rights are refused.
            Backpressure: the stream or the server's memory is full.
            StreamMissing: there is no such stream to add to.
            InvalidMessage: an argument is larger than the server's `proto-max-bulk-len`; nothing was sent.
            ServerRefused: any other error reply.
            SettingsError: the endpoint cannot be read.
            TypeError, ValueError: an argument cannot be encoded.
            AgentStreamError: another event loop has used this client.
        """
        loop = self.bind()
        if self._closed:
            raise WireClosed("the connection is closed")
        if may_be_large(args):
            await self._size_limit.check(args)
        reply: asyncio.Future[Any] = loop.create_future()
        self._queue.append(((command, *args), reply))
        if not self._due:
            self._due = True
            loop.call_soon(self._flush)
        return await reply

    def open(self) -> None:
        """Starts to connect, before the first call."""
        if self._connection is None and self._connecting is None and not self._closed:
            if self._again is not None:
                self._again.cancel()
            self._connecting = asyncio.create_task(self._connect(), name=f"connect {self._name}")
            self._connecting.add_done_callback(self._connected)

    async def close(self) -> None:
        """Closes the connection; calls without a reply fail with `ConnectionLost`."""
        self._closed = True
        if self._again is not None:
            self._again.cancel()
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.gather(self._connecting, return_exceptions=True)
        self._fail(ConnectionLost("the connection is closed"))
        if self._connection is not None:
            await self._connection.close()

    async def hang_up(self) -> None:
        """Closes the connection after the server did, which then carries out nothing more that was sent."""
        self._closed = True
        if self._connection is not None:
            await self._connection.hang_up()
        await self.close()

    def _flush(self) -> None:
        self._due = False
        if self._connection is None:
            self.open()
        else:
            self._connection.flush()

    async def _takes(self, size: int) -> bool:
        """Asks the server, on a connection of its own, whether it takes an argument of so many bytes."""
        asking = await connect(
            self._endpoint(),
            self._name,
            deque(),
            timeout=self._timeout,
            channels=None,
            on_lost=lambda *_: None,
            on_push=None,
        )
        try:
            return await asking.takes(size)
        finally:
            await asking.close()

    async def _connect(self) -> RespProtocol:
        listener = self._listener
        return await connect(
            self._endpoint(),
            self._name,
            self._queue,
            timeout=self._timeout,
            channels=None if listener is None else listener.channels(),
            on_lost=self._lost,
            on_push=None if listener is None else listener.pushed,
            largest_reply=self._largest_reply,
        )

    def _connected(self, task: asyncio.Task[RespProtocol]) -> None:
        self._connecting = None
        if task.cancelled():
            return
        try:
            connection = task.result()
            if connection.error is not None:
                raise connection.error  # noqa: TRY301
        except Exception as error:  # noqa: BLE001 - callers wait for a reply
            if self.connects and isinstance(error, SettingsError):
                # it could be read before: the Secret is just being replaced
                error = ConnectionLost(str(error))
            self._fail(error)
            self._connect_later(error)
            return
        self._connection = connection
        self._size_limit.forget()
        self.connects += 1
        if self.connects > 1:
            self._on_reconnect()
        self._backoff.reset()
        self._failures.recovered()
        connection.flush()

    def _lost(self, connection: RespProtocol, error: ConnectionLost) -> None:
        # a connection that breaks during the handshake is not this client's yet
        if connection is self._connection:
            self._earlier_writes += connection.writes
            self._connection = None
            self._connect_later(error)
            if self._queue:
                # these were never sent, so the next connection may send them
                self._flush()

    def _connect_later(self, error: Exception) -> None:
        if self._listener is not None and not self._closed:
            self._failures.failed(error)
            self._again = asyncio.get_running_loop().call_later(self._backoff.next(), self.open)

    def _fail(self, error: Exception) -> None:
        while self._queue:
            _, reply = self._queue.popleft()
            if not reply.done():
                reply.set_exception(
                    type(error)(*error.args) if isinstance(error, AgentStreamError) else error
                )
