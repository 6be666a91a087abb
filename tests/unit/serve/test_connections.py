"""Connections to a server on real sockets: how many there are, and how long one may take."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agentstream_operator.metrics_api.app import application
from agentstream_operator.reconcile.state.index import ResourceIndex
from agentstream_operator.serve import connections
from agentstream_operator.serve.certificates import ServingCertificates
from agentstream_operator.serve.connections import GRACE, Peer, Place, giving_way
from agentstream_operator.serve.http import HttpServer, listening, serving
from agentstream_operator.serve.request_header import RequestHeaderConfig
from support.apiserver import write_certificate
from support.waiting import until

UNKNOWN, STRANGER, VERIFIED = Peer.UNKNOWN, Peer.STRANGER, Peer.VERIFIED
PLAIN = "text/plain; charset=utf-8"
HALF = b"GET /apis HTTP/1.1\r\nHost: local"


def places(*counts: tuple[int, Peer, float]) -> list[Place]:
    """So many places of such callers since then."""
    return [Place(since, caller) for count, caller, since in counts for _ in range(count)]


@pytest.mark.parametrize(
    ("taken", "wait"),
    [
        ([], 0.0),
        (places((99, STRANGER, 0)), 0.0),
        (places((99, UNKNOWN, 0), (200, VERIFIED, 0)), 0.0),
        (places((100, STRANGER, 100)), GRACE[STRANGER]),
        (places((100, UNKNOWN, 100)), GRACE[UNKNOWN]),
        (places((50, UNKNOWN, 100), (50, STRANGER, 100)), GRACE[STRANGER]),
        # what a certificate has proved gives way to nobody
        (places((300, VERIFIED, 0)), 1.0),
    ],
)
def test_a_place_is_free_or_will_be(taken: list[Place], wait: float) -> None:
    assert giving_way(taken, 100.0) == (None, wait)


@pytest.mark.parametrize("rest", [places((99, STRANGER, 99)), places((99, UNKNOWN, 99), (200, VERIFIED, 0))])
@pytest.mark.parametrize("caller", [UNKNOWN, STRANGER])
def test_the_one_that_has_had_its_time_longest_gives_way(caller: Peer, rest: list[Place]) -> None:
    oldest = Place(98.0, caller)
    assert giving_way([*rest, oldest], 100.0) == (oldest, 0.0)


def test_when_all_places_are_taken_by_verified_clients_the_only_stranger_gives_way() -> None:
    only = Place(99.0, STRANGER)
    assert giving_way([*places((299, VERIFIED, 0)), only], 100.0) == (only, 0.0)


class Site:
    """The application of external metrics, with TLS.

    Attributes:
        port: where it is.
    """

    def __init__(self, directory: Path) -> None:
        self.authority = write_certificate(directory / "tls", "localhost")
        proxies = write_certificate(directory / "proxy", common_name="front-proxy")
        write_certificate(directory / "other", common_name="other", authority=proxies)
        config = RequestHeaderConfig(proxies.cert_pem.bytes().decode(), frozenset({"front-proxy"}))
        certificates = ServingCertificates(directory / "tls" / "tls.crt", directory / "tls" / "tls.key")
        certificates.apply(config)
        app = application(ResourceIndex(), None, self, lambda: config)  # type: ignore[arg-type]
        self.server = HttpServer(app, tls=certificates.context)
        self.directory = directory
        self.port = 0

    async def allows(self, *_: object) -> bool:
        """Lets every user have everything."""
        return True

    @functools.cache  # noqa: B019 - it lives as long as a test
    def tls(self, client: str | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        if client is not None:
            context.load_cert_chain(self.directory / client / "tls.crt", self.directory / client / "tls.key")
        return context

    async def connect(self, client: str | None = None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(
            "127.0.0.1", self.port, ssl=self.tls(client), server_hostname="localhost"
        )


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadlines that pass while one looks."""
    monkeypatch.setattr(connections, "FIRST_REQUEST", 0.2)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    found = Site(tmp_path)
    listener = listening(0)
    found.port = listener.getsockname()[1]
    async with found.server.serving(listener):
        yield found


@asynccontextmanager
async def plain() -> AsyncIterator[int]:
    """A server without TLS, as for probes."""
    async with serving(0, {"/livez": lambda: (200, PLAIN, b"ok\n")}) as port:
        yield port


