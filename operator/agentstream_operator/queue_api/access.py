"""What a route needs its caller to have the right to: declared with the route, and checked before it runs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any, Final, NamedTuple

from fastapi import Depends, Path, Query
from starlette.requests import Request

from agentstream_operator.queue_api.ports import AccessCheck, Caller, Verb
from agentstream_operator.queue_api.problems import Refusal
from agentstream_operator.resources.meta import GROUP

_AT_A_TIME = 8
NAME: Final = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"
ENTRY: Final = "^[0-9]{1,19}(-[0-9]{1,19})?$"
"""Describes ids of entries, also those without a second part. It is not checked: who reads entries does."""


def _name(what: str) -> Any:
    return Path(pattern=NAME, max_length=63, description=f"Name of the {what}.")


Namespace = Annotated[str, Path(pattern=NAME, max_length=63, description="The namespace.")]
StreamName = Annotated[str, _name("AgentStream")]
GroupName = Annotated[str, _name("ConsumerGroup")]
ReplayName = Annotated[str, _name("StreamReplay")]
Cursor = Annotated[
    str | None,
    Query(max_length=64, description="Goes on from an earlier answer.", json_schema_extra={"pattern": ENTRY}),
]


class Need(NamedTuple):
    """A right that Kubernetes knows: a verb, and a plural with a subresource that need not exist."""

    verb: Verb
    resource: str

    def __str__(self) -> str:
        return f"{self.verb} {self.resource}"


NUMBERS = Need("get", "consumergroups/lag")
MESSAGES = Need("get", "agentstreams/messages")
LETTERS = Need("get", "consumergroups/deadletters")
SEE_REPLAYS = Need("list", "streamreplays")
SEE_REPLAY = Need("get", "streamreplays")
CREATE_REPLAY = Need("create", "streamreplays")
CHANGE_REPLAY = Need("patch", "streamreplays")
DELETE_REPLAY = Need("delete", "streamreplays")


@dataclass(frozen=True, slots=True)
class Rights:
    """The rights of one caller."""

    caller: Caller
    check: AccessCheck

    async def require(self, need: Need, namespace: str, name: str = "") -> None:
        """Returns if the caller has a right.

        Raises:
            Refusal: 403 without it.
            Unavailable: that cannot be found out.
        """
        if not await self._have(need, namespace, name):
            raise self._refusal(need, f"in the namespace {namespace}")

    async def among(self, need: Need, namespaces: Collection[str]) -> frozenset[str]:
        """Returns those namespaces for all of whose resources the caller has a right.

        Raises:
            Refusal: 403: it is none of them.
            Unavailable: that cannot be found out.
        """
        if await self._have(need, "", ""):
            return frozenset(namespaces)
        seen = await self._those(namespaces, lambda namespace: self._have(need, namespace, ""))
        if not seen:
            raise self._refusal(need, "in any namespace")
        return seen

    async def among_names(self, need: Need, namespace: str, names: Collection[str]) -> frozenset[str]:
        """Returns those resources of a namespace, by name, for which the caller has a right.

        Raises:
            Refusal: 403: it is none of them.
            Unavailable: that cannot be found out.
        """
        if await self._have(need, namespace, ""):
            return frozenset(names)
        seen = await self._those(names, lambda name: self._have(need, namespace, name))
        if not seen:
            raise self._refusal(need, f"in the namespace {namespace}")
        return seen

    async def _those(self, names: Collection[str], have: Callable[[str], Awaitable[bool]]) -> frozenset[str]:
        turn = asyncio.Semaphore(_AT_A_TIME)

        async def allowed(name: str) -> bool:
            async with turn:
                return await have(name)

        found = await asyncio.gather(*map(allowed, names))
        return frozenset(name for name, is_allowed in zip(names, found, strict=True) if is_allowed)

    async def _have(self, need: Need, namespace: str, name: str) -> bool:
        return await self.check.allow(self.caller, need.verb, need.resource, namespace, name)

    def _refusal(self, need: Need, where: str) -> Refusal:
        detail = f'"{self.caller.name}" cannot {need.verb} resource "{need.resource}" in API group "{GROUP}"'
        remedy = "ask for a Role with this rule; docs/api.md lists what each call needs"
        return Refusal(HTTPStatus.FORBIDDEN, f"{detail} {where}", remedy)


def rights_of(request: Request) -> Rights:
    """Returns the rights of who sends a request."""
    return Rights(request.state.caller, request.app.state.access)


RightsOf = Annotated[Rights, Depends(rights_of)]


def of_stream(need: Need) -> Any:
    """Declares that a route needs a right to the stream of its path."""

    async def check(rights: RightsOf, namespace: Namespace, stream: StreamName) -> None:
        await rights.require(need, namespace, stream)

    return Depends(check)


def of_namespace(need: Need) -> Any:
    """Declares that a route needs a right to all resources of a kind in the namespace of its path."""

    async def check(rights: RightsOf, namespace: Namespace) -> None:
        await rights.require(need, namespace)

    return Depends(check)


def of_group(need: Need) -> Any:
    """Declares that a route needs a right to the group of its path."""

    async def check(rights: RightsOf, namespace: Namespace, group: GroupName) -> None:
        await rights.require(need, namespace, group)

    return Depends(check)


def of_replay(need: Need) -> Any:
    """Declares that a route needs a right to the replay of its path."""

    async def check(rights: RightsOf, namespace: Namespace, name: ReplayName) -> None:
        await rights.require(need, namespace, name)

    return Depends(check)


def declared(*needs: Need) -> dict[str, Any]:
    """Returns what the description of a call says of the rights that it needs."""
    return {"x-agentstream-access": [str(need) for need in needs]}
