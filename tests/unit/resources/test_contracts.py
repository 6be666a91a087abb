"""Contracts: what is said of a JSON Schema that is none, beyond what the API server can say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from agentstream_operator.resources.contracts import MAX_SIZE, ContractSpec, _steps


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


def doubling(n: int, refer: Callable[[int], dict[str, Any]], keyword: str = "allOf") -> dict[str, Any]:
    """A schema whose n-th definition visits the one before twice."""
    defs: dict[str, Any] = {"d0": {"$anchor": "d0", "type": "object"}}
    for i in range(1, n + 1):
        defs[f"d{i}"] = {"$anchor": f"d{i}", keyword: [refer(i - 1), refer(i - 1)]}
    return {"$defs": defs, "allOf": [refer(n)]}


REFERENCES: list[Callable[[int], dict[str, Any]]] = [
    lambda i: {"$ref": f"#/$defs/d{i}"},
    lambda i: {"$ref": f"#/%24defs/d{i}"},
    lambda i: {"$ref": f"#d{i}"},
    lambda i: {"properties": {"const": {"$ref": f"#/$defs/d{i}"}}},
    lambda i: {"properties": {"$defs": {"$ref": f"#/$defs/d{i}"}}},
    lambda i: {"not": {"$ref": f"#/$defs/d{i}"}},
]


@pytest.mark.parametrize("refer", REFERENCES)
@pytest.mark.parametrize("keyword", ["allOf", "anyOf", "oneOf"])
@pytest.mark.parametrize("n", [22, 250])
def test_a_schema_that_doubles_its_work_with_each_definition_is_refused(
    refer: Callable[[int], dict[str, Any]], keyword: str, n: int
) -> None:
    problem = a_contract(**doubling(n, refer, keyword)).problem
    assert problem is not None
    assert "visits more than 50,000 subschemas" in problem or "bytes; the limit is" in problem


@pytest.mark.parametrize("refer", REFERENCES)
def test_what_is_let_through_visits_few(refer: Callable[[int], dict[str, Any]]) -> None:
    schema = doubling(5, refer)
    assert a_contract(**schema).problem is None
    assert _steps(schema) <= 1_000


def test_a_schema_may_refer_to_itself_and_in_a_long_chain() -> None:
    tree = {"$anchor": "node", "properties": {side: {"$ref": "#node"} for side in ("left", "right")}}
    assert a_contract(**tree).problem is None
    assert a_contract(**{"$ref": "#"}).problem is None
    chain = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(900)}
    assert a_contract(**{"$defs": {**chain, "d900": {}}, "$ref": "#/$defs/d0"}).problem is None


@pytest.mark.parametrize(
    "reference", ["#/nowhere/0", "#/$defs/9", "other#/a", "#/allOf/7", "#/allOf/x", "", "#"]
)
def test_a_reference_to_nothing_is_no_reason_to_fail(reference: str) -> None:
    assert _steps({"allOf": [{"$ref": reference}, {"$dynamicRef": reference}, {"$ref": 7}]}) < 50


def test_the_same_schema_has_the_same_text() -> None:
    one = a_contract(title="Ä", required=["doc"])
    other = a_contract(required=["doc"], title="Ä")
    assert (
        one.json_schema.text == other.json_schema.text == '{"required":["doc"],"title":"Ä","type":"object"}'
    )