async def code_of(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> int:
    """Sends the head of a request. Returns the status of the answer, whose body is read, too."""
    writer.write(head + b"\r\n\r\n")
    answer = (await reader.readuntil(b"\r\n\r\n")).lower()
    await reader.readexactly(int(answer.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
    return int(answer.split()[1])


AS_JANE = b"GET /apis HTTP/1.1\r\nHost: localhost\r\nX-Remote-User: jane"
PROBE = b"GET /livez HTTP/1.1\r\nHost: localhost"


async def ended(reader: asyncio.StreamReader) -> bool:
    """Waits for the end of a connection, which may be an abrupt one."""
    try:
        return await reader.read() == b""
    except (ConnectionError, ssl.SSLError):
        return True


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/1.1\r\n"])
async def test_a_handshake_that_does_not_end_ends_the_connection(tmp_path: Path, sent: bytes) -> None:
    site = Site(tmp_path)
    listener = listening(0)
    async with site.server.serving(listener):
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.getsockname()[1])
        writer.write(sent)
        assert await ended(reader)
        writer.close()


@pytest.mark.usefixtures("impatient")
async def test_a_client_without_a_certificate_that_sends_half_a_head_is_cut_off(tmp_path: Path) -> None:
    site = Site(tmp_path)
    listener = listening(0)
    async with site.server.serving(listener):
        site.port = listener.getsockname()[1]
        reader, writer = await site.connect()
        writer.write(HALF)
        assert await ended(reader)
        writer.transport.abort()


@pytest.mark.usefixtures("impatient")
async def test_bytes_that_trickle_in_prolong_no_deadline() -> None:
    async with plain() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)

        async def trickle() -> None:
            writer.write(HALF)
            while not writer.is_closing():
                writer.write(b"x")
                await asyncio.sleep(0.01)

        trickling = asyncio.create_task(trickle())
        assert await ended(reader)
        trickling.cancel()
        writer.transport.abort()


async def test_the_next_request_has_a_deadline_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentstream_operator.serve.http.KEEP_ALIVE", 0.2)
    async with plain() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await code_of(reader, writer, PROBE) == 200
        writer.write(HALF)
        assert await ended(reader)
        writer.transport.abort()


@pytest.mark.usefixtures("impatient")
async def test_a_request_that_is_answered_ends_the_first_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    async with plain() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        loop = asyncio.get_running_loop()
        since = loop.time()
        while loop.time() < since + 0.5:
            assert await code_of(reader, writer, PROBE) == 200
        writer.close()


@pytest.mark.parametrize("client", [None, "other"])
async def test_who_is_not_the_front_proxy_is_told_so_and_cut_off(site: Site, client: str | None) -> None:
    reader, writer = await site.connect(client)
    assert await code_of(reader, writer, AS_JANE) == 401
    assert await ended(reader)
    writer.close()


async def test_the_front_proxy_keeps_its_connection_whatever_a_user_is_answered(site: Site) -> None:
    reader, writer = await site.connect("proxy")
    for path, code in ((b"/apis", 200), (b"/nowhere", 404), (b"/apis", 200)):
        assert await code_of(reader, writer, AS_JANE.replace(b"/apis", path, 1)) == code
    writer.close()


async def test_a_body_that_nobody_reads_ends_the_connection() -> None:
    async with plain() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await code_of(reader, writer, PROBE + b"\r\nContent-Length: 1000000000") == 200
        assert await ended(reader)
        writer.transport.abort()


async def test_after_a_body_that_has_come_in_whole_the_next_request_is_answered() -> None:
    async with plain() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(2):
            writer.write(PROBE + b"\r\nContent-Length: 3\r\n\r\nabc")
            assert (await reader.readuntil(b"\r\n\r\n")).split()[1] == b"200"
            assert await reader.readexactly(3) == b"ok\n"
        writer.close()


async def test_an_answer_that_takes_long_to_read_ends_its_connection_without_a_word() -> None:
    said: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context))
    body = bytes(8 << 20)
    async with serving(0, {"/livez": lambda: (200, PLAIN, body)}) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(PROBE + b"\r\nConnection: close\r\n\r\n")
        # the server closes while it still has most of it to write
        found = await reader.readuntil(b"\r\n\r\n")
        assert b"200" in found
        assert await reader.read() == body
        writer.close()
    gc.collect()
    assert said == []


async def test_a_head_has_a_largest_size() -> None:
    async with plain() as port:
        for size, code in ((60_000, b"200"), (1_000_000, b"400")):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(PROBE + b"\r\nX: " + b"x" * size + b"\r\n\r\n")
            assert (await reader.readuntil(b"\r\n\r\n")).split()[1] == code
            writer.close()


@pytest.mark.parametrize("sent", [HALF, None])
async def test_strangers_in_any_number_keep_out_no_front_proxy(
    site: Site, sent: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    kept, held = await site.connect("proxy"), []
    assert await code_of(*kept, AS_JANE) == 200
    for number in range(2 * connections.STRANGERS):
        if sent is None:
            held.append(await asyncio.open_connection("127.0.0.1", site.port))
        else:
            held.append(await site.connect())
            held[-1][1].write(sent)
        if number % 20 == 0:
            assert await code_of(*kept, AS_JANE) == 200
    fresh = await site.connect("proxy")
    assert await code_of(*fresh, AS_JANE) == 200
    # and the first of the strangers have given way
    assert await ended(held[0][0])
    places = site.server._acceptor._open
    assert sum(place.caller is not VERIFIED for place in places) <= connections.STRANGERS
    warnings = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert [text.partition(":")[0] for text in warnings] == [
        "too many connections without a client certificate (at most 100)"
    ]
    for _, writer in (kept, fresh, *held):
        writer.transport.abort()


async def test_a_probe_is_answered_among_idle_connections() -> None:
    async with plain() as port:
        idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2 * connections.STRANGERS)]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await code_of(reader, writer, PROBE) == 200
        for _, other in (*idle, (reader, writer)):
            other.transport.abort()


async def test_at_the_end_no_connection_is_left(tmp_path: Path) -> None:
    site = Site(tmp_path)
    listener = listening(0)
    async with site.server.serving(listener):
        site.port = listener.getsockname()[1]
        silent = await asyncio.open_connection("127.0.0.1", site.port)
        stranger, proxy = await site.connect(), await site.connect("proxy")
        assert await code_of(*proxy, AS_JANE) == 200
        await until(lambda: len(site.server._acceptor._open) == 3)
    for reader, writer in (silent, stranger, proxy):
        assert await ended(reader)
        writer.close()


async def test_without_a_place_to_accept_it_goes_on_later(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(connections, "_PAUSE", 0.01)
    loop = asyncio.get_running_loop()
    accept, failures = loop.sock_accept, [OSError(24, "Too many open files")]

    async def failing(listener: socket.socket) -> tuple[socket.socket, object]:
        if failures:
            raise failures.pop()
        return await accept(listener)

    monkeypatch.setattr(loop, "sock_accept", failing)
    async with plain() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await code_of(reader, writer, PROBE) == 200
        writer.close()
    assert "cannot accept a connection: [Errno 24] Too many open files" in caplog.text
