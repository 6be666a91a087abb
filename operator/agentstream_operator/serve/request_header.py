"""Authenticates callers by the front proxy's request headers and client certificate. No input or output.

https://kubernetes.io/docs/tasks/extend-kubernetes/configure-aggregation-layer/#authentication-flow
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

NAMESPACE, NAME = "kube-system", "extension-apiserver-authentication"
"""The ConfigMap in which the API server publishes its request-header configuration."""

_PREFIX = "requestheader-"
_ANONYMOUS = "system:anonymous"
_AUTHENTICATED = "system:authenticated"
_KNOWN = frozenset({_AUTHENTICATED, "system:unauthenticated"})


class NotFromProxy(Exception):  # noqa: N818 - named after what is wrong
    """A request is not from a front proxy that may say for whom it is; the message says why."""


class InvalidConfigMapError(ValueError):
    """The ConfigMap has no usable request-header configuration."""


@dataclass(frozen=True, slots=True)
class UserInfo:
    """The authenticated user of a request; the uid differs for users of one name at different times."""

    name: str
    groups: tuple[str, ...] = ()
    uid: str = ""
    extra: tuple[tuple[str, tuple[str, ...]], ...] = ()


@dataclass(frozen=True, slots=True)
class RequestHeaderConfig:
    """The cluster's request-header configuration for front proxies.

    Attributes:
        client_ca: PEM of the CA of their client certificates.
        allowed_names: common names that these may have; any if empty.
        user_headers: headers with the user name; the first one present counts.
    """

    client_ca: str
    allowed_names: frozenset[str] = frozenset()
    user_headers: tuple[str, ...] = ("x-remote-user",)
    group_headers: tuple[str, ...] = ("x-remote-group",)
    uid_headers: tuple[str, ...] = ()
    extra_prefixes: tuple[str, ...] = ("x-remote-extra-",)

    def authenticate(self, peer: Collection[str] | None, headers: Iterable[tuple[bytes, bytes]]) -> UserInfo:
        """Returns the user for whom a front proxy sends a request.

        Takes the common names in its client certificate (None without one), and headers in lower case.

        Raises:
            NotFromProxy: the request is not from a front proxy, or names no user.
        """
        if peer is None:
            raise NotFromProxy("client certificate of a front proxy required")
        if self.allowed_names and not self.allowed_names.intersection(peer):
            raise NotFromProxy("common name of the client certificate is not in requestheader-allowed-names")
        sent: defaultdict[str, list[str]] = defaultdict(list)
        for name, value in headers:
            sent[name.decode("latin-1")].append(value.decode(errors="replace"))
        user = _first(sent, self.user_headers)
        if not user:
            raise NotFromProxy(f"no user name in headers {', '.join(self.user_headers)}")
        groups = tuple(group for header in self.group_headers for group in sent.get(header, ()))
        if user != _ANONYMOUS and not _KNOWN.intersection(groups):
            # as every API server adds it, and as the aggregator itself relies on
            groups += (_AUTHENTICATED,)
        extra = {
            unquote(name.removeprefix(prefix)).lower(): tuple(found)
            for prefix in self.extra_prefixes
            for name, found in sent.items()
            if name.startswith(prefix)
        }
        return UserInfo(user, groups, _first(sent, self.uid_headers), tuple(sorted(extra.items())))


def read(found: Mapping[str, Any] | None) -> RequestHeaderConfig:
    """Reads the request-header configuration from the ConfigMap.

    Raises:
        InvalidConfigMapError: the ConfigMap or its client CA is missing, or a list in it is malformed.
    """
    data = (found or {}).get("data") or {}
    client_ca = data.get(f"{_PREFIX}client-ca-file")
    if not client_ca:
        raise InvalidConfigMapError(
            f"no {_PREFIX}client-ca-file in it: the API server's aggregation layer is not configured"
        )
    try:
        return RequestHeaderConfig(
            client_ca,
            frozenset(_list(data, "allowed-names")),
            _headers(data, "username-headers"),
            _headers(data, "group-headers"),
            _headers(data, "uid-headers"),
            _headers(data, "extra-headers-prefix"),
        )
    except ValueError as error:
        raise InvalidConfigMapError(str(error)) from error


def _list(data: Mapping[str, str], name: str) -> list[str]:
    found = json.loads(data.get(f"{_PREFIX}{name}") or "[]")
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise ValueError(f"{_PREFIX}{name} is not a list of strings")
    return found


def _headers(data: Mapping[str, str], name: str) -> tuple[str, ...]:
    return tuple(header.lower() for header in _list(data, name))


def _first(sent: Mapping[str, Sequence[str]], headers: Iterable[str]) -> str:
    return next((value for header in headers for value in sent.get(header, ()) if value), "")
