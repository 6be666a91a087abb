"""The HTTPS server on a real socket: certificates of both sides, as they change, and an end in order."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme

from agentstream_operator.cluster.port import ClusterUnavailable
from agentstream_operator.serve.certificates import ServingCertificates
from agentstream_operator.serve.connections import common_names
from agentstream_operator.serve.http import HttpServer, listening
from agentstream_operator.serve.request_header import RequestHeaderConfig
from support.apiserver import write_certificate
from support.waiting import until

PROXY = "front-proxy-client"


class Site:
    """A server that answers with the common names that it is told.

    Attributes:
        certificates: its certificates.
        authority: who signs the server's.
        proxies: who signs those of front proxies.
        server: the server.
        port: where it is.
    """

    def __init__(self, directory: Path) -> None:
        self._tls = directory / "tls"
        self._client = directory / "client"
        self.authority = write_certificate(self._tls, "localhost")
        self.proxies = write_certificate(self._client, common_name=PROXY)
        self.certificates = ServingCertificates(self._tls / "tls.crt", self._tls / "tls.key")
        self.server = HttpServer(self._answer, tls=self.certificates.context)
        self.gate = asyncio.Event()
        self.gate.set()
        self.port = 0

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        del receive
        await self.gate.wait()
        body = repr(scope["state"]["peer"]).encode()
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def believe(self, authority: trustme.CA | None = None) -> bool:
        pem = (authority or self.proxies).cert_pem.bytes().decode()
        return self.certificates.apply(RequestHeaderConfig(pem, frozenset({PROXY})))

    def renew(self, authority: trustme.CA | None = None) -> None:
        """Writes a new certificate for the server."""
        self.authority = write_certificate(self._tls, "localhost", authority=authority)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        listener = listening(0)
        self.port = listener.getsockname()[1]
        async with self.server.serving(listener):
            yield

    def context(self, client: Path | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        if client is not None:
            context.load_cert_chain(client / "tls.crt", client / "tls.key")
        return context

    @asynccontextmanager
    async def connected(
        self, client: Path | None = None, *, name: str | None = "localhost"
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        context = self.context(client)
        if name is None:
            context.check_hostname = False
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.port, ssl=context, server_hostname=name or ""
        )
        try:
            yield reader, writer
        finally:
            writer.transport.abort()

    async def peer(self, client: Path | None = None, *, name: str | None = "localhost") -> str:
        """Whom the server takes the client for."""
        async with self.connected(client, name=name) as (reader, writer):
            return await ask(reader, writer)


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
    """A request on a connection. Returns the body of the answer."""
    writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    return await answer(reader)


async def answer(reader: asyncio.StreamReader) -> str:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    assert head.startswith("http/1.1 200")
    length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
    return (await reader.readexactly(length)).decode()


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    found = Site(tmp_path)
    async with found.serving():
        yield found


async def test_the_names_in_a_certificate_are_passed_on(site: Site, tmp_path: Path) -> None:
    site.believe()
    assert await site.peer(tmp_path / "client") == repr((PROXY,))
    write_certificate(tmp_path / "other", common_name="somebody", authority=site.proxies)
    assert await site.peer(tmp_path / "other") == repr(("somebody",))
    assert await site.peer() == "None"
    # a client that names no server gets the same certificate
    assert await site.peer(tmp_path / "client", name=None) == repr((PROXY,))


async def test_a_certificate_of_another_authority_ends_the_connection(site: Site, tmp_path: Path) -> None:
    site.believe()
    write_certificate(tmp_path / "forged", common_name=PROXY)
    with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
        await site.peer(tmp_path / "forged")


async def test_a_session_that_is_resumed_does_not_bring_its_certificate_along(
    site: Site, tmp_path: Path
) -> None:
    site.believe()
    context = site.context(tmp_path / "client")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    first, session, _ = await asyncio.to_thread(resumed, site.port, context, None)
    assert first == repr((PROXY,))
    # the authority that had signed it is believed no more
    site.believe(trustme.CA())
    later, _, again = await asyncio.to_thread(resumed, site.port, context, session)
    assert (later, again) == ("None", True)


def resumed(
    port: int, context: ssl.SSLContext, session: ssl.SSLSession | None
) -> tuple[str, ssl.SSLSession | None, bool | None]:
    """Asks on a connection that resumes a session. Returns the answer, its session, and whether it did."""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="localhost", session=session) as secured,
    ):
        secured.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        body = b"".join(iter(lambda: secured.recv(4096), b"")).partition(b"\r\n\r\n")[2]
        return body.decode(), secured.session, secured.session_reused


async def test_before_whom_to_believe_is_known_there_is_no_connection(site: Site) -> None:
    assert site.certificates.missing == (
        "client CA of the front proxy not read yet (ConfigMap extension-apiserver-authentication)"
    )
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await site.peer()


async def test_a_new_certificate_is_taken_up_and_half_of_one_is_not(
    site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    site.believe()
    old = site.authority
    new = trustme.CA()
    half = tmp_path / "half"
    write_certificate(half, "localhost", authority=new)
    (tmp_path / "tls" / "tls.crt").write_bytes((half / "tls.crt").read_bytes())
    site.certificates.load()
    site.certificates.load()
    assert len([r for r in caplog.records if "cannot load" in r.message]) == 1
    assert await site.peer() == "None"
    (tmp_path / "tls" / "tls.key").write_bytes((half / "tls.key").read_bytes())
    site.certificates.load()
    with pytest.raises(ssl.SSLCertVerificationError):
        await site.peer()
    site.authority = new
    assert await site.peer() == "None"
    assert site.certificates.missing is None
    assert old is not new


async def test_an_authority_that_is_believed_no_more_lets_nobody_in_while_the_certificate_is_half_written(
    site: Site, tmp_path: Path
) -> None:
    site.believe()
    key = (tmp_path / "tls" / "tls.key").read_bytes()
    (tmp_path / "tls" / "tls.key").write_bytes(b"half")
    assert site.believe(trustme.CA())
    assert site.certificates.missing == "no serving certificate loaded"
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await site.peer(tmp_path / "client")
    (tmp_path / "tls" / "tls.key").write_bytes(key)
    site.certificates.load()
    assert await site.peer() == "None"


async def test_files_are_looked_at_again_and_again(site: Site, tmp_path: Path) -> None:
    for file in ("tls.crt", "tls.key"):
        (tmp_path / "tls" / file).rename(tmp_path / file)
    site.believe()
    assert site.certificates.missing == "no serving certificate loaded"
    watching = asyncio.create_task(site.certificates.watch_files(0.01))
    try:
        for file in ("tls.crt", "tls.key"):
            (tmp_path / file).rename(tmp_path / "tls" / file)
        await until(lambda: site.certificates.missing is None)
        assert await site.peer() == "None"
    finally:
        watching.cancel()


async def test_another_authority_of_front_proxies_ends_connections_and_trust(
    site: Site, tmp_path: Path
) -> None:
    site.believe()
    client, other = tmp_path / "client", trustme.CA()
    async with site.connected(client) as (reader, writer):
        assert await ask(reader, writer) == repr((PROXY,))
        assert not site.believe()
        assert site.believe(other)
        site.server.drop_connections()
        assert await reader.read() == b""
    with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
        await site.peer(client)
    write_certificate(client, common_name=PROXY, authority=other)
    assert await site.peer(client) == repr((PROXY,))


async def test_a_request_that_is_under_way_is_answered_before_its_connection_ends(site: Site) -> None:
    site.believe()
    site.gate.clear()
    async with site.connected() as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await until(lambda: site.server._server.server_state.tasks)
        site.server.drop_connections()
        site.gate.set()
        assert await answer(reader) == "None"
        assert await reader.read() == b""


async def test_at_the_end_requests_are_answered(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.believe()
    site.gate.clear()
    async with site.serving():
        context = site.connected()
        reader, writer = await context.__aenter__()
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await until(lambda: site.server._server.server_state.tasks)
        asyncio.get_running_loop().call_later(0.05, site.gate.set)
    assert await answer(reader) == "None"
    await context.__aexit__(None, None, None)


class ConfigMaps:
    """The API server, which has one ConfigMap."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)

    async def get(self, kind: Any, namespace: str, name: str) -> Any:
        assert (kind.plural, namespace, name) == (
            "configmaps",
            "kube-system",
            "extension-apiserver-authentication",
        )
        found = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(found, Exception):
            raise found
        return found


async def test_whom_to_believe_is_read_again_and_again(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    first, second = (ca.cert_pem.bytes().decode() for ca in (trustme.CA(), trustme.CA()))

    def configmap(pem: str) -> dict[str, Any]:
        return {"data": {"requestheader-client-ca-file": pem, "requestheader-allowed-names": "[]"}}

    changes: list[RequestHeaderConfig | None] = []
    api: Any = ConfigMaps(
        None, ClusterUnavailable("away"), configmap(first), configmap(first), configmap(second)
    )
    watching = asyncio.create_task(
        site.certificates.watch_configmap(api, lambda: changes.append(site.certificates.config), 0.01)
    )
    try:
        await until(lambda: changes)
    finally:
        watching.cancel()
    assert [found.client_ca for found in changes if found is not None] == [second]
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "cannot read ConfigMap extension-apiserver-authentication"
    ] * 2


def test_names_are_of_the_subject() -> None:
    subject = ((("organizationName", "x"),), (("commonName", "a"),), (("commonName", "b"),))
    assert common_names({"subject": subject, "issuer": ((("commonName", "c"),),)}) == ("a", "b")
    assert common_names({"issuer": ()}) == ()
    assert common_names({}) is None
    assert common_names(None) is None
