"""Converts pydantic's schema of a model into a structural schema, the dialect of CRDs.

Structural (https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/):
a type on every node, no references, no alternatives for "may be absent". Anything else raises here instead of
in the API server.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

from .duration import Duration
from .model import Model

_DROPPED = {"title", "examples", "additionalProperties", "$defs"}
_KEPT = (
    "description",
    "type",
    "format",
    "enum",
    "default",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "pattern",
    "minItems",
    "maxItems",
    "maxProperties",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-validations",
    "x-kubernetes-preserve-unknown-fields",
    "required",
)
_REF = "#/$defs/"


class SchemaError(TypeError):
    """A model cannot be expressed as the schema of a CRD."""


def structural_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Builds a model's schema for a CRD, keys in a stable order; `SchemaError` for a union or a cycle."""
    schema = model.model_json_schema(by_alias=True, mode="validation", schema_generator=_Generator)
    return _Converter(schema.get("$defs", {})).convert(schema, (model.__name__,), frozenset())


class _Generator(GenerateJsonSchema):
    """Writes defaults as manifests have them, and keeps fields in the order of the models."""

    def encode_default(self, dft: Any) -> Any:
        """Converts the default of a field to JSON."""
        if isinstance(dft, Model):
            return dft.as_manifest()
        return str(dft) if isinstance(dft, Duration) else super().encode_default(dft)

    def sort(self, value: JsonSchemaValue, parent_key: str | None = None) -> JsonSchemaValue:
        """Returns the value unsorted."""
        del parent_key
        return value


class _Converter:
    """Converts the nodes of one schema with the definitions that its references name."""

    def __init__(self, defs: Mapping[str, Any]) -> None:
        self._defs = defs

    def convert(
        self, original: Mapping[str, Any], path: tuple[str, ...], within: frozenset[str]
    ) -> dict[str, Any]:
        """Converts a node and the nodes below it; `within` are the definitions that contain it."""
        node, within = self._flatten(original, path, within)
        where = ".".join(path)
        unknown = node.keys() - _DROPPED - set(_KEPT) - {"properties", "items", "const"}
        if unknown:
            raise SchemaError(f"{where}: a CRD schema has no {', '.join(sorted(unknown))}")
        if "type" not in node:
            raise SchemaError(f"{where}: no type")
        if "const" in node:
            node["enum"] = [node["const"]]
        if "description" in node:
            node["description"] = " ".join(node["description"].split())
        others = node.get("additionalProperties", False)
        if others is True:
            node["x-kubernetes-preserve-unknown-fields"] = True
        out = {key: node[key] for key in _KEPT if node.get(key) is not None}
        if "[]" in path:
            # a default below a list would make every `kubectl apply` a change, and Argo CD find a difference
            out.pop("default", None)
        if "properties" in node:
            out["properties"] = {
                name: self.convert(child, (*path, name), within) for name, child in node["properties"].items()
            }
        if "items" in node:
            out["items"] = self.convert(node["items"], (*path, "[]"), within)
        if isinstance(others, Mapping):
            out["additionalProperties"] = self.convert(others, (*path, "{}"), within)
        return out

    def _flatten(
        self, original: Mapping[str, Any], path: tuple[str, ...], within: frozenset[str]
    ) -> tuple[dict[str, Any], frozenset[str]]:
        """Resolves references and `anyOf: [X, null]`; keys beside them take precedence."""
        node = dict(original)
        while "$ref" in node or "anyOf" in node:
            if "$ref" in node:
                name = node.pop("$ref").removeprefix(_REF)
                if name in within:
                    raise SchemaError(f"{'.'.join(path)}: {name} contains itself")
                within |= {name}
                inner = self._defs[name]
            else:
                choices = [choice for choice in node.pop("anyOf") if choice != {"type": "null"}]
                if len(choices) != 1:
                    raise SchemaError(f"{'.'.join(path)}: a CRD schema has no unions")
                inner = choices[0]
            node = {**inner, **node}
        return node, within
