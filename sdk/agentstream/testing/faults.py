"""A TCP proxy between agents and their server that loses replies, delays, holds and breaks on demand."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, Self

_CHUNK = 1 << 16
# Turns of the event loop within which a connection that was accepted becomes a link.
_TURNS = 5
# Types of RESP 2 and 3: https://valkey.io/topics/protocol/
_BULK = frozenset(b"$=!")
_AGGREGATES = frozenset(b"*~>")
_MAP, _ATTRIBUTES = b"%|"


def block_loop(seconds: float) -> None:
    """Blocks the event loop, as a handler that never awaits does."""
    time.sleep(seconds)


class Frames:
    """Splits one direction of a connection into whole commands, or whole replies."""

    def __init__(self) -> None:
        self._data = bytearray()
        # where parsing of the first frame goes on, and how many of its values are missing
        self._position = 0
        self._missing = 1

    def feed(self, data: bytes) -> list[bytes]:
        """Takes the next bytes and returns the frames that they complete."""
        self._data += data
        frames: list[bytes] = []
        start = 0
        while (end := self._value_end()) is not None:
            self._position = end
            if not self._missing:
                frames.append(bytes(self._data[start:end]))
                start, self._missing = end, 1
        del self._data[:start]
        self._position -= start
        return frames

    def _value_end(self) -> int | None:
        """Returns the end of the next value, or of the head of an aggregate; None if bytes are missing."""
        line_end = self._data.find(b"\r\n", self._position)
        if line_end < 0:
            return None
        kind, end = self._data[self._position], line_end + 2
        if kind in _BULK:
            length = self._number(line_end)
            if length >= 0:
                end += length + 2
            if end > len(self._data):
                return None
            self._missing -= 1
        elif kind in _AGGREGATES:
            self._missing += max(self._number(line_end), 0) - 1
        elif kind == _MAP:
            self._missing += 2 * self._number(line_end) - 1
        elif kind == _ATTRIBUTES:
            # the value with these attributes follows
            self._missing += 2 * self._number(line_end)
        else:
            self._missing -= 1
        return end

    def _number(self, line_end: int) -> int:
        return int(self._data[self._position + 1 : line_end])


class Fault:
    """A fault in effect; it lasts until `end` is called, or to the end of `with`."""

    def __init__(self, end: Callable[[], None]) -> None:
        self._end = end

    def end(self) -> None:
        """Ends the fault."""
        self._end()

    def __enter__(self) -> Self:
        """Returns the fault."""
        return self

    def __exit__(self, *error: object) -> None:
        """Ends the fault."""
        self.end()


class Faults:
    """A proxy between agents and a server on the loopback interface, as a context manager.

    It runs in a thread of its own, also while the test's event loop is blocked. A fault is in effect for all
    connections when the call returns.

    Args:
        server_port: port of the server.

    Attributes:
        port: port of the proxy.
        lost: how many commands and replies were lost on demand.
    """

    def __init__(self, server_port: int) -> None:
        self.port: int = 0
        self.lost: int = 0
        self._server_port = server_port
        self._lose_commands: list[bytes] = []
        self._lose_replies: list[bytes] = []
        self._latency = (0.0, 0.0)
        self._refusing = False
        self._links: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """URL of the proxy."""
        return f"redis://127.0.0.1:{self.port}"

    def lose_reply(self, command: str | bytes, times: int = 1) -> None:
        """Loses the reply to the next command that contains a text, and breaks its connection.

        The server carries the command out, and the agent cannot know. Replies to earlier commands arrive.

        Args:
            command: any part of the command: its name, a key, the id of a message.
            times: for how many commands.
        """
        self._lose_replies.extend([_bytes(command)] * times)

    def lose_command(self, command: str | bytes, times: int = 1) -> None:
        """Loses the next command that contains a text before it reaches the server; breaks its connection.

        Args:
            command: any part of the command: its name, a key, the id of a message.
            times: how many commands.
        """
        self._lose_commands.extend([_bytes(command)] * times)

    def delay(self, seconds: float, jitter: float = 0.0) -> Fault:
        """Delays each reply.

        Args:
            seconds: the delay.
            jitter: up to how many seconds are added to that, evenly distributed.
        """
        self._latency = (seconds, jitter)
        return Fault(lambda: setattr(self, "_latency", (0.0, 0.0)))

    def hold(self) -> Fault:
        """Lets nothing pass, and breaks nothing, until `release`: a silent network."""
        self._call(self._let_flow(flowing=False))
        return Fault(self.release)

    def release(self) -> None:
        """Lets everything pass that `hold` held back, in order."""
        self._call(self._let_flow(flowing=True))

    def cut(self) -> None:
        """Breaks all connections. Agents may connect again."""
        self._call(self._cut())

    def refuse(self) -> Fault:
        """Breaks all connections, and refuses new ones until `accept`: the server is away."""
        self._refusing = True
        self._call(self._cut())
        return Fault(self.accept)

    def accept(self) -> None:
        """Lets agents connect again."""
        self._refusing = False

    def heal(self) -> None:
        """Ends all faults, those for commands to come included."""
        self._lose_commands.clear()
        self._lose_replies.clear()
        self._latency = (0.0, 0.0)
        self.accept()
        self.release()

    def __enter__(self) -> Self:
        """Listens on a port of the loopback interface."""
        listening: Future[int] = Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._run(listening)), name="agentstream faults", daemon=True
        )
        self._thread.start()
        self.port = listening.result()
        return self

    def __exit__(self, *error: object) -> None:
        """Breaks all connections and stops listening."""
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()

    def _call(self, change: Coroutine[Any, Any, None]) -> None:
        """Makes a change in the proxy's thread, and waits for it."""
        asyncio.run_coroutine_threadsafe(change, self._loop).result()

    async def _run(self, listening: Future[int]) -> None:
        self._loop = asyncio.get_running_loop()
        self._ended, self._flowing = asyncio.Event(), asyncio.Event()
        self._flowing.set()
        try:
            listener = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        except OSError as error:
            listening.set_exception(error)
            return
        listening.set_result(listener.sockets[0].getsockname()[1])
        await self._ended.wait()
        # a transport that is made for a server that has closed meanwhile fails, and nobody closes its socket
        for listening_socket in listener.sockets:
            self._loop.remove_reader(listening_socket.fileno())
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        listener.close()
        await self._cut()

    async def _let_flow(self, *, flowing: bool) -> None:
        (self._flowing.set if flowing else self._flowing.clear)()

    async def _cut(self) -> None:
        links = list(self._links)
        for link in links:
            link.cancel()
        await asyncio.gather(*links, return_exceptions=True)

    def _accepted(self, client_in: asyncio.StreamReader, client_out: asyncio.StreamWriter) -> None:
        link = asyncio.create_task(self._serve(client_in, client_out))
        self._links.add(link)
        link.add_done_callback(self._links.discard)
        # also of a task that is cancelled before its first step
        link.add_done_callback(lambda _: client_out.transport.abort())

    async def _serve(self, client_in: asyncio.StreamReader, client_out: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.CancelledError):
            if not self._refusing:
                await self._forward(client_in, client_out)

    async def _forward(self, client_in: asyncio.StreamReader, client_out: asyncio.StreamWriter) -> None:
        await self._flowing.wait()
        server_in, server_out = await asyncio.open_connection("127.0.0.1", self._server_port)
        expected: deque[bool] = deque()
        arriving: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        ways = [
            asyncio.create_task(self._commands(client_in, server_out, expected)),
            asyncio.create_task(self._replies(server_in, expected, arriving)),
            asyncio.create_task(self._deliver(client_out, arriving)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            server_out.transport.abort()
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _commands(
        self, client: asyncio.StreamReader, server: asyncio.StreamWriter, expected: deque[bool]
    ) -> None:
        """Forwards commands until the client ends, or one is lost; marks those whose reply is to be lost."""
        frames = Frames()
        while data := await client.read(_CHUNK):
            for frame in frames.feed(data):
                if _takes(self._lose_commands, frame):
                    self.lost += 1
                    return
                expected.append(_takes(self._lose_replies, frame))
                await self._flowing.wait()
                server.write(frame)
            await server.drain()

    async def _replies(
        self,
        server: asyncio.StreamReader,
        expected: deque[bool],
        arriving: asyncio.Queue[tuple[float, bytes]],
    ) -> None:
        """Queues replies until the server ends, or one is lost."""
        frames = Frames()
        losing = False
        while not losing and (data := await server.read(_CHUNK)):
            delay, jitter = self._latency
            arrival = self._loop.time() + delay + random.random() * jitter  # noqa: S311 - guards no secret
            passed: list[bytes] = []
            for frame in frames.feed(data):
                # without a command expected, the frame is a push message
                losing = bool(expected) and expected.popleft()
                if losing:
                    break
                passed.append(frame)
            arriving.put_nowait((arrival, b"".join(passed)))
        await arriving.join()
        self.lost += losing

    async def _deliver(
        self, client: asyncio.StreamWriter, arriving: asyncio.Queue[tuple[float, bytes]]
    ) -> None:
        while True:
            arrival, data = await arriving.get()
            await asyncio.sleep(arrival - self._loop.time())
            await self._flowing.wait()
            client.write(data)
            await client.drain()
            arriving.task_done()


def _takes(wanted: list[bytes], command: bytes) -> bool:
    """Whether a command is one of those that are to suffer a fault; from then on it is one less."""
    for text in wanted:
        if text in command:
            wanted.remove(text)
            return True
    return False


def _bytes(command: str | bytes) -> bytes:
    return command.encode() if isinstance(command, str) else command
