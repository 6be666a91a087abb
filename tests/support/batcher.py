"""Batchers without agents, and a network on which a command may arrive long after its connection broke."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self

from agentstream.protocol.envelope import Message
from agentstream.protocol.routes import Produces
from agentstream.sending.batcher import Batcher
from agentstream.sending.outgoing import OutgoingRecord
from agentstream.telemetry.counters import Counters


def batcher_on(call: Callable[..., Awaitable[Any]], key: str) -> Batcher:
    return Batcher(call, Produces("tasks", key), Counters())


def record(data: bytes, timeout: float = 30.0) -> OutgoingRecord:
    message = Message(
        v=1, id=str(uuid.uuid4()), sender="planner", to="coder", type="event", payload={}, timestamp=0
    )
    one = OutgoingRecord(message, timeout=timeout)
    one.data = data
    return one


class Detour:
    """The way to a server of the loopback interface on which one command is held up, as a context manager.

    The connection of the command that is held breaks for the client; the server gets it by `deliver_late`.

    Args:
        server_port: the server's.
        text: part of the command.
    """

    def __init__(self, server_port: int, text: bytes) -> None:
        self._server_port = server_port
        self._text = text
        self._holding = True
        self._held: tuple[bytes, asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """Where agents connect to."""
        return f"redis://127.0.0.1:{self._listener.sockets[0].getsockname()[1]}"

    def hold_next(self) -> None:
        """Holds the next such command, too."""
        self._holding = True

    async def deliver_late(self) -> bytes:
        """Gives the server the command that was held. Returns the reply."""
        assert self._held is not None
        (data, server_in, server_out), self._held = self._held, None
        server_out.write(data)
        reply = await server_in.read(1 << 16)
        await _break(server_out)
        return reply

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.close()
        # agents are gone before
        await asyncio.gather(*self._tasks)

    async def _serve(self, client_in: asyncio.StreamReader, client_out: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        server_in, server_out = await asyncio.open_connection("127.0.0.1", self._server_port)
        replies = asyncio.create_task(self._pass_on(server_in, client_out))
        try:
            while data := await client_in.read(1 << 20):
                if self._holding and self._text in data:
                    self._holding = False
                    self._held = (data, server_in, server_out)
                    break
                server_out.write(data)
        finally:
            replies.cancel()
            await asyncio.gather(replies, return_exceptions=True)
            await _break(client_out)
            if self._held is None or self._held[2] is not server_out:
                await _break(server_out)

    @staticmethod
    async def _pass_on(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(1 << 16):
            target.write(data)


async def _break(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
