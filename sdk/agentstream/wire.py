"""One connection to the server, shared by many callers.

The commands of one event-loop tick leave in one write; while a batch is under way the next one gathers.
Nothing is ever sent twice: when the connection breaks, every command without a reply fails with
`ConnectionLost`, and its caller, who alone knows whether the command may be repeated, decides.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from agentstream.endpoint import Endpoint
from agentstream.errors import (
    AccessDenied,
    AgentStreamError,
    Backpressure,
    ConnectionLost,
    SettingsError,
)
from agentstream.refusal import refusal

if TYPE_CHECKING:
    from redis.asyncio.connection import Connection

Argument = bytes | str | int | float
_BATCH = 1000


def translate(error: Exception, address: str) -> AgentStreamError:
    """The SDK's error for an error of the client library; `address` is fit for a log."""
    from redis import exceptions as redis_errors  # noqa: PLC0415 - importing the SDK must stay cheap

    text = str(error)
    if isinstance(error, redis_errors.AuthenticationError | redis_errors.NoPermissionError):
        return AccessDenied(f"{address}: {text}")
    if isinstance(error, redis_errors.ConnectionError | redis_errors.TimeoutError | OSError | EOFError):
        return ConnectionLost(f"{address}: {text or type(error).__name__}")
    if isinstance(error, redis_errors.OutOfMemoryError):
        return Backpressure(text)
    return refusal(text, address)


class Wire:
    """A pipelining connection that is made on first use and made again after it broke.

    Args:
        endpoint: called at every connect, so that changed credentials are taken up.
        name: the connection's name on the server.
        timeout: seconds without a reply after which the connection counts as broken; longer than any blocking
            command that is sent.
    """

    def __init__(self, endpoint: Callable[[], Endpoint], *, name: str, timeout: float = 5.0) -> None:
        self._endpoint = endpoint
        self._name = name
        self._timeout = timeout
        self._address = ""
        self._connection: Connection | None = None
        self._queue: list[tuple[tuple[Argument, ...], asyncio.Future[Any]]] = []
        self._sender: asyncio.Task[None] | None = None
        self._closed = False
        self.connects = 0
        self.round_trips = 0

    async def call(self, *args: Argument) -> Any:
        """Sends one command and returns its reply: bytes, int, None or lists of these (RESP 2).

        Raises:
            ConnectionLost: no reply; whether the command was carried out is unknown.
            AccessDenied: credentials or rights are refused.
            Backpressure: the add function refuses.
            StreamMissing: the add function found no stream.
            ServerRefused: any other error reply.
            SettingsError: the endpoint cannot be read.
        """
        if self._closed:
            raise ConnectionLost("the connection is closed")
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._queue.append((args, future))
        if self._sender is None:
            self._sender = asyncio.create_task(self._send(), name=f"wire {self._name}")
        return await future

    async def close(self) -> None:
        """Closes the connection; what still waits fails with `ConnectionLost`."""
        self._closed = True
        if self._sender is not None:
            self._sender.cancel()
            await asyncio.gather(self._sender, return_exceptions=True)
        self._fail(self._queue, ConnectionLost("the connection is closed"))
        self._queue = []
        await self._disconnect()

    async def _send(self) -> None:
        """Sends what waits, batch after batch, until nothing does."""
        batch: list[tuple[tuple[Argument, ...], asyncio.Future[Any]]] = []
        try:
            while self._queue:
                batch, self._queue = self._queue[:_BATCH], self._queue[_BATCH:]
                await self._exchange(batch)
        finally:
            self._sender = None
            self._fail(batch, ConnectionLost("the connection is closed"))

    async def _exchange(self, batch: list[tuple[tuple[Argument, ...], asyncio.Future[Any]]]) -> None:
        from hiredis import pack_command  # noqa: PLC0415 - as above
        from redis.exceptions import RedisError, ResponseError  # noqa: PLC0415

        loop = asyncio.get_running_loop()
        try:
            connection = await self._connected()
            async with asyncio.timeout(self._timeout) as silence:
                # its stub takes a tuple of one element
                packed = [pack_command(args) for args, _ in batch]  # type: ignore[arg-type]
                await connection.send_packed_command(b"".join(packed))
                for _, future in batch:
                    try:
                        reply = await connection.read_response(disable_decoding=True)
                    except ResponseError as error:
                        if not future.done():
                            future.set_exception(translate(error, self._address))
                    else:
                        if not future.done():
                            future.set_result(reply)
                    silence.reschedule(loop.time() + self._timeout)
            self.round_trips += 1
        except (RedisError, OSError, EOFError) as error:
            await self._disconnect()
            self._fail(batch, translate(error, self._address))
        except AgentStreamError as error:
            # where the server is cannot be read just now
            self._fail(batch, error)
        except asyncio.CancelledError:
            # replies of this batch may still arrive: the connection can serve nobody else
            await self._disconnect()
            raise

    async def _connected(self) -> Connection:
        if self._connection is None:
            self._connection = await self._connect()
        return self._connection

    async def _connect(self) -> Connection:
        from redis.asyncio.connection import Connection, SSLConnection, parse_url  # noqa: PLC0415 - as above
        from redis.asyncio.retry import Retry  # noqa: PLC0415
        from redis.backoff import NoBackoff  # noqa: PLC0415

        endpoint = self._endpoint()
        self._address = endpoint.address
        try:
            options: dict[str, Any] = dict(parse_url(endpoint.url))
        except ValueError as error:
            raise SettingsError(f"{self._address} is no address of a server: {error}") from error
        kind: type[Connection] = options.pop("connection_class", Connection)
        if endpoint.username is not None:
            options["username"] = endpoint.username
        if endpoint.password is not None:
            options["password"] = endpoint.password
        if endpoint.ca_file is not None and issubclass(kind, SSLConnection):
            options["ssl_ca_certs"] = endpoint.ca_file
        connection = kind(
            **options,
            protocol=2,
            client_name=self._name,
            socket_timeout=self._timeout,
            socket_connect_timeout=min(self._timeout, 5.0),
            # a retried write is a doubled message
            retry=Retry(NoBackoff(), 0),
        )
        await connection.connect()  # type: ignore[no-untyped-call]
        # from here on `_exchange` keeps the time: the client library's way to do so swallows cancellations
        connection.socket_timeout = None
        self.connects += 1
        return connection

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect(nowait=True)

    @staticmethod
    def _fail(batch: list[tuple[tuple[Argument, ...], asyncio.Future[Any]]], error: AgentStreamError) -> None:
        for _, future in batch:
            if not future.done():
                future.set_exception(error)
