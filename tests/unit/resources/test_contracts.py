"""Contracts: what is said of a JSON Schema that is none, beyond what the API server can say."""

from __future__ import annotations

from typing import Any

import pytest

from agentstream_operator.resources.contracts import MAX_SIZE, ContractSpec


def a_contract(**schema: Any) -> ContractSpec:
    return ContractSpec.model_validate(
        {"type": "event", "version": 2, "schema": {"type": "object", **schema}}
    )


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"properties": {"doc": {"$ref": "#/$defs/doc"}}, "$defs": {"doc": {"type": "integer"}}},
        {"$schema": "https://json-schema.org/draft/2020-12/schema"},
        {"$schema": "https://json-schema.org/draft/2020-12/schema#"},
        {"description": "x" * (MAX_SIZE - 34)},
        {"x-unknown": {"to": "the standard"}},
    ],
)
def test_what_is_a_json_schema_has_no_problem(schema: dict[str, Any]) -> None:
    assert a_contract(**schema).problem is None


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        (
            {"required": "doc"},
            'is not a valid JSON Schema: the value is not of type "array" - at `$.required`',
        ),
        ({"properties": {"doc": {"type": "number "}}}, "is not a valid JSON Schema: "),
        ({"pattern": "("}, "is not a valid JSON Schema: "),
        ({"$ref": "#/$defs/doc"}, "is not a valid JSON Schema: Pointer '/$defs/doc' does not exist"),
        ({"$ref": "https://example.com/doc"}, "is not a valid JSON Schema: "),
        ({"$ref": "file:///etc/passwd"}, "is not a valid JSON Schema: "),
        (
            {"$schema": "http://json-schema.org/draft-07/schema#"},
            "is not written in the dialect https://json",
        ),
        ({"description": "x" * (MAX_SIZE - 33)}, "has 32,769 bytes; the limit is 32,768"),
        ({"description": "ä" * (MAX_SIZE // 2)}, "has 32,802 bytes; the limit is 32,768"),
    ],
)
def test_what_is_none_is_told_why(schema: dict[str, Any], problem: str) -> None:
    told = a_contract(**schema).problem
    assert told is not None
    assert told.startswith(f"the schema of event@2 {problem}")


def test_the_same_schema_has_the_same_text() -> None:
    one = a_contract(title="Ä", required=["doc"])
    other = a_contract(required=["doc"], title="Ä")
    assert (
        one.json_schema.text == other.json_schema.text == '{"required":["doc"],"title":"Ä","type":"object"}'
    )
