"""Whom to believe about who asks: the API server, which proves itself by a certificate. No input or output.

https://kubernetes.io/docs/tasks/extend-kubernetes/configure-aggregation-layer/#authentication-flow
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote

from agentstream_operator.metrics_api.documents import Refused

NAMESPACE, NAME = "kube-system", "extension-apiserver-authentication"
"""Where the ConfigMap is that says whom to believe."""

_PREFIX = "requestheader-"
_ANONYMOUS = "system:anonymous"
_AUTHENTICATED = "system:authenticated"
_KNOWN = frozenset({_AUTHENTICATED, "system:unauthenticated"})


class NoTrust(ValueError):  # noqa: N818 - it says what is wrong
    """The ConfigMap does not say whom to believe."""


@dataclass(frozen=True, slots=True)
class UserInfo:
    """Who asks.

    Attributes:
        user: the name.
        groups: what the user belongs to.
        uid: tells one user from a later one of the same name.
        extra: more that is known of the user.
    """

    user: str
    groups: tuple[str, ...] = ()
    uid: str = ""
    extra: tuple[tuple[str, tuple[str, ...]], ...] = ()


@dataclass(frozen=True, slots=True)
class RequestHeaderConfig:
    """What the cluster says of its front proxies.

    Attributes:
        authority: who signs their certificates, as PEM.
        names: the common names that these may have; any if empty.
        user_headers: where they say who the user is; the first that is there counts.
        group_headers: where they say what the user belongs to.
        uid_headers: where they say the user's uid.
        extra_prefixes: what the names of headers with more begin with.
    """

    authority: str
    names: frozenset[str] = frozenset()
    user_headers: tuple[str, ...] = ("x-remote-user",)
    group_headers: tuple[str, ...] = ("x-remote-group",)
    uid_headers: tuple[str, ...] = ()
    extra_prefixes: tuple[str, ...] = ("x-remote-extra-",)

    def caller(self, peer: Collection[str] | None, headers: Iterable[tuple[bytes, bytes]]) -> UserInfo:
        """Who asks, as a front proxy says.

        Args:
            peer: the common names in the certificate of who is connected; None without one.
            headers: of the request, their names in small letters.

        Raises:
            Refused: no front proxy says it.
        """
        if peer is None:
            raise Refused(HTTPStatus.UNAUTHORIZED, "a front proxy's client certificate is needed")
        if self.names and not self.names.intersection(peer):
            raise Refused(HTTPStatus.UNAUTHORIZED, "the client certificate is not a front proxy's")
        sent: defaultdict[str, list[str]] = defaultdict(list)
        for name, value in headers:
            sent[name.decode("latin-1")].append(value.decode(errors="replace"))
        user = _first(sent, self.user_headers)
        if not user:
            raise Refused(HTTPStatus.UNAUTHORIZED, "the front proxy does not say who asks")
        groups = tuple(group for header in self.group_headers for group in sent.get(header, ()))
        if user != _ANONYMOUS and not _KNOWN.intersection(groups):
            # as every API server adds it; the aggregator itself counts on that
            groups += (_AUTHENTICATED,)
        extra = {
            unquote(name.removeprefix(prefix)).lower(): tuple(found)
            for prefix in self.extra_prefixes
            for name, found in sent.items()
            if name.startswith(prefix)
        }
        return UserInfo(user, groups, _first(sent, self.uid_headers), tuple(sorted(extra.items())))


def read(found: Mapping[str, Any] | None) -> RequestHeaderConfig:
    """What the ConfigMap says.

    Raises:
        NoTrust: it is not there, or says nothing of front proxies, or nothing that can be read.
    """
    data = (found or {}).get("data") or {}
    authority = data.get(f"{_PREFIX}client-ca-file")
    if not authority:
        raise NoTrust(
            f"the ConfigMap {NAMESPACE}/{NAME} names no {_PREFIX}client-ca-file: the API server's aggregation"
            " layer is not configured"
        )
    try:
        return RequestHeaderConfig(
            authority,
            frozenset(_list(data, "allowed-names")),
            _headers(data, "username-headers"),
            _headers(data, "group-headers"),
            _headers(data, "uid-headers"),
            _headers(data, "extra-headers-prefix"),
        )
    except ValueError as error:
        raise NoTrust(f"the ConfigMap {NAMESPACE}/{NAME} cannot be read: {error}") from error


def _list(data: Mapping[str, str], name: str) -> list[str]:
    found = json.loads(data.get(f"{_PREFIX}{name}") or "[]")
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise ValueError(f"{_PREFIX}{name} is no list of names")
    return found


def _headers(data: Mapping[str, str], name: str) -> tuple[str, ...]:
    return tuple(header.lower() for header in _list(data, name))


def _first(sent: Mapping[str, Sequence[str]], headers: Iterable[str]) -> str:
    return next((value for header in headers for value in sent.get(header, ()) if value), "")
