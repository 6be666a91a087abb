"""What may stand between a client and its server, or in the server's place."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path

Peer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def listening(peer: Peer, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """A port of the loopback interface where `peer` serves each connection, which then breaks."""
    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await peer(reader, writer)
        writer.transport.abort()
        serving.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving)


def saying(reply: bytes, *, staying: bool = False) -> Peer:
    """A peer that says the same to whatever comes first; then it hangs up, or stays and says nothing."""

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1 << 16)
        writer.write(reply)
        await writer.drain()
        while staying and await reader.read(1 << 16):
            pass

    return peer


def relaying(port: int, mangled: Callable[[bytes], Iterable[bytes | None]]) -> Peer:
    """A peer that passes on what a client and the server at `port` say to each other.

    Args:
        port: where the server is.
        mangled: what becomes of something that the server says: pieces that arrive one by one; None hangs up.
    """

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        replies, requests = await asyncio.open_connection("127.0.0.1", port)

        async def answer() -> None:
            while data := await replies.read(1 << 16):
                for piece in mangled(data):
                    if piece is None:
                        return
                    writer.write(piece)
                    await writer.drain()
                    # each arrives for itself
                    await asyncio.sleep(0)

        async def ask() -> None:
            while data := await reader.read(1 << 16):
                requests.write(data)
                await requests.drain()

        ways = [asyncio.create_task(answer()), asyncio.create_task(ask())]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            requests.transport.abort()

    return peer


def certificate(directory: Path, host: str) -> ssl.SSLContext:
    """A server's side of TLS for one host; `directory` then has its self-signed certificate as `ca.crt`."""
    key, crt = directory / "tls.key", directory / "ca.crt"
    subprocess.run(
        [
            *(
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "rsa:2048",
                "-nodes",
                "-days",
                "2",
                "-subj",
                f"/CN={host}",
            ),
            *("-addext", f"subjectAltName=DNS:{host}", "-keyout", str(key), "-out", str(crt)),
        ],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(crt, key)
    return context


def slow(port: int, rate: float) -> Peer:
    """A peer that passes on what a client says to the server at `port` with so many bytes a second."""

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # what it has not taken yet waits with the client
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        replies, requests = await asyncio.open_connection("127.0.0.1", port)

        async def answer() -> None:
            while data := await replies.read(1 << 16):
                writer.write(data)

        answering = asyncio.create_task(answer())
        try:
            while data := await reader.read(1 << 16):
                requests.write(data)
                await asyncio.sleep(len(data) / rate)
        finally:
            answering.cancel()
            requests.transport.abort()
            await asyncio.gather(answering, return_exceptions=True)

    return peer


def hanging_up_late(port: int, ended: asyncio.Event, late: asyncio.Event) -> Peer:
    """A peer between a client and the server at `port` that says when the client ends, and tells it late."""

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", port)

        async def answer() -> None:
            with contextlib.suppress(OSError):
                while data := await server_reader.read(1 << 16):
                    writer.write(data)

        answering = asyncio.create_task(answer())
        try:
            with contextlib.suppress(OSError):
                while data := await reader.read(1 << 16):
                    server_writer.write(data)
            ended.set()
            await late.wait()
            server_writer.write_eof()
            await answering
        finally:
            answering.cancel()
            server_writer.close()

    return peer
