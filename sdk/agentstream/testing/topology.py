"""What a test declares, written to the server as the operator writes it, and the state of messages."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Annotated, Any

import msgspec

from agentstream.errors import InvalidMessage
from agentstream.protocol import commands
from agentstream.protocol.contracts import FIRST_VERSION, contracts_digest, field_of, validator
from agentstream.protocol.envelope import Message, MessageType, decode
from agentstream.protocol.keys import StreamKeys, default_stream_key, routes_key
from agentstream.protocol.routes import Consumes, Produces, Route, encode_route

INSTALLATION, NAMESPACE = "agentstream", "test"
_POLL_EVERY = 0.005


class DeclaredStream(msgspec.Struct, frozen=True):
    """A stream that a test declares.

    Attributes:
        name: name of the stream.
        producers: agents that may add to the stream.
        broadcast: whether it is a broadcast stream.
        signatures: policy for messages without a valid signature: `Off`, `Warn` or `Require`.
        schemas: JSON Schemas of payloads, by `<type>@<version>`.
    """

    name: str
    producers: tuple[str, ...]
    broadcast: bool
    signatures: str
    schemas: Mapping[str, bytes]

    @property
    def key(self) -> str:
        """Key of the stream on the server."""
        return default_stream_key(NAMESPACE, self.name)

    @property
    def digest(self) -> str:
        """Digest of the schemas; empty if there are none."""
        return contracts_digest({field: schema.decode() for field, schema in self.schemas.items()})


class _Contract(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    type: MessageType
    schema: dict[str, Any]
    version: Annotated[int, msgspec.Meta(ge=1)] = FIRST_VERSION


def schemas_of(contracts: Iterable[Mapping[str, Any]]) -> dict[str, bytes]:
    """Returns the JSON Schemas of contracts, as in `spec.contracts` of an AgentStream, by `<type>@<version>`.

    Raises:
        ValueError: a contract is invalid.
        SettingsError: the library that checks payloads is not installed.
    """
    schemas = {}
    for contract in msgspec.convert(list(contracts), list[_Contract]):
        validator(contract.schema)
        schemas[field_of(contract.type, contract.version)] = msgspec.json.encode(contract.schema)
    return schemas


class DeadLetter(msgspec.Struct, frozen=True):
    """A dead letter of a group.

    Attributes:
        message: the message; None if the entry holds no valid one.
        reason: why: one of `agentstream.Reason`, or the reason that the handler gave.
        error: what went wrong, in words.
        attempts: how often a handler started on the message.
        entry: id of the entry on the stream.
    """

    message: Message | None
    reason: str
    error: str
    attempts: int
    entry: str


class _Left(msgspec.Struct):
    """What a group has not settled, as the function library reports it."""

    undelivered: int = 0
    pending: int = 0
    retry_length: int = 0
    delayed: int = 0

    def __str__(self) -> str:
        """Lists what is left; empty if nothing is."""
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
    """The streams and groups that are declared on one server.

    Args:
        call: sends a command to the server and returns its reply.
    """

    def __init__(self, call: Callable[..., Awaitable[Any]]) -> None:
        self._call = call
        self._streams: dict[str, DeclaredStream] = {}
        self._groups: dict[tuple[str, str], Consumes] = {}

    async def declare_stream(self, stream: DeclaredStream) -> None:
        """Creates or updates a stream, and the routes of its producers."""
        owner = {"name": stream.name, "namespace": NAMESPACE}
        await self._call(*commands.create_stream(stream.key, owner))
        await self._call(*commands.set_contracts(stream.key, stream.digest, stream.schemas))
        self._streams[stream.name] = stream
        await self._write_routes()

    async def declare_group(self, group: Consumes, agent: str, start: str) -> None:
        """Creates or updates a group, and the route of its agent."""
        await self._call(*commands.create_group(group.key, group.group, start))
        self._groups[agent, group.group] = group
        await self._write_routes()

    def stream(self, name: str) -> DeclaredStream:
        """Finds a declared stream.

        Raises:
            LookupError: no stream of this name is declared.
        """
        if name not in self._streams:
            declared = ", ".join(sorted(self._streams)) or "none"
            raise LookupError(f"no stream {name} is declared here, but {declared}")
        return self._streams[name]

    async def messages(self, name: str, at_least: int, timeout: float) -> list[Message]:
        """Returns the messages on a stream, once there are enough; see `Sandbox.messages`."""
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
            await asyncio.sleep(_POLL_EVERY)

    async def dead_letters(self, name: str, group: str) -> list[DeadLetter]:
        """Returns the dead letters of a group, oldest first."""
        key = StreamKeys(self.stream(name).key).dead_letters(group)
        return [_dead_letter(fields_of(fields)) for _, fields in await self._call("XRANGE", key, "-", "+")]

    async def settled(self, name: str, group: str | None, timeout: float) -> None:
        """Waits until a group, or each group of the stream, has settled everything; see `Sandbox.settled`."""
        key = self.stream(name).key
        groups = [g.group for g in self._groups.values() if g.stream == name and group in (None, g.group)]
        if not groups:
            raise LookupError(f"no group {group or ''} of {name} is declared here".replace("  ", " "))
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while left := await self._left(key, groups):
            if loop.time() >= deadline:
                raise TimeoutError(f"{name} is not settled after {timeout} s: {left}")
            await asyncio.sleep(_POLL_EVERY)

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
    """Returns the route of each agent, given the groups by agent and name."""
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
    """Returns a flat list of names and values as a dict."""
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
