"""Contracts: what the payloads on a stream must be, as JSON Schemas that are declared with the stream.

The operator writes them beside the stream, and into the routes what changes whenever they do. They are
checked where a message is sent and again before a handler gets it, with `jsonschema-rs`, which the extra
`agentstream[contracts]` installs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import msgspec

from agentstream.errors import InvalidPayload, ProtocolError, StreamMissing
from agentstream.protocol.contracts import FIRST_VERSION, field_of, path_of, validator
from agentstream.protocol.envelope import Message
from agentstream.protocol.keys import StreamKeys
from agentstream.protocol.reasons import Reason
from agentstream.protocol.routes import Consumes, Produces
from agentstream.transport.single_flight import SingleFlight

# An agent reads its route again after a while, and the contracts may be newer by then.
_GOOD_FOR = 1.0


class Contract:
    """What the payloads on one stream must be.

    Args:
        schemas: field of the hash -> JSON Schema; see `field_of`.

    Raises:
        SettingsError: what checks schemas is not installed.
        ValueError: a schema is not valid.
    """

    def __init__(self, schemas: Mapping[str, Any]) -> None:
        self._validators = {field: validator(schema) for field, schema in schemas.items()}
        self._types = {field.partition("@")[0] for field in schemas}

    def check(self, message: Message) -> None:
        """Checks the payload of a message. One of a type that has no contract may be anything.

        Raises:
            InvalidPayload: it violates the contract; the message says where.
        """
        if message.type not in self._types:
            return
        from jsonschema_rs import ValidationError  # noqa: PLC0415 - is installed where there are validators

        field = field_of(message.type, message.schema_version or FIRST_VERSION)
        if field not in self._validators:
            known = ", ".join(sorted(known for known in self._validators if known.startswith(message.type)))
            raise _violated(f"there is no contract for {field}; there is one for {known}")
        try:
            self._validators[field].validate(message.payload)
        except ValidationError as error:
            raise _violated(f"{field}: {error.message} - at `{path_of(error.instance_path)}`") from error


FREE = Contract({})
"""The contract of streams that have none."""


class _Fetched(NamedTuple):
    """What the server had.

    Attributes:
        digest: of these contracts.
        contract: what they come to.
        good_until: until when they hold, by the loop's clock, although the route speaks of others.
    """

    digest: str
    contract: Contract
    good_until: float


class Contracts:
    """The contracts of the streams of one agent, fetched when they are needed.

    Args:
        call: sends a command and returns its reply.
    """

    def __init__(self, call: Callable[..., Awaitable[Any]]) -> None:
        self._call = call
        self._known: dict[str, _Fetched] = {}
        self._fetches: SingleFlight[_Fetched] = SingleFlight()

    async def of(self, stream: Produces | Consumes) -> Contract:
        """The contract of a stream.

        Raises:
            SettingsError: there is one, and what checks schemas is not installed.
            StreamMissing: the route speaks of one that is not on the server.
            ProtocolError: what is there is no JSON Schema.
            ConnectionLost, AccessDenied, ServerRefused: as `Wire.call`.
        """
        if not stream.contracts:
            return FREE
        now = asyncio.get_running_loop().time()
        known = self._known.get(stream.key)
        if known is None or (known.digest != stream.contracts and now >= known.good_until):
            # what was asked for by an older route may be what was
            wanted = f"{stream.key} {stream.contracts}"
            known = await self._fetches.do(wanted, partial(self._fetch, stream, now))
        return known.contract

    async def _fetch(self, stream: Produces | Consumes, now: float) -> _Fetched:
        flat = await self._call("HGETALL", StreamKeys(stream.key).contracts)
        fields = dict(zip(flat[::2], flat[1::2], strict=True))
        digest = fields.pop(b"digest", b"").decode()
        if not digest:
            raise StreamMissing(f"the contracts of {stream.stream} are not on the server")
        schemas = {field.decode(): schema for field, schema in fields.items()}
        try:
            contract = Contract({field: msgspec.json.decode(schema) for field, schema in schemas.items()})
        except ValueError as error:
            raise ProtocolError(f"a contract of {stream.stream} is no JSON Schema: {error}") from error
        fetched = _Fetched(digest, contract, now if digest == stream.contracts else now + _GOOD_FOR)
        self._known[stream.key] = fetched
        return fetched


def _violated(what: str) -> InvalidPayload:
    return InvalidPayload(f"the payload violates the contract: {what}", reason=Reason.CONTRACT_VIOLATED)
