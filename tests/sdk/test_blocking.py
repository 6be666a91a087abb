"""The connection of the thread that renews leases."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from agentstream.errors import AccessDenied, ConnectionLost, ServerRefused
from agentstream.transport.blocking import BlockingConnection
from agentstream.transport.endpoint import Endpoint
from support.peers import certificate, listening, relaying, saying
from support.servers import Server, builds
from support.waiting import until


def greeted(endpoint: Endpoint, name: str, timeout: float) -> BlockingConnection:
    """A connection on which the server knows who asks."""
    connection = BlockingConnection(endpoint, name, timeout)
    connection.greet()
    return connection


def test_it_asks_one_thing_after_the_other(server: Server) -> None:
    connection = greeted(Endpoint(f"{server.url}/3"), "renew", 5)
    info = connection.call("CLIENT", "INFO")
    assert b" name=renew " in info
    assert b" db=3 " in info
    assert connection.call("GET", "nothing") is None
    value = b"x" * 1_000_000
    assert connection.call("ECHO", value) == value
    with pytest.raises(ServerRefused, match="unknown command"):
        connection.call("NONSENSE")
    assert connection.call("PING") == b"PONG"
    connection.close()


def test_what_the_server_refuses_at_once_is_an_error(server: Server) -> None:
    with pytest.raises(AccessDenied, match="WRONGPASS"):
        greeted(Endpoint(server.url, "nobody", "secret"), "renew", 5)


def test_a_server_that_is_not_there_is_a_lost_connection(tmp_path: Path) -> None:
    with pytest.raises(ConnectionLost, match="refused"):
        greeted(Endpoint("redis://127.0.0.1:1"), "renew", 5)
    with pytest.raises(ConnectionLost, match="No such file"):
        greeted(Endpoint(f"unix://{tmp_path}/gone"), "renew", 5)


def test_a_socket_of_the_file_system(tmp_path: Path) -> None:
    server = Server(builds()[0], tmp_path, options=("--unixsocket", str(tmp_path / "s")))
    server.start()
    try:
        connection = greeted(Endpoint(f"unix://{tmp_path}/s"), "renew", 5)
        assert connection.call("PING") == b"PONG"
        connection.close()
    finally:
        server.kill()


async def test_an_encrypted_connection(server: Server, tmp_path: Path) -> None:
    context = certificate(tmp_path, "localhost")

    def ask(port: int) -> bytes:
        endpoint = Endpoint(f"rediss://localhost:{port}", ca_file=str(tmp_path / "ca.crt"))
        connection = greeted(endpoint, "renew", 5)
        value: bytes = connection.call("ECHO", b"x" * 100_000)
        connection.interrupt()
        with pytest.raises(ConnectionLost):
            connection.call("PING")
        return value

    async with listening(relaying(server.port, lambda data: [data]), context) as port:
        assert await asyncio.to_thread(ask, port) == b"x" * 100_000
        with pytest.raises(ConnectionLost, match="certificate verify failed"):
            await asyncio.to_thread(greeted, Endpoint(f"rediss://localhost:{port}"), "renew", 5)


@pytest.mark.parametrize(
    ("said", "staying", "error"),
    [
        (b"", True, "timed out"),
        (b"", False, "closed the connection"),
        (b"?nonsense\r\n", True, "Protocol error"),
    ],
)
async def test_what_is_no_reply_is_a_lost_connection(said: bytes, staying: bool, error: str) -> None:  # noqa: FBT001 - a parameter of the test
    async with listening(saying(said, staying=staying)) as port:
        with pytest.raises(ConnectionLost, match=error):
            await asyncio.to_thread(greeted, Endpoint(f"redis://127.0.0.1:{port}"), "renew", 0.2)


async def test_another_thread_may_interrupt_a_call(server: Server) -> None:
    connection = greeted(Endpoint(server.url), "renew", 30)
    waiting = threading.Event()

    def wait() -> None:
        waiting.set()
        connection.call("BLPOP", "nothing", 0)

    call = asyncio.create_task(asyncio.to_thread(wait))
    await until(waiting.is_set)
    connection.interrupt()
    with pytest.raises(ConnectionLost):
        await call
    connection.interrupt()
