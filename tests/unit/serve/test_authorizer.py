"""Who asks, and whether they may: one question to the API server for the same, for some seconds."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from agentstream_operator.cluster.api import ApiError
from agentstream_operator.cluster.port import ClusterUnavailable
from agentstream_operator.serve import flights, request_header
from agentstream_operator.serve.authorizer import Access, Authorizer, PathAccess, ResourceAccess, ReviewFailed
from agentstream_operator.serve.request_header import (
    InvalidConfigMapError,
    NotFromProxy,
    RequestHeaderConfig,
    UserInfo,
)
from support.clock import run_virtually

JANE = UserInfo("jane", ("devs",), "7", (("scope", ("a",)),))
WISH = ResourceAccess("list", "external.metrics.k8s.io", "v1beta1", "agentstream-backlog", "team")


class Reviews:
    """The API server; answers after a tenth of a second."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.answer: bool | Exception | dict[str, Any] = True

    async def create(self, kind: Any, namespace: str | None, body: dict[str, Any]) -> dict[str, Any]:
        assert (kind.plural, namespace) == ("subjectaccessreviews", None)
        self.asked.append(body["spec"])
        await asyncio.sleep(0.1)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer if isinstance(self.answer, dict) else {"status": {"allowed": self.answer}}


def asking(test: Any) -> None:
    """Runs a test in virtual time."""

    async def run() -> None:
        api: Any = Reviews()
        authorizer = Authorizer(api, asyncio.get_running_loop().time)
        try:
            await test(authorizer, api)
        finally:
            await authorizer.close()

    run_virtually(run())


async def refused(authorizer: Authorizer, caller: UserInfo = JANE, wish: Access = WISH) -> int:
    """The code with which a caller is refused; 0 if it is not."""
    try:
        return 0 if await authorizer.allows(caller, wish) else 403
    except ReviewFailed:
        return 503


def test_what_is_asked() -> None:
    async def test(authorizer: Authorizer, api: Reviews) -> None:
        await authorizer.allows(JANE, WISH)
        await authorizer.allows(UserInfo("joe"), PathAccess("/apis"))
        assert api.asked == [
            {
                "user": "jane",
                "groups": ["devs"],
                "uid": "7",
                "extra": {"scope": ["a"]},
                "resourceAttributes": {
                    "group": "external.metrics.k8s.io",
                    "version": "v1beta1",
                    "namespace": "team",
                    "resource": "agentstream-backlog",
                    "verb": "list",
                },
            },
            {"user": "joe", "groups": [], "nonResourceAttributes": {"path": "/apis", "verb": "get"}},
        ]

    asking(test)


def test_the_clusters_masters_are_not_asked_about() -> None:
    async def test(authorizer: Authorizer, api: Reviews) -> None:
        api.answer = False
        assert await authorizer.allows(UserInfo("root", ("system:masters",)), WISH)
        assert api.asked == []

    asking(test)


@pytest.mark.parametrize(("allowed", "code", "seconds"), [(True, 0, 10.0), (False, 403, 5.0)])
def test_an_answer_counts_for_some_seconds(allowed, code, seconds):
    async def test(authorizer: Authorizer, api: Reviews) -> None:
        api.answer = allowed
        assert await refused(authorizer) == code
        await asyncio.sleep(seconds - 0.01)
        api.answer = not allowed
        assert await refused(authorizer) == code
        assert len(api.asked) == 1
        await asyncio.sleep(0.02)
        assert await refused(authorizer) == (403 if allowed else 0)
        assert len(api.asked) == 2
        assert authorizer.reviews == {"allowed": 1, "denied": 1}

    asking(test)


def test_all_who_ask_meanwhile_wait_for_the_same_answer() -> None:
    async def test(authorizer: Authorizer, api: Reviews) -> None:
        assert await asyncio.gather(*(refused(authorizer) for _ in range(50))) == [0] * 50
        assert len(api.asked) == 1

    asking(test)


def test_who_gives_up_waiting_takes_the_answer_from_nobody() -> None:
    async def test(authorizer: Authorizer, api: Reviews) -> None:
        first = asyncio.create_task(refused(authorizer))
        second = asyncio.create_task(refused(authorizer))
        await asyncio.sleep(0.05)
        first.cancel()
        assert await second == 0
        assert len(api.asked) == 1

    asking(test)


def test_who_differs_in_anything_is_asked_about_anew() -> None:
    async def test(authorizer: Authorizer, api: Reviews) -> None:
        callers = (JANE, UserInfo("jane", ("devs",)), UserInfo("jane", ("ops",), "7"), UserInfo("joe"))
        wishes = (WISH, WISH._replace(namespace="other"), PathAccess("/apis"))
        await asyncio.gather(*(authorizer.allows(c, w) for c in callers for w in wishes))
        assert len(api.asked) == 12

    asking(test)


@pytest.mark.parametrize(
    "answer",
    [ApiError(403, "no"), ClusterUnavailable("away"), {}, {"status": None}],
    ids=["refused", "away", "empty", "nonsense"],
)
def test_without_an_answer_nobody_is_let_in_and_the_next_one_asks_again(answer: Any) -> None:
    async def test(authorizer: Authorizer, api: Reviews) -> None:
        api.answer = answer
        assert await asyncio.gather(*(refused(authorizer) for _ in range(3))) == [503] * 3
        api.answer = True
        assert await refused(authorizer) == 0
        assert authorizer.reviews == {"error": 1, "allowed": 1}

    asking(test)


