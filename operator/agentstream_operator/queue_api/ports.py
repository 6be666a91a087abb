"""What the HTTP API needs of where it runs: who calls, what they may do, where replays are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from starlette.requests import HTTPConnection

Verb = Literal["get", "list", "create", "patch", "delete"]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sends a request, as Kubernetes describes a user; `extra` is what else is known of it."""

    name: str
    groups: tuple[str, ...] = ()
    uid: str = ""
    extra: tuple[tuple[str, tuple[str, ...]], ...] = ()


class Unauthenticated(Exception):  # noqa: N818 - named after what is wrong
    """A request whose sender is not known; the message says why."""


class Forbidden(Exception):  # noqa: N818
    """A request from somewhere that may not send any: another site, or an unknown proxy."""


class Unavailable(Exception):  # noqa: N818
    """What a request needs does not answer; the message says what."""


class Authenticator(Protocol):
    """Knows who sends a request."""

    async def authenticate(self, request: HTTPConnection) -> Caller:
        """Returns who sends a request.

        Raises:
            Unauthenticated: nothing says so, or what says so does not hold.
            Forbidden: the request comes from where none may come from.
            Unavailable: it cannot be found out.
        """


class AccessCheck(Protocol):
    """Knows what callers may do."""

    async def allow(self, caller: Caller, verb: Verb, resource: str, namespace: str, name: str) -> bool:
        """Tells whether a caller may do this.

        `resource` is a plural, with a subresource if there is one: `consumergroups/lag`. An empty namespace
        means all of them, an empty name any.

        Raises:
            Unavailable: it cannot be found out.
        """
