"""Contracts of a stream: JSON Schemas of the payloads of its messages.

The API server cannot validate a JSON Schema or its size: the operator does, and reports it in the status.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from enum import StrEnum
from functools import lru_cache
from typing import Annotated, Any, Literal
from urllib.parse import unquote

from pydantic import ConfigDict, Field

from agentstream.protocol.contracts import field_of, path_of, validator

from .model import Int, Model
from .rules import Rule

MAX_SIZE = 32_768
"""The largest JSON Schema, in bytes of its shortest JSON."""

MAX_STEPS = 50_000
"""The most subschemas that checking one value may visit, counted along every path: some 2 ms."""

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


_BY_NAME = frozenset({"properties", "patternProperties", "dependentSchemas"})
_DEFINITIONS = frozenset({"$defs", "definitions"})


def _steps(schema: dict[str, Any]) -> int:
    """Counts what checking visits at most: what is referred to twice, twice; what refers to itself, once."""
    named = _named(schema)
    steps: dict[int, int] = {}
    entered: set[int] = set()
    waiting: list[tuple[Any, bool]] = [(schema, False)]
    # not recursive: references may follow one another for longer than Python can recurse
    while waiting:
        part, are_counted = waiting.pop()
        if are_counted:
            steps[id(part)] = 1 + sum(steps.get(id(child), 1) for child in _children(part, schema, named))
        elif id(part) not in entered:
            entered.add(id(part))
            waiting.append((part, True))
            waiting.extend((child, False) for child in _children(part, schema, named))
    return steps[id(schema)]


def _children(part: Any, schema: dict[str, Any], named: dict[str, Any]) -> Iterator[Any]:
    if isinstance(part, list):
        yield from (child for child in part if isinstance(child, dict | list))
    elif isinstance(part, dict):
        for name, child in part.items():
            if name in _BY_NAME and isinstance(child, dict):
                yield from (each for each in child.values() if isinstance(each, dict))
            elif isinstance(child, dict | list) and name not in _DEFINITIONS:
                yield child
            elif name in {"$ref", "$dynamicRef"} and isinstance(child, str):
                yield _target(child, schema, named)


def _named(schema: dict[str, Any]) -> dict[str, Any]:
    """Returns the subschemas that have names, by what refers to them."""
    named: dict[str, Any] = {}
    waiting: list[Any] = [schema]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            named.update(
                (f"{mark}{part[key]}", part)
                for key, mark in (("$anchor", "#"), ("$dynamicAnchor", "#"), ("$id", ""))
                if isinstance(part.get(key), str)
            )
            waiting.extend(part.values())
        elif isinstance(part, list):
            waiting.extend(part)
    return named


def _target(reference: str, schema: dict[str, Any], named: dict[str, Any]) -> Any:
    if reference in named:
        return named[reference]
    base, _, pointer = reference.partition("#")
    part: Any = named.get(base, schema)
    for step in unquote(pointer).split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(part, dict):
            part = part.get(name)
        elif isinstance(part, list) and name.isdecimal() and int(name) < len(part):
            part = part[int(name)]
        else:
            return None
    return part


@lru_cache(maxsize=1_024)
def _problem(text: str) -> str | None:
    size = len(text.encode())
    if size > MAX_SIZE:
        return f"has {size:,} bytes; the limit is {MAX_SIZE:,}"
    schema = json.loads(text)
    if schema.get("$schema", DIALECT).rstrip("#") != DIALECT:
        return f"is not written in the dialect {DIALECT}"
    if _steps(schema) > MAX_STEPS:
        return (
            f"visits more than {MAX_STEPS:,} subschemas for one payload, as several of its parts refer to the"
            " same ones, which do so again: refer to each once"
        )
    try:
        validator(schema)
    except ValueError as error:
        where = path_of(getattr(error, "instance_path", ()))
        return f"is not a valid JSON Schema: {str(error).splitlines()[0]} - at `{where}`"
    return None
