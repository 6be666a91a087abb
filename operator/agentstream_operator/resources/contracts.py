"""Contracts of a stream: JSON Schemas that the payloads of its messages must fit.

What the API server cannot say of a JSON Schema, the operator says in the stream's status: whether it is one,
and how large it may be.
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
    """Payloads are objects."""

    @property
    def text(self) -> str:
        """Its shortest JSON; the same schema always has the same."""
        return json.dumps(self.as_manifest(), ensure_ascii=False, separators=(",", ":"), sort_keys=True)


class ContractSpec(Model):
    """What the payloads of one type of message must be."""

    type: MessageType
    """The type of message."""

    version: Annotated[Int, Field(ge=1, le=1_000_000)] = 1
    """The version of the payload's schema, as messages name it."""

    json_schema: Annotated[JsonSchema, Field(alias="schema")]
    """The JSON Schema (draft 2020-12) that payloads must fit: at most 32 KiB, and no references beyond it."""

    @property
    def field(self) -> str:
        """What agents look it up by: `<type>@<version>`."""
        return field_of(self.type, self.version)

    @property
    def problem(self) -> str | None:
        """What is wrong with the JSON Schema; None if nothing is."""
        problem = _problem(self.json_schema.text)
        return None if problem is None else f"the schema of {self.field} {problem}"


def one_of_each(contracts: Sequence[ContractSpec]) -> bool:
    """Whether there is one contract at most for each type and version."""
    return len({contract.field for contract in contracts}) == len(contracts)


ONE_OF_EACH = Rule(
    cel="self.all(a, self.exists_one(b, b.type == a.type && b.version == a.version))",
    message="there can be only one contract for each type and version",
    holds=one_of_each,
)


@lru_cache(maxsize=1_024)
def _problem(text: str) -> str | None:
    size = len(text.encode())
    if size > MAX_SIZE:
        return f"has {size:,} bytes; it may have {MAX_SIZE:,}"
    schema = json.loads(text)
    if schema.get("$schema", DIALECT).rstrip("#") != DIALECT:
        return f"is in another dialect than {DIALECT}"
    try:
        validator(schema)
    except ValueError as error:
        where = path_of(getattr(error, "instance_path", ()))
        return f"is no JSON Schema: {str(error).splitlines()[0]} - at `{where}`"
    return None