def test_only_so_many_answers_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flights, "CACHE_SIZE", 10)

    async def test(authorizer: Authorizer, api: Reviews) -> None:
        for number in range(30):
            await authorizer.allows(UserInfo(f"u{number}"), WISH)
        assert len(authorizer._decisions) == 10
        await authorizer.allows(UserInfo("u29"), WISH)
        assert len(api.asked) == 30

    asking(test)


def test_at_the_end_nobody_waits_for_ever() -> None:
    async def test(authorizer: Authorizer, api: Reviews) -> None:
        waiting = asyncio.create_task(refused(authorizer))
        await asyncio.sleep(0.05)
        await authorizer.close()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asking(test)


PROXY = ("front-proxy-client",)
DATA = {
    "requestheader-client-ca-file": "PEM",
    "requestheader-allowed-names": '["front-proxy-client"]',
    "requestheader-username-headers": '["X-Remote-User","X-Other-User"]',
    "requestheader-group-headers": '["X-Remote-Group"]',
    "requestheader-extra-headers-prefix": '["X-Remote-Extra-"]',
    "requestheader-uid-headers": '["X-Remote-Uid"]',
    "client-ca-file": "other",
}
TRUST = request_header.read({"data": DATA})


def sent(**headers: str) -> list[tuple[bytes, bytes]]:
    return [(name.replace("_", "-").lower().encode(), value.encode()) for name, value in headers.items()]


def test_the_configmap_says_whom_to_believe() -> None:
    expected = RequestHeaderConfig(
        "PEM",
        frozenset(PROXY),
        ("x-remote-user", "x-other-user"),
        ("x-remote-group",),
        ("x-remote-uid",),
        ("x-remote-extra-",),
    )
    assert expected == TRUST


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (None, "aggregation layer is not configured"),
        ({}, "aggregation layer is not configured"),
        ({"data": {"client-ca-file": "x"}}, "no requestheader-client-ca-file"),
        ({"data": {**DATA, "requestheader-allowed-names": "["}}, "Expecting value"),
        ({"data": {**DATA, "requestheader-allowed-names": '{"a": 1}'}}, "is not a list of strings"),
        ({"data": {**DATA, "requestheader-group-headers": "[1]"}}, "is not a list of strings"),
    ],
)
def test_what_says_nothing_is_not_believed(found: dict[str, object] | None, message: str) -> None:
    with pytest.raises(InvalidConfigMapError, match=message):
        request_header.read(found)


def test_a_front_proxy_says_who_asks() -> None:
    headers = [
        *sent(X_Remote_User="jane", X_Remote_Uid="7", X_Remote_Group="devs"),
        *sent(X_Remote_Group="ops", **{"X_Remote_Extra_Example.com%2fScope": "a"}),
        *sent(**{"X_Remote_Extra_Example.com%2fScope": "b"}, Accept="*/*"),
    ]
    assert TRUST.authenticate(PROXY, headers) == UserInfo(
        "jane", ("devs", "ops", "system:authenticated"), "7", (("example.com/scope", ("a", "b")),)
    )


def test_the_first_header_with_a_name_counts() -> None:
    assert TRUST.authenticate(PROXY, sent(X_Other_User="joe")).name == "joe"
    assert TRUST.authenticate(PROXY, sent(X_Remote_User="", X_Other_User="joe")).name == "joe"
    assert TRUST.authenticate(PROXY, sent(X_Other_User="joe", X_Remote_User="jane")).name == "jane"


def test_names_are_utf8() -> None:
    assert TRUST.authenticate(PROXY, sent(X_Remote_User="jürgen")).name == "jürgen"


@pytest.mark.parametrize(
    ("user", "groups", "known"),
    [
        ("jane", (), ("system:authenticated",)),
        ("jane", ("system:authenticated",), ("system:authenticated",)),
        ("system:anonymous", ("system:unauthenticated",), ("system:unauthenticated",)),
        ("system:anonymous", (), ()),
    ],
)
def test_who_is_known_is_authenticated(user: str, groups: tuple[str, ...], known: tuple[str, ...]) -> None:
    headers = [(b"x-remote-user", user.encode()), *((b"x-remote-group", g.encode()) for g in groups)]
    assert TRUST.authenticate(PROXY, headers).groups == known


@pytest.mark.parametrize(
    ("peer", "headers"),
    [
        (None, sent(X_Remote_User="admin")),
        ((), sent(X_Remote_User="admin")),
        (("somebody",), sent(X_Remote_User="admin")),
        (PROXY, []),
        (PROXY, sent(X_Remote_User="")),
        (PROXY, sent(X_Remote_Group="system:masters")),
    ],
    ids=["no certificate", "no name", "another name", "no user", "empty user", "only groups"],
)
def test_nobody_else_does(peer: tuple[str, ...] | None, headers: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(NotFromProxy):
        TRUST.authenticate(peer, headers)


def test_without_names_whoever_has_a_certificate_is_believed() -> None:
    anyone = request_header.read({"data": {**DATA, "requestheader-allowed-names": "[]"}})
    assert anyone.authenticate((), sent(X_Remote_User="jane")).name == "jane"
    with pytest.raises(NotFromProxy):
        anyone.authenticate(None, sent(X_Remote_User="jane"))
