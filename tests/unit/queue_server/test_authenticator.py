"""Who sends a request to the queue server: by a token, or as a trusted proxy says; and under which names."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.requests import Request

from agentstream_operator.cluster.api import ApiError
from agentstream_operator.cluster.port import ClusterUnavailable
from agentstream_operator.queue_api.events import LIFETIME
from agentstream_operator.queue_api.ports import Caller, Forbidden, Unauthenticated, Unavailable
from agentstream_operator.queue_server.authenticator import ClusterAuthenticator
from agentstream_operator.queue_server.tokens import (
    AT_A_TIME,
    KNOWN_FOR,
    LONGEST,
    STRANGERS,
    STRANGERS_AT_ONCE,
    UNKNOWN_FOR,
    TokenReviews,
)
from agentstream_operator.serve.request_header import RequestHeaderConfig

HOST = ("host", "queue.example.com:443")
GATEWAY = RequestHeaderConfig("ca", frozenset({"gateway"}))


class ApiServer:
    """Knows the token `good`; `answering` may be cleared."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.failure: Exception | None = None
        self.answering = asyncio.Event()
        self.answering.set()

    async def create(self, kind: Any, namespace: None, body: Any) -> Any:
        assert (kind.plural, namespace) == ("tokenreviews", None)
        token = body["spec"]["token"]
        self.asked.append(token)
        await self.answering.wait()
        if self.failure is not None:
            raise self.failure
        user = {"username": "jane", "uid": "7", "groups": ["team"], "extra": {"scopes": ["a", "b"]}}
        return {"status": {"authenticated": True, "user": user} if token == "good" else {}}


class Place:
    """An authenticator, its API server, and a clock."""

    def __init__(self, proxies: RequestHeaderConfig | None = None) -> None:
        self.api, self.now = ApiServer(), 0.0
        self.tokens = TokenReviews(self.api, lambda: self.now)  # type: ignore[arg-type]
        self.known = ClusterAuthenticator(self.tokens, {"queue.example.com"}, lambda: proxies)

    async def ask(self, *headers: tuple[str, str], peer: tuple[str, ...] | None = None) -> Caller:
        encoded = [(name.encode(), value.encode()) for name, value in headers]
        scope = {"type": "http", "headers": encoded, "state": {"peer": peer}}
        return await self.known.authenticate(Request(scope))

    async def with_token(self, token: str) -> Caller:
        return await self.ask(HOST, ("authorization", f"Bearer {token}"))


@pytest.fixture
async def place() -> Place:
    return Place()


async def test_a_token_tells_who_it_is(place: Place) -> None:
    caller = await place.with_token("good")
    assert caller == Caller("jane", ("team",), "7", (("scopes", ("a", "b")),))


@pytest.mark.parametrize("value", [None, "", "Bearer", "Bearer  ", "Basic good", "good"])
async def test_without_a_token_nobody_is_asked_about(place: Place, value: str | None) -> None:
    headers = [] if value is None else [("authorization", value)]
    with pytest.raises(Unauthenticated):
        await place.ask(HOST, *headers)
    assert place.api.asked == []


async def test_a_token_that_is_too_long_is_not_asked_about(place: Place) -> None:
    with pytest.raises(Unauthenticated):
        await place.with_token("x" * (LONGEST + 1))
    assert place.api.asked == []


async def test_answers_count_for_some_seconds(place: Place) -> None:
    for token, seconds in (("good", KNOWN_FOR), ("bad", UNKNOWN_FOR)):
        place.api.asked.clear()
        for later in (0.0, seconds - 1, 1.0):
            place.now += later
            try:
                await place.with_token(token)
            except Unauthenticated:
                assert token == "bad"
        assert len(place.api.asked) == 2


