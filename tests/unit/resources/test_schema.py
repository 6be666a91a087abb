"""The CRD schemas are structural and bounded; what cannot be said that way is refused."""

from __future__ import annotations

import re
from typing import Annotated

import pytest
from pydantic import BaseModel, Field

from agentstream_operator.resources.crd import KINDS, crd
from agentstream_operator.resources.schema import SchemaError, structural_schema
from unit.resources.api_server import nodes, schema_of

NODES = [
    pytest.param(node, id=f"{kind}{path}")
    for kind in ("AgentStream", "ConsumerGroup")
    for path, node in nodes(schema_of(kind))
]
FORBIDDEN = {"$ref", "$defs", "anyOf", "oneOf", "allOf", "not", "const", "title", "uniqueItems", "nullable"}


@pytest.mark.parametrize("node", NODES)
def test_every_node_is_structural_and_bounded(node):
    assert not FORBIDDEN & node.keys()
    assert node["type"] in {"object", "array", "string", "integer", "number", "boolean"}
    if node["type"] == "string":
        assert "enum" in node or node["maxLength"] > 0
    if node["type"] == "array":
        assert "items" in node
        assert node["maxItems"] > 0
    if "additionalProperties" in node:
        assert "properties" not in node
        assert node["maxProperties"] > 0
    if "x-kubernetes-list-map-keys" in node:
        assert node["x-kubernetes-list-type"] == "map"
        assert set(node["x-kubernetes-list-map-keys"]) <= set(node["items"]["required"])
    assert set(node.get("required", ())) <= node.get("properties", {}).keys()


@pytest.mark.parametrize("node", NODES)
def test_patterns_are_anchored_and_rules_have_messages(node):
    if "pattern" in node:
        assert node["pattern"].startswith("^")
        assert node["pattern"].endswith("$")
        # RE2 has no lookaround and no backreferences
        assert not re.search(r"\(\?|\\[1-9]", node["pattern"])
    for rule in node.get("x-kubernetes-validations", ()):
        assert rule["rule"]
        assert rule["message"]
        if "fieldPath" in rule:
            assert rule["fieldPath"].removeprefix(".") in node["properties"]


@pytest.mark.parametrize("kind", ["AgentStream", "ConsumerGroup"])
def test_every_field_of_spec_and_status_is_described(kind):
    for part in ("spec", "status"):
        for path, node in nodes(schema_of(kind)["properties"][part]):
            assert path.endswith(("[]", "{}")) or node["description"].endswith(".")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.plural)
def test_columns_and_scale_paths_name_fields_that_exist(kind):
    version = crd(kind)["spec"]["versions"][0]
    paths = dict(nodes(schema_of(kind.model.__name__)))
    for column in version["additionalPrinterColumns"]:
        path = column["jsonPath"].split("[?")[0]
        assert path in paths or path == ".metadata.creationTimestamp"
    for path in version["subresources"].get("scale", {}).values():
        assert path in paths


def test_only_groups_scale():
    assert [kind.plural for kind in KINDS if kind.scale] == ["consumergroups"]


class Union(BaseModel):
    value: int | str


class Tree(BaseModel):
    children: Annotated[list[Tree], Field(max_length=3)]


class Anything(BaseModel):
    value: object


class Exclusive(BaseModel):
    value: Annotated[float, Field(gt=0)]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Union, "Union.value: a CRD schema has no unions"),
        (Tree, "Tree.children.[]: Tree contains itself"),
        (Anything, "Anything.value: no type"),
        (Exclusive, "Exclusive.value: a CRD schema has no exclusiveMinimum"),
    ],
)
def test_what_a_crd_cannot_say_is_refused(model, message):
    with pytest.raises(SchemaError) as caught:
        structural_schema(model)
    assert str(caught.value) == message
