"""One connection to the server, shared by many callers.

The commands of one event-loop tick leave in one write, whether replies to earlier ones are still to come or
not. Nothing is ever sent twice: when the connection breaks, every command without a reply fails with
`ConnectionLost`, and its caller, who alone knows whether the command may be repeated, decides.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from agentstream.errors import AgentStreamError, ConnectionLost, WireClosed
from agentstream.transport.connection import Argument, Queue, RespProtocol, connect
from agentstream.transport.endpoint import Endpoint
from agentstream.transport.retry import Backoff, FailureLog

__all__ = ["Argument", "Client"]


class Client:
    """A pipelining connection that is made on first use and made again after it broke.

    With channels it also listens: what is published there is handed to `on_push`, and once connected, or
    opened, it connects again by itself. What is published meanwhile is lost. Replies are those of RESP 2, and
    on a wire with channels those of RESP 3: the same from functions in Lua, others from XREADGROUP, say.

    Args:
        endpoint: called at every connect, so that changed credentials are taken up.
        name: the connection's name on the server.
        timeout: seconds without a reply after which the connection counts as broken; longer than any blocking
            command that is sent.
        channels: called at every connect: what to subscribe to.
        on_push: called in the event loop with channel and data of what is published there.
        on_reconnect: called when it is connected again after it broke.

    Attributes:
        connects: how often it was connected.
        losses: how often a connection was lost.
    """

    def __init__(
        self,
        endpoint: Callable[[], Endpoint],
        *,
        name: str,
        timeout: float = 5.0,
        channels: Callable[[], Sequence[str]] | None = None,
        on_push: Callable[[bytes, bytes], None] | None = None,
        on_reconnect: Callable[[], object] = lambda: None,
    ) -> None:
        self._endpoint = endpoint
        self._name = name
        self._timeout = timeout
        self._channels = channels
        self._on_push = on_push
        self._on_reconnect = on_reconnect
        self._queue: Queue = deque()
        self._due = False
        self._connection: RespProtocol | None = None
        self._connecting: asyncio.Task[RespProtocol] | None = None
        self._again: asyncio.TimerHandle | None = None
        self._backoff = Backoff(0.05, 2.0)
        self._failures = FailureLog(f"listen as {name}")
        self._closed = False
        self._earlier_writes = 0
        self.connects: int = 0
        self.losses: int = 0

    @property
    def round_trips(self) -> int:
        """How often commands were written to the server."""
        return self._earlier_writes + (self._connection.writes if self._connection is not None else 0)

    async def call(self, command: Argument, *args: Argument) -> Any:
        """Sends one command and returns its reply: bytes, int, None or lists of these.

        A caller that is cancelled before the command leaves takes it back; afterwards it is carried out.

        Raises:
            ConnectionLost: no reply; whether the command was carried out is unknown.
            AccessDenied: credentials or rights are refused.
            Backpressure: the add function refuses.
            StreamMissing: the add function found no stream.
            InvalidMessage: an argument is larger than the server takes.
            ServerRefused: any other error reply.
            SettingsError: the endpoint cannot be read.
            TypeError, ValueError: an argument is none that a command can have.
        """
        if self._closed:
            raise WireClosed("the connection is closed")
        loop = asyncio.get_running_loop()
        reply: asyncio.Future[Any] = loop.create_future()
        self._queue.append(((command, *args), reply))
        if not self._due:
            self._due = True
            loop.call_soon(self._flush)
        return await reply

    def open(self) -> None:
        """Begins to connect, without waiting for a call."""
        if self._connection is None and self._connecting is None and not self._closed:
            if self._again is not None:
                self._again.cancel()
            self._connecting = asyncio.create_task(self._connect(), name=f"wire {self._name}")
            self._connecting.add_done_callback(self._connected)

    async def close(self) -> None:
        """Closes the connection; what still waits fails with `ConnectionLost`."""
        self._closed = True
        if self._again is not None:
            self._again.cancel()
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.gather(self._connecting, return_exceptions=True)
        self._fail(ConnectionLost("the connection is closed"))
        if self._connection is not None:
            await self._connection.close()

    def _flush(self) -> None:
        self._due = False
        if self._connection is None:
            self.open()
        else:
            self._connection.flush()

    async def _connect(self) -> RespProtocol:
        return await connect(
            self._endpoint(),
            self._name,
            self._queue,
            timeout=self._timeout,
            channels=self._channels() if self._channels is not None else None,
            on_lost=self._lost,
            on_push=self._on_push,
        )

    def _connected(self, task: asyncio.Task[RespProtocol]) -> None:
        self._connecting = None
        if task.cancelled():
            return
        try:
            connection = task.result()
            if connection.error is not None:
                raise connection.error  # noqa: TRY301
        except Exception as error:  # noqa: BLE001 - whatever it is, callers wait
            self._fail(error)
            self._listen_again(error)
            return
        self._connection = connection
        self.connects += 1
        if self.connects > 1:
            self._on_reconnect()
        self._backoff.reset()
        self._failures.recovered()
        connection.flush()

    def _lost(self, connection: RespProtocol, error: ConnectionLost) -> None:
        # one that ends while it is greeted is not the wire's yet
        if connection is self._connection:
            self.losses += 1
            self._earlier_writes += connection.writes
            self._connection = None
            self._listen_again(error)
            if self._queue:
                # never sent: they may go out on the next connection
                self._flush()

    def _listen_again(self, error: Exception) -> None:
        if self._channels is not None and not self._closed:
            self._failures.failed(error)
            self._again = asyncio.get_running_loop().call_later(self._backoff.next(), self.open)

    def _fail(self, error: Exception) -> None:
        while self._queue:
            _, reply = self._queue.popleft()
            if not reply.done():
                reply.set_exception(
                    type(error)(*error.args) if isinstance(error, AgentStreamError) else error
                )
