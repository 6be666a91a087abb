"""How connections are made, that of the renewing thread too: where they lead, who may, what is no server."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from agentstream.errors import AccessDenied, ConnectionLost, ServerRefused, SettingsError
from agentstream.transport.blocking import BlockingConnection
from agentstream.transport.client import Client
from agentstream.transport.endpoint import Endpoint
from support.peers import certificate, listening, relaying, saying
from support.servers import Server, builds, free_port
from support.waiting import until


async def refused(endpoint: Endpoint, error: type[Exception], text: str, patience: float = 5.0) -> None:
    """Expects that a call fails."""
    wire = Client(lambda: endpoint, name="refused", timeout=patience)
    with pytest.raises(error, match=text):
        await wire.call("PING")
    await wire.close()


async def test_a_connection_is_called_what_it_is(server: Server, wire: Client) -> None:
    listed = await wire.call("CLIENT", "LIST", "ID", await wire.call("CLIENT", "ID"))
    assert b" name=test " in listed
    assert b" lib-name=agentstream " in listed


async def test_an_address_may_name_a_database(server: Server) -> None:
    wire = Client(lambda: Endpoint(f"{server.url}/3"), name="third")
    assert b" db=3 " in await wire.call("CLIENT", "INFO")
    await wire.close()


@pytest.mark.parametrize("url", ["http://host", "redis://host:port"])
async def test_an_address_that_is_none_is_an_error_of_the_settings(url: str) -> None:
    await refused(Endpoint(url), SettingsError, "no address of a server")


async def test_settings_that_cannot_be_read_are_an_error_until_they_can(server: Server) -> None:
    found: list[Endpoint] = []

    def endpoint() -> Endpoint:
        if not found:
            raise SettingsError("nothing is mounted")
        return found[0]

    wire = Client(endpoint, name="waiting")
    with pytest.raises(SettingsError):
        await wire.call("PING")
    found.append(Endpoint(server.url))
    assert await wire.call("PING") == b"PONG"
    await wire.close()


async def test_settings_that_cannot_be_read_again_are_a_lost_connection(server: Server) -> None:
    settings = [Endpoint(server.url)]

    def endpoint() -> Endpoint:
        if not settings:
            raise SettingsError("the Secret is being replaced")
        return settings[0]

    wire = Client(endpoint, name="replaced")
    connection = (await wire.call("CLIENT", "ID"),)
    settings.clear()
    with server.admin() as admin:
        admin.client_kill_filter(_id=str(*connection))
    await until(lambda: wire._connection is None)
    with pytest.raises(ConnectionLost, match="being replaced"):
        await wire.call("PING")
    settings.append(Endpoint(server.url))
    assert await wire.call("PING") == b"PONG"
    await wire.close()


async def test_an_error_that_nobody_foresaw_reaches_the_callers() -> None:
    def endpoint() -> Endpoint:
        raise RuntimeError("surprise")

    wire = Client(endpoint, name="surprised")
    with pytest.raises(RuntimeError, match="surprise"):
        await wire.call("PING")
    await wire.close()


async def test_nobody_listens() -> None:
    await refused(Endpoint(f"redis://127.0.0.1:{free_port()}"), ConnectionLost, "127.0.0.1")


async def test_a_wrong_password_is_access_denied(server: Server) -> None:
    await refused(Endpoint(server.url, "nobody", "s3cret"), AccessDenied, "WRONGPASS")


async def test_who_may_not_name_a_connection_may_still_use_it(server: Server, wire: Client) -> None:
    await wire.call("ACL", "SETUSER", "terse", "on", ">secret", "-@all", "+ping")
    terse = Client(lambda: Endpoint(server.url, "terse", "secret"), name="terse")
    assert await terse.call("PING") == b"PONG"
    await terse.close()


async def test_a_server_that_is_full_is_a_lost_connection(private_server: Server, tmp_path: Path) -> None:
    with private_server.admin() as admin:
        admin.config_set("maxclients", 1)
        await refused(Endpoint(private_server.url), ConnectionLost, "max number of clients reached")


async def test_what_speaks_another_protocol_is_a_lost_connection() -> None:
    async with listening(saying(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as port:
        await refused(
            Endpoint(f"redis://127.0.0.1:{port}"), ConnectionLost, "sent something that is not RESP"
        )


async def test_a_reply_to_no_command_breaks_the_connection() -> None:
    async with listening(saying(b"+OK\r\n" * 9, staying=True)) as port:
        await refused(Endpoint(f"redis://127.0.0.1:{port}"), ConnectionLost, "sent a reply to no command")


async def test_a_greeting_that_is_cut_off_is_a_lost_connection() -> None:
    async with listening(saying(b"+OK\r\n+OK\r\n")) as port:
        await refused(
            Endpoint(f"redis://127.0.0.1:{port}"), ConnectionLost, "the server closed the connection"
        )


async def test_a_server_that_hangs_up_once_it_has_greeted_is_a_lost_connection() -> None:
    async with listening(saying(b"+OK\r\n+OK\r\n+OK\r\n")) as port:
        await refused(Endpoint(f"redis://127.0.0.1:{port}"), ConnectionLost, "connection")


async def test_a_greeting_that_is_not_answered_is_a_lost_connection() -> None:
    async with listening(saying(b"+OK\r\n", staying=True)) as port:
        await refused(Endpoint(f"redis://127.0.0.1:{port}"), ConnectionLost, "no reply", patience=0.2)


async def test_closing_does_not_wait_for_a_greeting() -> None:
    async with listening(saying(b"", staying=True)) as port:
        wire = Client(lambda: Endpoint(f"redis://127.0.0.1:{port}"), name="closing")
        call = asyncio.create_task(wire.call("PING"))
        await until(lambda: wire._connecting is not None)
        await wire.close()
        with pytest.raises(ConnectionLost, match="is closed"):
            await call


async def test_a_socket_of_the_file_system(tmp_path: Path) -> None:
    path = tmp_path / "s"
    server = Server(builds()[0], tmp_path, options=("--unixsocket", str(path)))
    server.start()
    try:
        wire = Client(lambda: Endpoint(f"unix://{path}?db=2"), name="local")
        assert b" db=2 " in await wire.call("CLIENT", "INFO")
        await wire.close()
    finally:
        server.kill()
    await refused(Endpoint(f"unix://{path}.gone"), ConnectionLost, "No such file")


async def test_an_encrypted_connection(server: Server, tmp_path: Path) -> None:
    terminator = relaying(server.port, lambda data: [data])
    async with listening(terminator, certificate(tmp_path, "localhost")) as port:
        authority = str(tmp_path / "ca.crt")
        wire = Client(lambda: Endpoint(f"rediss://localhost:{port}", ca_file=authority), name="tls")
        value = "x" * 1_000_000
        assert await asyncio.gather(*(wire.call("ECHO", f"{n}{value}") for n in range(10))) == [
            f"{n}{value}".encode() for n in range(10)
        ]
        await wire.close()
        await refused(Endpoint(f"rediss://localhost:{port}"), ConnectionLost, "certificate verify failed")
        elsewhere = Endpoint(f"rediss://127.0.0.1:{port}", ca_file=authority)
        await refused(elsewhere, ConnectionLost, "certificate verify failed")
        plain = Endpoint(f"redis://127.0.0.1:{port}")
        await refused(plain, ConnectionLost, "the server closed the connection")


async def test_an_authority_that_cannot_be_read_is_a_lost_connection(server: Server, tmp_path: Path) -> None:
    url = server.url.replace("redis://", "rediss://")
    await refused(Endpoint(url, ca_file=str(tmp_path / "ca.crt")), ConnectionLost, "No such file")


async def test_a_server_that_became_a_replica_is_left(server: Server, private_server: Server) -> None:
    where = private_server.url
    wire = Client(lambda: Endpoint(where), name="failing-over")
    await wire.call("REPLICAOF", "127.0.0.1", free_port())
    where = server.url
    reads = [asyncio.create_task(wire.call("ECHO", n)) for n in range(2)]
    refused = asyncio.create_task(wire.call("SETEX", "{a}:once:1", 60, "x"))
    reads.append(asyncio.create_task(wire.call("ECHO", 2)))
    with pytest.raises(ServerRefused, match="READONLY"):
        await refused
    # what was sent together with it is answered
    assert await asyncio.gather(*reads) == [b"0", b"1", b"2"]
    assert await wire.call("SETEX", "{a}:once:1", 60, "x") == b"OK"
    assert wire.connects == 2
    await wire.close()
    # the key belongs to no stream
    with server.admin() as admin:
        admin.delete("{a}:once:1")


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


def test_a_blocking_connection_to_a_socket_of_the_file_system(tmp_path: Path) -> None:
    server = Server(builds()[0], tmp_path, options=("--unixsocket", str(tmp_path / "s")))
    server.start()
    try:
        connection = greeted(Endpoint(f"unix://{tmp_path}/s"), "renew", 5)
        assert connection.call("PING") == b"PONG"
        connection.close()
    finally:
        server.kill()


async def test_an_encrypted_blocking_connection(server: Server, tmp_path: Path) -> None:
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
