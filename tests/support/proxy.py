"""A TCP proxy in front of a server that can lose replies and break connections."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator


class Proxy:
    """Forwards connections to a server of the loopback interface.

    Attributes:
        port: where it listens.
    """

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self._listener: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._lose_after: bytes | None = None
        self._refusing = False
        self.port = 0
        self.lost = 0

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def lose_reply(self, command: bytes) -> None:
        """The reply to the next command that contains these bytes is lost, and its connection breaks."""
        self._lose_after = command

    def cut(self) -> None:
        """Breaks all connections."""
        for writer in self._open:
            writer.transport.abort()

    def refuse(self, *, refusing: bool) -> None:
        """From now on, breaks all connections at once; or does not any more."""
        self._refusing = refusing
        if refusing:
            self.cut()

    async def start(self) -> None:
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._listener.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        assert self._listener is not None
        self._listener.close()
        self.cut()
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, client_in: asyncio.StreamReader, client_out: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if self._refusing:
            client_out.transport.abort()
            return
        server_in, server_out = await asyncio.open_connection("127.0.0.1", self._server_port)
        ends = (client_out, server_out)
        self._open.update(ends)
        losing = asyncio.Event()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._requests(client_in, server_out, losing))
                tasks.create_task(self._replies(server_in, client_out, losing))
        finally:
            self._open.difference_update(ends)

    async def _requests(
        self, client: asyncio.StreamReader, server: asyncio.StreamWriter, losing: asyncio.Event
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await client.read(1 << 16):
                if self._lose_after is not None and self._lose_after in data:
                    self._lose_after = None
                    losing.set()
                server.write(data)
        server.close()

    async def _replies(
        self, server: asyncio.StreamReader, client: asyncio.StreamWriter, losing: asyncio.Event
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await server.read(1 << 16):
                if losing.is_set():
                    self.lost += 1
                    break
                client.write(data)
        client.transport.abort()


@contextlib.asynccontextmanager
async def proxy_to(server_port: int) -> AsyncIterator[Proxy]:
    """A running proxy."""
    proxy = Proxy(server_port)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.stop()
