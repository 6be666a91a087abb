"""Validation rules beyond a schema, each written once in CEL for the API server and once in Python.

A rule belongs to the `rules` of a model or to the annotation of a field. The API server evaluates the CEL
text (https://kubernetes.io/docs/reference/using-api/cel/), the models call `holds`; a property test compares
them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.alias_generators import to_snake
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

VALIDATIONS = "x-kubernetes-validations"


@dataclass(frozen=True, slots=True)
class Rule:
    """A condition on a value, or on a change of it."""

    cel: str  # for the API server; `self` is the value, `oldSelf` the previous one
    message: str
    holds: Callable[[Any], bool] | None = None  # on the parsed value
    holds_between: Callable[[Any, Any], bool] | None = None  # on the parsed (old, new) pair
    field_path: str | None = None  # where the API server reports it, relative to the value, such as `.key`

    def add_to(self, schema: dict[str, Any]) -> None:
        """Appends this rule to the validations of a schema node, in place."""
        entry = {"rule": self.cel, "message": self.message}
        if self.field_path is not None:
            entry |= {"fieldPath": self.field_path, "reason": "FieldValueForbidden"}
        schema.setdefault(VALIDATIONS, []).append(entry)

    def check(self, value: Any) -> Any:
        """Returns the value; `ValueError` with the rule's message if the rule does not hold."""
        if self.holds is not None and not self.holds(value):
            raise ValueError(self.message)
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Checks the rule after the field's own validation."""
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Adds the rule to the field's schema."""
        out = handler.resolve_ref_schema(handler(schema))
        self.add_to(out)
        return out


def immutable(field: str, attribute: str | None = None) -> Rule:
    """Builds a model's rule that an optional field is neither added, changed nor removed after creation.

    It belongs to the model, not to the field: the API server does not evaluate a rule of a field that is
    absent before or after the change. `attribute` is the field's name in Python where that is another one.
    """
    value = attrgetter(attribute or to_snake(field))
    return Rule(
        cel=(
            f"has(self.{field}) == has(oldSelf.{field})"
            f" && (!has(self.{field}) || self.{field} == oldSelf.{field})"
        ),
        message=f"{field} is immutable: create another resource instead",
        holds_between=lambda old, new: bool(value(old) == value(new)),
        field_path=f".{field}",
    )
