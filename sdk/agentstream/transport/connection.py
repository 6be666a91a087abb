"""The RESP protocol on one connection: commands leave in order, and replies are matched to them."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, cast

import hiredis

from agentstream.errors import ConnectionLost
from agentstream.protocol.commands import Argument
from agentstream.transport.endpoint import Endpoint, greeted, handshake
from agentstream.transport.error_replies import error_from_reply

Queue = deque[tuple[tuple[Argument, ...], "asyncio.Future[Any]"]]

_CONNECT_TIMEOUT = 5.0
_HANGING_UP = 1.0
# Bytes that leave in one write: many small commands, which take a short time to encode.
_WRITE = 1 << 16
_PING = b"*1\r\n$4\r\nPING\r\n"
# A reader returns this while a reply is incomplete; None and False are replies.
_INCOMPLETE = object()
# A server that replies so is a replica now; the next connect may reach the primary.
_DEMOTED = ("READONLY", "MASTERDOWN")


class RespProtocol(asyncio.Protocol):
    """Speaks RESP on one connection of a `Client`; `connect` makes one.

    Args:
        queue: commands to send, each with the future of its reply; taken from the left.
        address: of the server, without credentials.
        timeout: seconds without a reply after which the connection counts as broken.
        on_lost: called once, with the error, when the connection has ended.
        on_push: called with channel and data of each published message; None without subscriptions.
        largest_reply: bytes of a reply beyond which the connection is broken.

    Attributes:
        error: the reason for which the connection has ended; None while it lasts.
        writes: how often commands were written.
    """

    def __init__(
        self,
        queue: Queue,
        *,
        address: str,
        timeout: float,
        on_lost: Callable[[RespProtocol, ConnectionLost], None],
        on_push: Callable[[bytes, bytes], None] | None,
        largest_reply: float = math.inf,
    ) -> None:
        self._queue = queue
        self._largest_reply = largest_reply
        self._address = address
        self._timeout = timeout
        self._on_lost = on_lost
        self._on_push = on_push
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(notEnoughData=_INCOMPLETE)
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self._transport: asyncio.Transport
        self._timer: asyncio.TimerHandle | None = None
        self._heard = 0.0
        # bytes since the last whole reply
        self._partial = 0
        # bytes in the transport's buffer at the last look
        self._left = 0
        self._greeting = True
        self._full = False
        self._leaving = False
        self._closed = asyncio.Event()
        self._why = ""
        self.error: ConnectionLost | None = None
        self.writes: int = 0

    async def greet(self, commands: Sequence[tuple[str, ...]], channels: Sequence[str]) -> None:
        """Sends the handshake, and subscribes.

        Raises:
            AgentStreamError: the server refuses, or the connection is lost.
        """
        spoken = [*commands, ("PING",)] if channels else commands
        replies = [self._loop.create_future() for _ in spoken]
        packed = [hiredis.pack_command(command) for command in commands]  # type: ignore[arg-type]
        if channels:
            # it is answered by pushes, or by an error, which then takes the place of the reply to PING
            packed.append(hiredis.pack_command(("SUBSCRIBE", *channels)))  # type: ignore[arg-type]
            packed.append(hiredis.pack_command(("PING",)))
        self._write(packed, replies)
        greeted(spoken, await asyncio.gather(*replies, return_exceptions=True), self._address)
        self._greeting = False

    def flush(self) -> None:
        """Sends commands from the queue, as far as the transport takes them."""
        if self._full or self._leaving:
            return
        packed: list[bytes] = []
        replies: list[asyncio.Future[Any]] = []
        size = 0
        while self._queue and size < _WRITE:
            args, reply = self._queue.popleft()
            if reply.done():
                # its caller was cancelled
                continue
            try:
                data = hiredis.pack_command(args)  # type: ignore[arg-type] # its stub knows one argument
            except (TypeError, ValueError) as error:
                reply.set_exception(error)
                continue
            packed.append(data)
            replies.append(reply)
            size += len(data)
        if packed:
            self._write(packed, replies)
        if self._queue and not self._full:
            # replies are read in between
            self._loop.call_soon(self.flush)

    async def takes(self, size: int) -> bool:
        """Asks whether the server takes an argument of `size` bytes. Nothing else can be sent afterwards.

        The length follows a command that is answered: both replies come together if the second one is an
        error, and only the first one if the server waits for the data.

        Raises:
            ConnectionLost: no reply.
        """
        answer, refusal = self._loop.create_future(), self._loop.create_future()
        self._write([_PING, b"*1\r\n$%d\r\n" % size], [answer, refusal])
        await answer
        if refusal.done():
            return refusal.exception() is None
        refusal.cancel()
        return True

    async def close(self) -> None:
        """Ends the connection at once; commands without a reply fail with `ConnectionLost`."""
        self._break("the connection is closed")
        await self._closed.wait()

    async def hang_up(self) -> None:
        """Ends the connection once the server has: it then does nothing more for a command under way.

        Where the server does not notice within a second, and with TLS, the connection ends at once.
        """
        if self._waiting and self._transport.can_write_eof():
            self._leaving = True
            self._transport.write_eof()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_HANGING_UP):
                    await self._closed.wait()
        await self.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Called by the event loop: gives each reply to the command that was sent first."""
        self._heard = self._loop.time()
        try:
            self._reader.feed(data)
            self._partial += len(data)
            while (reply := self._reader.gets()) is not _INCOMPLETE:
                self._partial = 0
                if type(reply) is hiredis.PushNotification:
                    self._pushed(reply)
                    continue
                future = self._waiting.popleft()
                if isinstance(reply, hiredis.ReplyError):
                    self._refused(future, reply)
                elif not future.done():
                    future.set_result(reply)
        except hiredis.HiredisError as error:
            self._break(f"{self._address}: the server sent something that is not RESP: {error}")
        except IndexError:
            self._break(f"{self._address}: the server sent a reply to no command")
        if self._leaving and not self._waiting:
            self._break(f"{self._address}: the server has become a replica")
        elif self._partial > self._largest_reply:
            self._break(f"{self._address}: a reply has more than {self._largest_reply} bytes")

    def pause_writing(self) -> None:
        """Called by the event loop when the server reads more slowly than commands come."""
        self._full = True

    def resume_writing(self) -> None:
        """Called by the event loop."""
        self._full = False
        self.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop, once."""
        self._leaving = True
        if self._timer is not None:
            self._timer.cancel()
        text = self._why or f"{self._address}: {exc or 'the server closed the connection'}"
        self.error = ConnectionLost(text)
        while self._waiting:
            reply = self._waiting.popleft()
            if not reply.done():
                reply.set_exception(ConnectionLost(text))
        self._closed.set()
        self._on_lost(self, self.error)

    def _write(self, packed: list[bytes], replies: list[asyncio.Future[Any]]) -> None:
        if not self._waiting:
            self._heard = self._loop.time()
        self._waiting.extend(replies)
        self._supervise()
        self.writes += 1
        self._transport.write(b"".join(packed))
        self._left = self._transport.get_write_buffer_size()

    def _supervise(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_at(self._heard + self._timeout, self._overdue)

    def _overdue(self) -> None:
        """Breaks the connection if no reply came in time. One timer serves all commands."""
        self._timer = None
        before, self._left = self._left, self._transport.get_write_buffer_size()
        if self._left < before:
            # a large command is still being sent, and the server is reading it
            self._heard = self._loop.time()
        if self._loop.time() - self._heard < self._timeout:
            if self._waiting or self._on_push is not None:
                self._supervise()
        elif self._waiting:
            self._break(f"{self._address}: no reply for {self._timeout:g} s")
        elif self._on_push is not None:
            # nothing was published for a while: check that the server still answers
            unheeded = self._loop.create_future()
            unheeded.cancel()
            self._write([_PING], [unheeded])

    def _refused(self, future: asyncio.Future[Any], reply: hiredis.ReplyError) -> None:
        text = str(reply)
        if text.startswith(_DEMOTED):
            self._leaving = True
        if future.done():
            return
        if self._greeting:
            future.set_result(reply)
        else:
            future.set_exception(error_from_reply(text, self._address))

    def _pushed(self, push: list[Any]) -> None:
        if push[0] != b"message" or self._on_push is None:
            return
        try:
            self._on_push(push[1], push[2])
        except Exception as error:  # noqa: BLE001 - replies to other callers follow it
            self._loop.call_exception_handler(
                {"message": "a listener failed to take a published message", "exception": error}
            )

    def _break(self, why: str) -> None:
        self._leaving = True
        self._why = self._why or why
        self._transport.abort()


async def connect(
    endpoint: Endpoint,
    name: str,
    queue: Queue,
    *,
    timeout: float,
    channels: Sequence[str] | None,
    on_lost: Callable[[RespProtocol, ConnectionLost], None],
    on_push: Callable[[bytes, bytes], None] | None,
    largest_reply: float = math.inf,
) -> RespProtocol:
    """Connects, authenticates, and subscribes to the channels, if there are any.

    Raises:
        SettingsError: the endpoint is no address of a server.
        AgentStreamError: the server refuses, or cannot be reached.
    """
    target = endpoint.target()
    commands = handshake(endpoint, name, 2 if channels is None else 3)
    loop = asyncio.get_running_loop()

    def connection() -> RespProtocol:
        return RespProtocol(
            queue,
            address=endpoint.address,
            timeout=timeout,
            on_lost=on_lost,
            on_push=on_push,
            largest_reply=largest_reply,
        )

    try:
        async with asyncio.timeout(min(timeout, _CONNECT_TIMEOUT)):
            if target.path:
                _, made = await loop.create_unix_connection(connection, target.path)
            else:
                _, made = await loop.create_connection(
                    connection, target.host, target.port, ssl=endpoint.tls()
                )
            try:
                await made.greet(commands, channels or ())
            except BaseException:
                await made.close()
                raise
    except OSError as error:
        raise ConnectionLost(f"{endpoint.address}: {str(error) or 'no reply'}") from error
    return made
