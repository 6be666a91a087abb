"""What a test declares, written to the server as the operator writes it, and the state of messages."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

import msgspec

from agentstream.errors import InvalidMessage
from agentstream.protocol import commands
from agentstream.protocol.contracts import FIRST_VERSION, contracts_digest, field_of, validator
from agentstream.protocol.envelope import Message, MessageType, decode
from agentstream.protocol.keys import StreamKeys, default_stream_key, routes_key
from agentstream.protocol.routes import OFF, Consumes, Produces, Route, encode_route
from agentstream.testing.server import Bindings
from agentstream.transport.client import Argument

INSTALLATION, NAMESPACE = "agentstream", "test"
_POLL_EVERY = 0.005


class DeclaredStream(msgspec.Struct, frozen=True):
    """A stream that a test declares, with the JSON Schemas of payloads by `<type>@<version>`."""

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
    """Returns the JSON Schemas of contracts, as `spec.contracts` has them, by `<type>@<version>`."""
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


class _Left(msgspec.Struct, rename={"retrying": "retry_length"}):
    """What a group has not settled, as the function library reports it."""

    undelivered: int = 0
    pending: int = 0
    retrying: int = 0
    delayed: int = 0

    def __str__(self) -> str:
        """Lists what is left; empty if nothing is."""
        return ", ".join(f"{count} {what}" for what, count in msgspec.structs.asdict(self).items() if count)


class _Observed(msgspec.Struct):
    groups: dict[str, _Left]


class Topology(ABC):
    """The streams and groups that are declared on one server, and the state of their messages."""

    _bindings: Bindings

    def __init__(self) -> None:
        self._streams: dict[str, DeclaredStream] = {}
        self._groups: dict[tuple[str, str], Consumes] = {}

    async def declare_stream(
        self,
        name: str,
        *,
        producers: Iterable[str] = (),
        broadcast: bool = False,
        signed: Literal["Warn", "Require"] | None = None,
        contracts: Iterable[Mapping[str, Any]] = (),
    ) -> None:
        """Declares a stream, as an AgentStream does.

        Args:
            name: name of the stream.
            producers: agents that may send to the stream.
            broadcast: whether it is a broadcast stream.
            signed: policy for messages without a valid signature; every agent gets the signing key.
            contracts: contracts of payloads, each as in `spec.contracts` of an AgentStream:
                `{"type": "event", "version": 1, "schema": {…}}`.

        Raises:
            ValueError: a contract is invalid.
            SettingsError: there are contracts, and the library that checks them is not installed.
        """
        schemas = schemas_of(contracts)
        self._bindings.declare(name, signed or OFF)
        stream = DeclaredStream(name, tuple(producers), broadcast, signed or OFF, schemas)
        owner = {"name": name, "namespace": NAMESPACE}
        await self._call(*commands.create_stream(stream.key, owner))
        await self._call(*commands.set_contracts(stream.key, stream.digest, stream.schemas))
        self._streams[name] = stream
        await self._write_routes()

    async def declare_group(
        self,
        stream: str,
        *,
        agent: str,
        group: str | None = None,
        lease: float = 10.0,
        deadline: float | None = None,
        max_deliveries: int = 5,
        backoff: float = 0.01,
        backoff_factor: float = 2.0,
        backoff_max: float = 1.0,
        deliver_all: bool = False,
        dead_letters: bool = True,
        start: str = "0",
    ) -> None:
        """Declares a group, as a ConsumerGroup does, with short retry delays.

        Args:
            stream: name of the stream.
            agent: the agent that consumes the group.
            group: name of the group, by default that of the agent.
            lease: seconds until another consumer may claim a message whose lease is not renewed.
            deadline: seconds that a handler may take; None for no limit.
            max_deliveries: attempts after which a message becomes a dead letter.
            backoff: seconds before the second attempt.
            backoff_factor: factor by which the delay grows with every further attempt.
            backoff_max: the longest delay in seconds.
            deliver_all: deliver also what is addressed to other agents.
            dead_letters: whether the group has dead letters; without them, it retries for ever.
            start: id of the entry after which the group begins; `$` for the end of the stream.

        Raises:
            LookupError: the stream is not declared.
        """
        declared = self._declared(stream)
        consumes = Consumes(
            stream,
            declared.key,
            group or agent,
            broadcast=declared.broadcast,
            deliver_all=deliver_all,
            lease=round(lease * 1000),
            max_deliveries=max_deliveries,
            backoff_initial=round(backoff * 1000),
            backoff_factor=backoff_factor,
            backoff_max=round(backoff_max * 1000),
            dead_letters=dead_letters,
            deadline=round((deadline or 0) * 1000),
        )
        await self._call(*commands.create_group(declared.key, consumes.group, start))
        self._groups[agent, consumes.group] = consumes
        await self._write_routes()

    async def settled(self, stream: str, *, group: str | None = None, timeout: float = 10.0) -> None:
        """Waits until no message of a stream is undelivered, pending, delayed or retrying.

        Args:
            stream: name of the stream.
            group: name of a group; all groups if None.
            timeout: seconds to wait.

        Raises:
            TimeoutError: messages are left; the error says how many.
            LookupError: no such stream or group is declared.
        """
        key = self._declared(stream).key
        groups = [g.group for g in self._groups.values() if g.stream == stream and group in (None, g.group)]
        if not groups:
            raise LookupError(f"no group {group or ''} of {stream} is declared here".replace("  ", " "))
        deadline = time.monotonic() + timeout
        while left := await self._left(key, groups):
            if time.monotonic() >= deadline:
                raise TimeoutError(f"{stream} is not settled after {timeout} s: {left}")
            await asyncio.sleep(_POLL_EVERY)

    async def messages(self, stream: str, *, at_least: int = 0, timeout: float = 10.0) -> list[Message]:
        """Returns all messages of a stream, oldest first.

        Args:
            stream: name of the stream.
            at_least: how many to wait for.
            timeout: seconds to wait.

        Raises:
            TimeoutError: there were fewer; the error says how many.
            LookupError: the stream is not declared.
        """
        key = self._declared(stream).key
        deadline = time.monotonic() + timeout
        while True:
            bodies = [fields_of(fields).get("m") for _, fields in await self._call("XRANGE", key, "-", "+")]
            messages = [message for body in bodies if (message := _message(body)) is not None]
            if len(messages) >= at_least:
                return messages
            if time.monotonic() >= deadline:
                raise TimeoutError(f"{stream} has {len(messages)} messages after {timeout} s, not {at_least}")
            await asyncio.sleep(_POLL_EVERY)

    async def dead_letters(self, stream: str, *, group: str) -> list[DeadLetter]:
        """Returns the dead letters of a group, oldest first.

        Raises:
            LookupError: the stream is not declared.
        """
        key = StreamKeys(self._declared(stream).key).dead_letters(group)
        return [_dead_letter(fields_of(fields)) for _, fields in await self._call("XRANGE", key, "-", "+")]

    @abstractmethod
    async def _call(self, *args: Argument) -> Any:
        """Sends a command to the server and returns its reply."""

    def _declared(self, name: str) -> DeclaredStream:
        if name not in self._streams:
            declared = ", ".join(sorted(self._streams)) or "none"
            raise LookupError(f"no stream {name} is declared here, but {declared}")
        return self._streams[name]

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
        expected = tuple(named) if stream.broadcast else ()
        route = Produces(
            stream.name, stream.key, stream.broadcast, expected, stream.signatures, stream.digest
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
