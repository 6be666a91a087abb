"""What the HTTP API needs of where it runs: who calls, what they may do, where replays are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from starlette.requests import HTTPConnection

from agentstream_operator.resources.meta import ResourceKey
from agentstream_operator.resources.streamreplay import StreamReplay

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


class ReplayRefused(Exception):  # noqa: N818
    """A change of a replay that is not accepted; the message says why.

    `status` is the HTTP status: 403 without the right to it, 409 for a conflict, 422 for what is invalid.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


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


class Replays(Protocol):
    """Keeps StreamReplays; they are carried out elsewhere.

    A caller is who asks, and `why` what for, for the record: what they may do has been checked. All methods
    raise `Unavailable` while the place does not answer, those that change something also `ReplayRefused`.
    """

    async def create(self, caller: Caller, replay: StreamReplay) -> StreamReplay | None:
        """Creates a replay. Returns it with its uid; None if there is one of that name."""

    async def get(self, key: ResourceKey) -> StreamReplay | None:
        """Returns a replay, if there is one."""

    async def list(self, namespace: str) -> Sequence[StreamReplay]:
        """Returns the replays of a namespace; of all of them if it is empty."""

    async def patch(
        self, caller: Caller, key: ResourceKey, spec: Mapping[str, Any], why: str | None = None
    ) -> StreamReplay | None:
        """Changes fields of a replay's spec, named as in manifests. Returns it; None if there is none."""

    async def delete(self, caller: Caller, key: ResourceKey, why: str | None = None) -> bool:
        """Deletes a replay, which stops it. Returns whether there was one."""
