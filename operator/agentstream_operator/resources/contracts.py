"""Contracts of a stream: JSON Schemas of the payloads of its messages.

The API server cannot validate a JSON Schema or its size: the operator does, and reports it in the status.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import StrEnum
from functools import lru_cache
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from agentstream.protocol.contracts import field_of, path_of, validator

from .model import Int, Model
from .rules import Rule

MAX_SIZE = 32_768
"""The largest JSON Schema, in bytes of its shortest JSON."""

DIALECT = "https://json-schema.org/draft/2020-12/schema"


class MessageType(StrEnum):
    """The types of messages."""

    TASK_REQUEST = "task_request"
    TASK_RESULT = "task_result"
    EVENT = "event"


class JsonSchema(Model):
    """A JSON Schema of objects, draft 2020-12."""

    model_config = ConfigDict(extra="allow")

    type: Literal["object"]
    """Type of the payload: an object."""

    @property
    def text(self) -> str:
        """Its shortest JSON; the same schema always has the same."""
        return json.dumps(self.as_manifest(), ensure_ascii=False, separators=(",", ":"), sort_keys=True)


class ContractSpec(Model):
    """Schema of the payloads of a message type."""

    type: MessageType
    """Message type."""

    version: Annotated[Int, Field(ge=1, le=1_000_000)] = 1
    """Version of the payload schema, as in messages; 1 if absent."""

    json_schema: Annotated[JsonSchema, Field(alias="schema")]
    """JSON Schema (draft 2020-12) of the payloads: at most 32 KiB, without external references."""

    @property
    def field(self) -> str:
        """The key `<type>@<version>` by which agents look it up."""
        return field_of(self.type, self.version)

    @property
    def problem(self) -> str | None:
        """Why the JSON Schema is invalid; None if it is valid."""
        problem = _problem(self.json_schema.text)
        return None if problem is None else f"the schema of {self.field} {problem}"


def one_of_each(contracts: Sequence[ContractSpec]) -> bool:
    """Returns whether there is at most one contract per type and version."""
    return len({contract.field for contract in contracts}) == len(contracts)


ONE_OF_EACH = Rule(
    cel=(
        "self.all(a, self.exists_one(b, b.type == a.type"
        " && (has(b.version) ? b.version : 1) == (has(a.version) ? a.version : 1)))"
    ),
    message="only one contract per type and version is allowed",
    holds=one_of_each,
)


@lru_cache(maxsize=1_024)
def _problem(text: str) -> str | None:
    size = len(text.encode())
    if size > MAX_SIZE:
        return f"has {size:,} bytes; the limit is {MAX_SIZE:,}"
    schema = json.loads(text)
    if schema.get("$schema", DIALECT).rstrip("#") != DIALECT:
        return f"is not written in the dialect {DIALECT}"
    try:
        validator(schema)
    except ValueError as error:
        where = path_of(getattr(error, "instance_path", ()))
        return f"is not a valid JSON Schema: {str(error).splitlines()[0]} - at `{where}`"
    return None
