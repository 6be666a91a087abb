"""The small HTTP server: answers, refuses, and lets go of its port."""

from __future__ import annotations

import socket

import aiohttp
import pytest

from agentstream_operator.serve.http import serving
from support.servers import free_port

has_both = socket.has_dualstack_ipv6
PLAIN = "text/plain; charset=utf-8"


async def get(port: int, path: str, method: str = "GET") -> tuple[int, str, str]:
    """Status, content type and body of an answer."""
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, f"http://127.0.0.1:{port}{path}") as answer,
    ):
        return answer.status, answer.headers["Content-Type"], await answer.text()


async def test_every_path_has_its_answer() -> None:
    answers = {"/livez": lambda: (200, PLAIN, b"ok\n"), "/readyz": lambda: (503, PLAIN, b"starting\n")}
    async with serving(free_port(), answers) as port:
        assert await get(port, "/livez") == (200, PLAIN, "ok\n")
        assert await get(port, "/readyz") == (503, PLAIN, "starting\n")
        assert (await get(port, "/"))[0] == 404
        assert (await get(port, "/livez", "POST"))[0] == 405


async def test_answers_are_of_the_moment() -> None:
    count = 0

    def answer() -> tuple[int, str, bytes]:
        nonlocal count
        count += 1
        return 200, PLAIN, str(count).encode()

    async with serving(free_port(), {"/": answer}) as port:
        assert [(await get(port, "/"))[2] for _ in range(2)] == ["1", "2"]


@pytest.mark.parametrize("both", [True, False])
async def test_without_a_port_any_free_one_will_do(monkeypatch: pytest.MonkeyPatch, *, both: bool) -> None:
    # not every machine has IPv6
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: both and has_both())
    async with serving(0, {"/": lambda: (200, PLAIN, b"ok")}) as port:
        assert (await get(port, "/"))[0] == 200


async def test_a_port_that_is_taken_is_told_of() -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        with pytest.raises(OSError, match="Address already in use"):
            async with serving(taken.getsockname()[1], {}):
                pass


async def test_a_port_is_free_again_afterwards() -> None:
    port = free_port()
    for _ in range(2):
        async with serving(port, {"/": lambda: (200, PLAIN, b"ok")}):
            assert (await get(port, "/"))[0] == 200