async def test_a_flood_of_wrong_tokens_is_bounded_and_keeps_no_known_one_out(place: Place) -> None:
    await place.with_token("good")
    place.api.answering.clear()
    flood = [asyncio.create_task(place.with_token(f"bad-{n}")) for n in range(10 * AT_A_TIME)]
    try:
        # each has asked, or was sent away
        while not all(task.done() or f"bad-{n}" in place.api.asked for n, task in enumerate(flood)):  # noqa: ASYNC110 - turns, no time
            await asyncio.sleep(0)
        assert len(place.api.asked) == 1 + AT_A_TIME
        assert (await place.with_token("good")).name == "jane"
    finally:
        place.api.answering.set()
        found = await asyncio.gather(*flood, return_exceptions=True)
    assert sum(isinstance(each, Unavailable) for each in found) == 9 * AT_A_TIME


def test_a_live_view_outlives_a_token_that_was_revoked_by_seconds() -> None:
    assert LIFETIME + KNOWN_FOR <= 40


async def test_a_flood_costs_the_api_server_so_many_reviews_a_second_and_no_more(place: Place) -> None:
    await place.with_token("good")
    refused = 0
    for n in range(2_000):
        place.now += 0.01
        try:
            await place.with_token(f"bad-{n}")
        except Unauthenticated:
            pass
        except Unavailable:
            refused += 1
            # who was known is asked about again at any time, also when that does not count any more
            assert (await place.with_token("good")).name == "jane"
    asked = [token for token in place.api.asked if token != "good"]
    assert STRANGERS * 19 <= len(asked) <= STRANGERS_AT_ONCE + STRANGERS * 20
    assert len(asked) + refused == 2_000
    assert place.api.asked.count("good") == 2


@pytest.mark.parametrize("failure", [ApiError(403, "no s3cret"), ClusterUnavailable("no s3cret")])
async def test_an_api_server_that_does_not_say_is_no_answer_and_tells_no_token(
    place: Place, failure: Exception
) -> None:
    place.api.failure = failure
    with pytest.raises(Unavailable) as caught:
        await place.with_token("s3cret")
    assert "s3cret" not in str(caught.value)
    # and it is not remembered
    place.api.failure = None
    assert (await place.with_token("good")).name == "jane"


USER = (("x-remote-user", "john"), ("x-remote-group", "ops"))


async def test_a_trusted_proxy_says_who_asks() -> None:
    caller = await Place(GATEWAY).ask(HOST, *USER, peer=("gateway",))
    assert (caller.name, caller.groups) == ("john", ("ops", "system:authenticated"))


@pytest.mark.parametrize(
    ("proxies", "peer"), [(GATEWAY, None), (GATEWAY, ("other",)), (None, ("gateway",)), (None, None)]
)
async def test_nobody_else_does(proxies: RequestHeaderConfig | None, peer: tuple[str, ...] | None) -> None:
    with pytest.raises(Unauthenticated):
        await Place(proxies).ask(HOST, *USER, peer=peer)


async def test_a_proxy_that_names_nobody_does_not_speak_for_the_owner_of_a_token() -> None:
    place = Place(GATEWAY)
    with pytest.raises(Unauthenticated):
        await place.ask(HOST, ("authorization", "Bearer good"), peer=("gateway",))


@pytest.mark.parametrize(
    "headers",
    [
        (),
        (("host", "evil.example"),),
        (HOST, HOST),
        (("host", "queue.example.com@evil.example"),),
        (("host", "[::1"),),
        (HOST, ("origin", "http://evil.example")),
        (HOST, ("origin", "null")),
        (HOST, ("origin", "https://localhost:443")),
        (HOST, ("origin", "https://queue.example.com")),
        (HOST, ("origin", "http://queue.example.com:443")),
        (HOST, ("origin", f"https://{HOST[1]}"), ("origin", "https://evil.example")),
    ],
)
async def test_other_names_and_sites_are_refused(place: Place, headers: tuple[tuple[str, str], ...]) -> None:
    with pytest.raises(Forbidden):
        await place.ask(*headers, ("authorization", "Bearer good"))
    assert place.api.asked == []


@pytest.mark.parametrize("host", ["localhost:9000", "127.0.0.1:9000", "[::1]:9000", "queue.example.com"])
async def test_its_own_names_and_forwarded_ports_are_fine(place: Place, host: str) -> None:
    headers = (("host", host), ("origin", f"https://{host}"), ("authorization", "bearer good"))
    assert (await place.ask(*headers)).name == "jane"
