"""A stream as a test declares it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import msgspec

from agentstream.protocol.contracts import FIRST_VERSION, contracts_digest, field_of, validator
from agentstream.protocol.envelope import MessageType
from agentstream.protocol.keys import default_stream_key

NAMESPACE = "test"


class DeclaredStream(msgspec.Struct, frozen=True):
    """A stream that a test declares.

    Attributes:
        name: the stream's.
        producers: agents that may add to it.
        broadcast: whether every group is to acknowledge what is added.
        signatures: what becomes of messages without a valid signature.
        schemas: what payloads must be, by `<type>@<version>`.
    """

    name: str
    producers: tuple[str, ...]
    broadcast: bool
    signatures: str
    schemas: Mapping[str, bytes]

    @property
    def key(self) -> str:
        """Its key on the server."""
        return default_stream_key(NAMESPACE, self.name)

    @property
    def digest(self) -> str:
        """Changes whenever the schemas do; empty if there are none."""
        return contracts_digest({field: schema.decode() for field, schema in self.schemas.items()})


class _Contract(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    type: MessageType
    schema: dict[str, Any]
    version: Annotated[int, msgspec.Meta(ge=1)] = FIRST_VERSION


def schemas_of(contracts: Iterable[Mapping[str, Any]]) -> dict[str, bytes]:
    """The JSON Schemas of contracts, each as in `spec.contracts` of an AgentStream, by `<type>@<version>`.

    Raises:
        ValueError: one is none.
        SettingsError: what checks payloads is not installed.
    """
    schemas = {}
    for contract in msgspec.convert(list(contracts), list[_Contract]):
        validator(contract.schema)
        schemas[field_of(contract.type, contract.version)] = msgspec.json.encode(contract.schema)
    return schemas
