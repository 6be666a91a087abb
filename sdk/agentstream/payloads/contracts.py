"""Contracts: JSON Schemas of a stream's payloads, which are declared with the stream.

The operator writes them beside the stream, and their digest into the routes. Messages are checked before they
are sent and again before they are handled, with `jsonschema-rs` of the extra `agentstream[contracts]`.
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

# Seconds for which contracts are used that are newer than the agent's route, which is read again later.
_GOOD_FOR = 1.0


class Contract:
    """Checks the payloads on one stream.

    Args:
        schemas: JSON Schemas by `<type>@<version>`.

    Raises:
        SettingsError: `jsonschema-rs` is not installed.
        ValueError: a schema is not valid.
    """

    def __init__(self, schemas: Mapping[str, Any]) -> None:
        self._validators = {field: validator(schema) for field, schema in schemas.items()}
        self._types = {field.partition("@")[0] for field in schemas}

    def check(self, message: Message) -> None:
        """Checks the payload of a message; a type without contracts may have any payload.

        Raises:
            InvalidPayload: it violates the contract; the message says where.
        """
        if message.type not in self._types:
            return
        from jsonschema_rs import ValidationError  # noqa: PLC0415 - an extra, which validators need

        field = field_of(message.type, message.schema_version or FIRST_VERSION)
        if field not in self._validators:
            known = ", ".join(sorted(known for known in self._validators if known.startswith(message.type)))
            raise _violated(f"there is no contract for {field}; there is one for {known}")
        try:
            self._validators[field].validate(message.payload)
        except ValidationError as error:
            raise _violated(f"{field}: {error.message} - at `{path_of(error.instance_path)}`") from error


FREE = Contract({})
"""The contract of streams without contracts."""


class _Fetched(NamedTuple):
    """Contracts that were fetched.

    Attributes:
        digest: their digest.
        contract: checks payloads.
        good_until: until when they are used although the route has another digest, by the loop's clock.
    """

    digest: str
    contract: Contract
    good_until: float


class Contracts:
    """Fetches and caches the contracts of streams.

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
            SettingsError: `jsonschema-rs` is not installed.
            StreamMissing: the route names contracts that are not on the server.
            ProtocolError: a contract is not a JSON Schema.
            ConnectionLost, AccessDenied, ServerRefused: as `Client.call`.
        """
        if not stream.contracts:
            return FREE
        now = asyncio.get_running_loop().time()
        known = self._known.get(stream.key)
        if known is None or (known.digest != stream.contracts and now >= known.good_until):
            # a fetch for an older route may return older contracts
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
