"""What the API server does to a custom resource, as far as its CRD decides it: prune, default, validate.

Null fields are dropped and defaults filled in; then the schema is checked, with unknown fields refused (as
`kubectl apply` asks for); and if it holds, so must the CEL rules.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import celpy
import jsonschema
from celpy import celtypes

from agentstream_operator.resources.crd import KINDS, crd

_ENVIRONMENT = celpy.Environment()
_KEEPS_UNKNOWN = "x-kubernetes-preserve-unknown-fields"


def _split(text: celtypes.StringType, separator: celtypes.StringType) -> celtypes.ListType:
    """An extension of Kubernetes: https://kubernetes.io/docs/reference/using-api/cel/."""
    return celtypes.ListType(map(celtypes.StringType, text.split(separator)))


@cache
def _program(rule: str) -> celpy.Runner:
    return _ENVIRONMENT.program(_ENVIRONMENT.compile(rule), functions={"split": _split})


@cache
def schema_of(kind: str) -> dict[str, Any]:
    """The schema of a kind as its CRD has it."""
    manifest = next(crd(known) for known in KINDS if known.model.__name__ == kind)
    return manifest["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def nodes(schema: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every node of a schema with its path, this one included."""
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    if "items" in schema:
        yield from nodes(schema["items"], f"{path}[]")
    if "additionalProperties" in schema:
        yield from nodes(schema["additionalProperties"], f"{path}{{}}")


def stored(obj: Mapping[str, Any]) -> dict[str, Any]:
    """The object with nulls dropped and defaults filled in."""
    return _complete(obj, schema_of(obj["kind"]))


def refusals(obj: Mapping[str, Any], old: Mapping[str, Any] | None = None) -> list[str]:
    """Why the object, or the change from `old` to it, is refused; empty if it is accepted."""
    new = stored(obj)
    errors = [error.message for error in _validator(obj["kind"]).iter_errors(new)]
    if errors:
        return errors
    return list(_broken_rules(new, None if old is None else stored(old), schema_of(obj["kind"])))


@cache
def _validator(kind: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(_strict(schema_of(kind), root=True))


def _complete(value: Any, schema: Mapping[str, Any]) -> Any:
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        others = schema.get("additionalProperties")
        # kubectl leaves out what is null, whatever it is
        out = {key: item for key, item in value.items() if item is not None}
        for name, child in properties.items():
            if name not in out and "default" in child:
                out[name] = copy.deepcopy(child["default"])
        return {key: _complete(item, properties.get(key, others or {})) for key, item in out.items()}
    if isinstance(value, list):
        return [_complete(item, schema.get("items", {})) for item in value]
    return value


def _strict(schema: Mapping[str, Any], *, root: bool = False) -> dict[str, Any]:
    """As JSON Schema, with unknown fields refused. Python's `$` also matches before a last line feed."""
    out = dict(schema)
    if "pattern" in out:
        out["pattern"] = f"{out['pattern'].removesuffix('$')}\\Z"
    if out.get("x-kubernetes-list-type") == "set":
        out["uniqueItems"] = True
    if "items" in out:
        out["items"] = _strict(out["items"])
    if "properties" in out:
        out["properties"] = {
            # only the name of the metadata is the CRD's business
            name: dict(child) if root and name == "metadata" else _strict(child)
            for name, child in out["properties"].items()
        }
        out["additionalProperties"] = bool(out.get(_KEEPS_UNKNOWN))
        if root:
            out["properties"]["metadata"]["properties"] = {
                "name": _strict(out["properties"]["metadata"]["properties"]["name"])
            }
    elif isinstance(out.get("additionalProperties"), dict):
        out["additionalProperties"] = _strict(out["additionalProperties"])
    return out


def _broken_rules(value: Any, old: Any, schema: Mapping[str, Any]) -> Iterator[str]:
    for entry in schema.get("x-kubernetes-validations", ()):
        if not _holds(entry["rule"], value, old):
            yield entry["message"]
    if isinstance(value, dict):
        for name, child in schema.get("properties", {}).items():
            if name in value:
                before = old.get(name) if isinstance(old, dict) else None
                yield from _broken_rules(value[name], before, child)
    elif isinstance(value, list):
        for item in value:
            yield from _broken_rules(item, None, schema.get("items", {}))


def _holds(rule: str, value: Any, old: Any) -> bool:
    """Whether a rule holds. One about a change does if there was nothing before; one that fails does not."""
    variables = {"self": celpy.json_to_cel(value)}
    if "oldSelf" in rule:
        if old is None:
            return True
        variables["oldSelf"] = celpy.json_to_cel(old)
    try:
        return bool(_program(rule).evaluate(variables))
    except celpy.CELEvalError:
        return False
