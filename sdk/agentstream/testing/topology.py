"""Streams, groups and routes as the operator leaves them, made by a test, and what has become of messages."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

import msgspec

from agentstream.errors import InvalidMessage
from agentstream.protocol import commands
from agentstream.protocol.envelope import Message, decode
from agentstream.protocol.keys import StreamKeys, routes_key
from agentstream.protocol.routes import Consumes, Produces, Route, encode_route
from agentstream.testing.declared import NAMESPACE, DeclaredStream

INSTALLATION = "agentstream"
_LOOK_EVERY = 0.005


class DeadLetter(msgspec.Struct, frozen=True):
    """A message that a group gave up.

    Attributes:
        message: the message; None if the entry was none.
        reason: why: of `agentstream.Reason`, or what the handler said.
        error: what went wrong, in words.
        attempts: how often a handler started on it.
        entry: id of its entry on the stream.
    """

    message: Message | None
    reason: str
    error: str
    attempts: int
    entry: str


class _Left(msgspec.Struct):
    """What a group has still to settle, as the function library observes it."""

    undelivered: int = 0
    pending: int = 0
    retry_length: int = 0
    delayed: int = 0

    def __str__(self) -> str:
        """Says what is left; empty if nothing is."""
        counts = {
            "undelivered": self.undelivered,
            "pending": self.pending,
            "retrying": self.retry_length,
            "delayed": self.delayed,
        }
        return ", ".join(f"{count} {what}" for what, count in counts.items() if count)


class _Observed(msgspec.Struct):
    groups: dict[str, _Left]


class Topology:
    """What is declared on one server.

    Args:
        call: sends a command to the server and returns its reply.
    """

    def __init__(self, call: Callable[..., Awaitable[Any]]) -> None:
        self._call = call
        self._streams: dict[str, DeclaredStream] = {}
        self._groups: dict[tuple[str, str], Consumes] = {}

    async def declare_stream(self, stream: DeclaredStream) -> None:
        """Makes a stream, and routes for its producers. One of the same name is declared anew."""
        owner = {"name": stream.name, "namespace": NAMESPACE}
        await self._call(*commands.create_stream(stream.key, owner))
        await self._call(*commands.set_contracts(stream.key, stream.digest, stream.schemas))
        self._streams[stream.name] = stream
        await self._write_routes()

    async def declare_group(self, group: Consumes, agent: str, start: str) -> None:
        """Makes a group, and its agent's route. One of the same name is declared anew."""
        await self._call(*commands.create_group(group.key, group.group, start))
        self._groups[agent, group.group] = group
        await self._write_routes()

    def stream(self, name: str) -> DeclaredStream:
        """A declared stream.

        Raises:
            LookupError: there is none of this name.
        """
        if name not in self._streams:
            declared = ", ".join(sorted(self._streams)) or "none"
            raise LookupError(f"no stream {name} is declared here, but {declared}")
        return self._streams[name]

    async def messages(self, name: str, at_least: int, timeout: float) -> list[Message]:
        """Everything that is on a stream and is a message, oldest first, once it is so many.

        Raises:
            TimeoutError: it is fewer after `timeout` seconds.
        """
        key = self.stream(name).key
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while True:
            bodies = [fields_of(fields).get("m") for _, fields in await self._call("XRANGE", key, "-", "+")]
            messages = [message for body in bodies if (message := _message(body)) is not None]
            if len(messages) >= at_least:
                return messages
            if loop.time() >= deadline:
                raise TimeoutError(f"{name} has {len(messages)} messages after {timeout} s, not {at_least}")
            await asyncio.sleep(_LOOK_EVERY)

    async def dead_letters(self, name: str, group: str) -> list[DeadLetter]:
        """What a group gave up, oldest first."""
        key = StreamKeys(self.stream(name).key).dead_letters(group)
        return [_dead_letter(fields_of(fields)) for _, fields in await self._call("XRANGE", key, "-", "+")]

    async def settled(self, name: str, group: str | None, timeout: float) -> None:
        """Waits until a group, or each group of the stream, has nothing left to do.

        Raises:
            TimeoutError: there still is something after `timeout` seconds; says what.
            LookupError: there is no such group.
        """
        key = self.stream(name).key
        groups = [g.group for g in self._groups.values() if g.stream == name and group in (None, g.group)]
        if not groups:
            raise LookupError(f"no group {group or ''} of {name} is declared here".replace("  ", " "))
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while left := await self._left(key, groups):
            if loop.time() >= deadline:
                raise TimeoutError(f"{name} is not settled after {timeout} s: {left}")
            await asyncio.sleep(_LOOK_EVERY)

    async def _left(self, key: str, groups: Iterable[str]) -> str:
        reply = await self._call(*commands.observe(key, groups, trusts_lag=False))
        observed = msgspec.json.decode(reply, type=_Observed).groups
        return "; ".join(f"group {name} has {observed[name]}" for name in groups if str(observed[name]))

    async def _write_routes(self) -> None:
        routes = routes_of(self._streams.values(), self._groups)
        fields = [part for agent, route in routes.items() for part in (agent, encode_route(route))]
        if fields:
            await self._call("HSET", routes_key(INSTALLATION, NAMESPACE), *fields)


def routes_of(
    streams: Iterable[DeclaredStream], groups: Mapping[tuple[str, str], Consumes]
) -> dict[str, Route]:
    """Each agent's route: what it produces to and consumes.

    Args:
        streams: what is declared.
        groups: what is declared, by agent and name of the group.
    """
    produces: dict[str, list[Produces]] = {}
    consumes: dict[str, list[Consumes]] = {}
    by_name = {stream.name: stream for stream in streams}
    for stream in by_name.values():
        named = sorted(group.group for group in groups.values() if group.stream == stream.name)
        route = Produces(
            stream.name,
            stream.key,
            stream.broadcast,
            tuple(named) if stream.broadcast else (),
            stream.signatures,
            stream.digest,
        )
        for producer in stream.producers:
            produces.setdefault(producer, []).append(route)
    for (agent, _), group in groups.items():
        stream = by_name[group.stream]
        declared = {"signatures": stream.signatures, "contracts": stream.digest}
        consumes.setdefault(agent, []).append(msgspec.structs.replace(group, **declared))
    return {
        agent: Route(tuple(produces.get(agent, ())), tuple(consumes.get(agent, ())))
        for agent in produces.keys() | consumes.keys()
    }


def fields_of(flat: Iterable[bytes]) -> dict[str, bytes]:
    """A flat list of names and values as a dict."""
    parts = list(flat)
    return {name.decode(): value for name, value in zip(parts[::2], parts[1::2], strict=True)}


def _message(body: bytes | None) -> Message | None:
    try:
        return None if body is None else decode(body)
    except InvalidMessage:
        return None


def _dead_letter(fields: Mapping[str, bytes]) -> DeadLetter:
    return DeadLetter(
        message=_message(fields.get("m")),
        reason=fields["reason"].decode(),
        error=fields["error"].decode(errors="replace"),
        attempts=int(fields["attempts"]),
        entry=fields["origin"].decode(),
    )
