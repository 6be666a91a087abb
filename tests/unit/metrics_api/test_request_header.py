"""Whom to believe about who asks."""

from __future__ import annotations

import pytest

from agentstream_operator.metrics_api import request_header
from agentstream_operator.metrics_api.documents import StatusError
from agentstream_operator.metrics_api.request_header import (
    InvalidConfigMapError,
    RequestHeaderConfig,
    UserInfo,
)

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
    with pytest.raises(StatusError) as error:
        TRUST.authenticate(peer, headers)
    assert error.value.code == 401


def test_without_names_whoever_has_a_certificate_is_believed() -> None:
    anyone = request_header.read({"data": {**DATA, "requestheader-allowed-names": "[]"}})
    assert anyone.authenticate((), sent(X_Remote_User="jane")).name == "jane"
    with pytest.raises(StatusError):
        anyone.authenticate(None, sent(X_Remote_User="jane"))
