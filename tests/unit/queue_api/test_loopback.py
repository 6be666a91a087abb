"""Who is known on this machine: whoever has the token, from no other site, through no other name."""

from __future__ import annotations

import pytest
from starlette.requests import Request

from agentstream_operator.queue_api.loopback import LoopbackAuthenticator
from agentstream_operator.queue_api.ports import Forbidden, Unauthenticated

GOOD = {"host": "127.0.0.1:8090", "authorization": "Bearer s3cret"}
KNOWN = LoopbackAuthenticator("s3cret", "me", 8090)


def request(*headers: tuple[str, str]) -> Request:
    encoded = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    return Request({"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": encoded})


def changed(**headers: str | None) -> Request:
    merged = {**GOOD, **headers}
    return request(*((name, value) for name, value in merged.items() if value is not None))


@pytest.mark.parametrize("host", ["127.0.0.1:8090", "localhost:8090", "LOCALHOST:8090", "[::1]:8090"])
@pytest.mark.parametrize("origin", [None, "http://localhost:8090", "http://127.0.0.1:8090"])
async def test_the_user_is_known_by_the_token(host: str, origin: str | None) -> None:
    assert (await KNOWN.authenticate(changed(host=host, origin=origin))).name == "me"


@pytest.mark.parametrize(
    "host",
    [
        *("", None, "evil.example:8090", "127.0.0.1", "127.0.0.1:80", "127.0.0.1.evil.example:8090"),
        *("localhost:8090@evil.example", "evil.example@127.0.0.1:8090", "127.0.0.1:8090/x", "127.0.0.1:x"),
        *("[::1", "0.0.0.0:8090", "127.0.0.1:8090?a"),
    ],
)
async def test_another_name_is_refused_even_with_the_token(host: str | None) -> None:
    with pytest.raises(Forbidden, match="Host"):
        await KNOWN.authenticate(changed(host=host))


async def test_two_hosts_are_refused() -> None:
    with pytest.raises(Forbidden):
        await KNOWN.authenticate(request(*GOOD.items(), ("host", "127.0.0.1:8090")))


@pytest.mark.parametrize(
    "origin",
    ["null", "http://evil.example", "https://localhost:8090", "http://localhost:3000", "http://localhost"],
)
async def test_pages_of_other_sites_are_refused_even_with_the_token(origin: str) -> None:
    with pytest.raises(Forbidden, match="another site"):
        await KNOWN.authenticate(changed(origin=origin))


@pytest.mark.parametrize(
    "given", [None, "", "Bearer", "Bearer ", "Bearer x", "Basic s3cret", "Bearer s3cret2", "Bearer é"]
)
async def test_without_the_token_nobody_is_known(given: str | None) -> None:
    with pytest.raises(Unauthenticated, match="console"):
        await KNOWN.authenticate(changed(authorization=given))


def test_the_token_is_not_shown() -> None:
    assert "s3cret" not in repr(KNOWN)
