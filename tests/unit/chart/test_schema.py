"""The schema of the values: it knows all of them, describes them, and refuses the rest with a clear word."""

from __future__ import annotations

import json

import jsonschema
import pytest
import yaml

from support.helm import CHART, EMBEDDED, Refused
from unit.chart.variants import VARIANTS

SCHEMA = json.loads((CHART / "values.schema.json").read_text())
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())


def nodes(schema, path=""):
    """Every property of the schema: its path and itself."""
    for name, node in schema.get("properties", {}).items():
        yield f"{path}{name}", node
        yield from nodes(node, f"{path}{name}.")
        yield from nodes(node.get("items", {}), f"{path}{name}[].")


def paths(values, schema, path=""):
    """Every value that has a place of its own in the schema."""
    for name, value in values.items():
        yield f"{path}{name}"
        node = schema["properties"].get(name, {})
        if isinstance(value, dict) and "properties" in node:
            yield from paths(value, node, f"{path}{name}.")


def test_the_schema_is_one():
    jsonschema.Draft7Validator.check_schema(SCHEMA)


def test_every_value_is_described():
    for path, node in nodes(SCHEMA):
        assert node["description"].endswith("."), path
        assert "type" in node or "enum" in node, path


def test_nothing_is_accepted_that_is_not_known():
    for path, node in [("", SCHEMA), *nodes(SCHEMA)]:
        if "properties" in node and node["type"] == "object":
            assert node["additionalProperties"] is False, path


def test_values_and_schema_name_the_same():
    known = {path for path, _ in nodes(SCHEMA) if "[]" not in path} - {"global", "enabled"}

    assert set(paths(VALUES, SCHEMA)) == known


def test_the_defaults_and_the_tested_values_are_valid():
    validator = jsonschema.Draft7Validator(SCHEMA)

    validator.validate(VALUES)
    for name, values in VARIANTS.items():
        if name != "bare":
            # its nulls take defaults away, and helm removes them first
            validator.validate(values)


REFUSED = [
    ({"redis": {"embeded": True}}, "redis", "embeded"),
    ({"replica": 2}, "", "replica"),
    ({"replicas": 0}, "replicas", "1"),
    ({"replicas": "two"}, "replicas", "integer"),
    ({"watchNamespaces": "team-a"}, "watchNamespaces", "array"),
    ({"watchNamespaces": ["Team_A"]}, "watchNamespaces", "match"),
    ({"watchNamespaces": ["a", "a"]}, "watchNamespaces", "unique|equal"),
    ({"installation": "Blue!"}, "installation", "match"),
    ({"allowKeys": ["two words"]}, "allowKeys", "match"),
    ({"image": {"pullPolicy": "Sometimes"}}, "image.pullPolicy", "IfNotPresent"),
    ({"image": {"repository": "agentstream:1"}}, "image.repository", "match"),
    ({"image": {"digest": "latest"}}, "image.digest", "match"),
    ({"redis": {"maxMemory": "0"}}, "redis.maxMemory", "match"),
    ({"redis": {"maxMemory": "512Mi"}}, "redis.maxMemory", "match"),
    ({"redis": {"persistence": {"size": "big"}}}, "redis.persistence.size", "match"),
    ({"redis": {"existingSecret": "Not A Name"}}, "redis.existingSecret", "match"),
    ({"log": {"format": "xml"}}, "log.format", "json"),
    ({"metrics": {"renderMode": "maybe"}}, "metrics.renderMode", "skipIfMissing"),
    ({"metrics": {"prometheusRule": {"disabled": ["Nothing"]}}}, "metrics.prometheusRule.disabled", "Down"),
    ({"networkPolicy": {"apiServerPorts": []}}, "networkPolicy.apiServerPorts", "1"),
    ({"networkPolicy": {"redisPorts": ["redis"]}}, "networkPolicy.redisPorts", "integer"),
    ({"terminationGracePeriodSeconds": 5}, "terminationGracePeriodSeconds", "25"),
    ({"podAnnotations": {"a": 1}}, "podAnnotations", "string"),
    ({"crds": {"enabled": "yes"}}, "crds.enabled", "boolean"),
]


@pytest.mark.parametrize(("values", "path", "why"), REFUSED, ids=[json.dumps(case[0]) for case in REFUSED])
def test_a_wrong_value_is_refused_where_it_stands(helm, values, path, why):
    merged = {**EMBEDDED, **values, "redis": {**EMBEDDED["redis"], **values.get("redis", {})}}

    with pytest.raises(Refused) as refused:
        helm.render(merged)

    message = str(refused.value)
    assert "don't meet the specifications of the schema" in message
    # helm 3 writes a.b, helm 4 /a/b
    assert path in message or f"/{path.replace('.', '/')}" in message
    assert any(word in message for word in why.split("|"))
