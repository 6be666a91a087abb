"""Whatever bytes a connection brings, the metrics server answers no 5xx, logs nothing, and serves on.

`AGENTSTREAM_EXAMPLES=10000` tries ten thousand of each property.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentstream_operator.metrics_api.app import application
from agentstream_operator.metrics_api.backlog import Backlog
from agentstream_operator.reconcile.state.index import ResourceIndex
from agentstream_operator.resources.consumergroup import ConsumerGroup
from agentstream_operator.serve.http import HttpServer, listening
from agentstream_operator.serve.request_header import RequestHeaderConfig
from support.examples import trying
from support.resources import a_group, a_stream

ROOT = b"/apis/external.metrics.k8s.io/v1beta1"
METRIC = ROOT + b"/namespaces/team/agentstream-backlog"
HEALTHY = b"GET %b HTTP/1.1\r\nHost: localhost\r\nX-Remote-User: jane\r\nConnection: close\r\n\r\n" % METRIC
STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")
AT = datetime(2026, 1, 2, tzinfo=UTC)


class Everything:
    """Knows every backlog, and lets every user have it."""

    async def of(self, group: ConsumerGroup) -> Backlog:
        del group
        return Backlog(3, AT)

    async def allows(self, *_: object) -> bool:
        """Allows."""
        return True


class Site:
    """The metrics server on a socket.

    Attributes:
        peers: by the port of a client, the names in the certificate that it has shown; else a front proxy's.
        records: what it has logged that is worse than information.
    """

    def __init__(self) -> None:
        store = ResourceIndex()
        store.put(a_stream())
        store.put(a_group("coder", namespace="team"))
        everything: Any = Everything()
        config = RequestHeaderConfig("PEM", frozenset({"proxy"}))
        self._app = application(store, everything, everything, lambda: config)
        self.peers: dict[int, tuple[str, ...] | None] = {}
        self.records: list[logging.LogRecord] = []
        self.server = HttpServer(self._with_peer)
        self.port = 0

    async def _with_peer(self, scope: Any, receive: Any, send: Any) -> None:
        scope["state"]["peer"] = self.peers.get(scope["client"][1], ("proxy",))
        await self._app(scope, receive, send)

    async def connect(
        self, peer: tuple[str, ...] | None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.peers[writer.get_extra_info("sockname")[1]] = peer
        return reader, writer

    async def survives(self, peer: tuple[str, ...] | None, *attack: bytes, ends: bool = False) -> list[int]:
        """Sends an attack and, beside it, a healthy request. Returns the statuses that the attack gets.

        `ends`: the server ends the connection; else it gets to know that no more is coming.
        """
        reader, writer = await self.connect(peer)
        try:
            for part in attack:
                writer.write(part)
                await asyncio.sleep(0)
            other, healthy = await self.connect(("proxy",))
            healthy.write(HEALTHY)
            assert (await other.read()).startswith(b"HTTP/1.1 200 ")
            healthy.close()
            if not ends:
                with contextlib.suppress(OSError):
                    writer.write_eof()
            answer = await read_all(reader)
        finally:
            writer.transport.abort()
        logged, self.records[:] = list(self.records), []
        assert [(record.getMessage(), record.exc_info) for record in logged] == []
        assert b"Traceback" not in answer
        return [int(code) for code in STATUS.findall(answer)]


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    found = Site()
    handler = logging.Handler(logging.WARNING)
    handler.emit = found.records.append  # type: ignore[method-assign, assignment]
    logging.getLogger().addHandler(handler)
    listener = listening(0)
    found.port = listener.getsockname()[1]
    async with found.server.serving(listener):
        yield found
    logging.getLogger().removeHandler(handler)


async def read_all(reader: asyncio.StreamReader) -> bytes:
    """All that comes until the connection ends, abruptly or not."""
    answer = b""
    with contextlib.suppress(ConnectionError):
        while more := await reader.read(65_536):
            answer += more
    return answer


tokens = st.sampled_from(
    [
        b"GET",
        b"HEAD",
        b"POST",
        b"CONNECT",
        b"PRI",
        b"OPTIONS",
        b"get",
        b"G\x00T",
        b" ",
        b"\t",
        b"\r\n",
        b"\n",
        b"\r",
        b":",
        b"\x00",
        b"\xff",
        b"\r\n\r\n",
        b"HTTP/1.1",
        b"HTTP/1.0",
        b"HTTP/2.0",
        b"HTTP/9",
        b"/",
        ROOT,
        METRIC,
        b"/apis",
        b"http://localhost/apis",
        b"//",
        b"/%00",
        b"/%ff%fe",
        b"/../..",
        b"*",
        b"?",
        b"%",
        b"#",
        b"?labelSelector=",
        b"?labelSelector=group%3Dcoder",
        b"?labelSelector=%ff",
        b"?labelSelector=a&labelSelector=b",
        b"Host: localhost",
        b"Host: [::1",
        b"Host: a, b",
        b"Host:",
        b"Host: \xff",
        b"Accept: \xff",
        b"Accept: */*;q=x",
        b"X-Remote-User: jane",
        b"X-Remote-User:",
        b"X-Remote-User: \xff",
        b"X-Remote-Extra-%ff: a",
        b"X-Remote-Group: \x80",
        b"Content-Length: 5",
        b"Content-Length: -1",
        b"Content-Length: 99999999999999999999",
        b"Content-Length: 5, 6",
        b"Transfer-Encoding: chunked",
        b"Transfer-Encoding: gzip, chunked",
        b"Expect: 100-continue",
        b"Upgrade: websocket",
        b"Connection: upgrade",
        b"Connection: keep-alive",
        b"Connection: close",
        b"5\r\nhello\r\n",
        b"0\r\n\r\n",
        b"ffffffffffffffff\r\n",
        b"x" * 5_000,
        b"X: " + b"y" * 70_000,
        b"hello",
        HEALTHY,
        HEALTHY * 3,
    ]
)
soup = st.lists(tokens | st.binary(max_size=8), max_size=12).map(b"".join)
heads = st.builds(
    lambda method, path, version, headers, body: (
        method
        + b" "
        + path
        + b" "
        + version
        + b"\r\n"
        + b"".join(each + b"\r\n" for each in headers)
        + b"\r\n"
        + body
    ),
    st.sampled_from([b"GET", b"GET", b"HEAD", b"POST", b"DELETE", b"CONNECT", b"TRACE", b"A"]),
    st.lists(tokens | st.sampled_from([ROOT, METRIC, b"/apis"]), min_size=1, max_size=3).map(b"".join),
    st.sampled_from([b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0"]),
    st.lists(tokens, max_size=6).map(lambda found: [b"Host: localhost", b"X-Remote-User: jane", *found]),
    soup,
)
attacks = st.lists(soup | heads, min_size=1, max_size=4).map(tuple)
peers = st.sampled_from([("proxy",), ("other",), None])


@trying(60)
@given(attacks, peers)
async def test_no_bytes_make_it_fail(
    site: Site, attack: tuple[bytes, ...], peer: tuple[str, ...] | None
) -> None:
    codes = await site.survives(peer, *attack)
    assert all(code < 500 for code in codes)
    # nobody but the front proxy learns anything
    assert peer == ("proxy",) or set(codes) <= {100, 400, 401}


SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize(
    "headers",
    [
        b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
        b"Content-Length: 4\r\nContent-Length: 5\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: identity\r\n",
        b"Content-Length: +4\r\n",
        b"Content-Length: 4 4\r\n",
    ],
)
async def test_a_body_of_two_lengths_hides_no_request(site: Site, headers: bytes) -> None:
    attack = (
        b"POST "
        + METRIC
        + b" HTTP/1.1\r\nHost: localhost\r\nX-Remote-User: jane\r\n"
        + headers
        + b"\r\n0\r\n\r\n"
    )
    codes = await site.survives(("proxy",), attack + SMUGGLED)
    assert len(codes) == 1
    assert codes[0] in {400, 405, 501}


async def test_requests_in_one_piece_are_answered_in_turn_and_none_after_a_close(site: Site) -> None:
    one = HEALTHY.replace(b"Connection: close\r\n", b"")
    assert await site.survives(("proxy",), one * 50 + HEALTHY + one * 50, ends=True) == [200] * 51
    assert await site.survives(None, one * 50, ends=True) == [401]


@pytest.mark.parametrize("rubbish", [b"GET", b"\x00", b"X: " + b"y" * 100_000])
@pytest.mark.parametrize("peer", [("proxy",), None])
async def test_rubbish_behind_a_request_is_no_second_answer(
    site: Site, rubbish: bytes, peer: tuple[str, ...] | None
) -> None:
    assert await site.survives(peer, HEALTHY + rubbish, ends=True) == [200 if peer else 401]


async def test_a_user_may_have_many_groups(site: Site) -> None:
    groups = b"".join(b"X-Remote-Group: group-%d\r\n" % number for number in range(1_500))
    assert await site.survives(("proxy",), HEALTHY[:-2] + groups + b"\r\n", ends=True) == [200]
