"""The base of all models: frozen, no unknown fields, camelCase in manifests, bounded text, strict numbers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    Strict,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from .rules import Rule

BROKEN_RULES = "broken_rules"
"""Error type of a model whose rules do not hold; its context lists one message per rule as `problems`."""

_QUOTED = 60


def _add_rules(schema: dict[str, Any], model: type[Any]) -> None:
    for rule in model.rules:
        rule.add_to(schema)


class Model(BaseModel):
    """A frozen part of a resource: camelCase in manifests, snake_case here; unknown fields are refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=to_camel,
        validate_by_alias=True,
        validate_by_name=True,
        serialize_by_alias=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        json_schema_extra=_add_rules,
    )

    rules: ClassVar[tuple[Rule, ...]] = ()
    """Rules about several fields; also part of the generated schema."""

    @model_validator(mode="after")
    def _obey_rules(self) -> Self:
        broken = [rule.message for rule in self.rules if rule.holds is not None and not rule.holds(self)]
        if broken:
            raise PydanticCustomError(BROKEN_RULES, "{text}", {"problems": broken, "text": "; ".join(broken)})
        return self

    def as_manifest(self) -> dict[str, Any]:
        """Returns this part as in a manifest: JSON types, camelCase, without fields that have no value."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


def quote(value: object) -> str:
    """Formats a value for an error message: text is quoted, and long values are cut."""
    try:
        text = repr(value[:_QUOTED] if isinstance(value, str) else value)
    except (RecursionError, ValueError):
        # nested too deeply, or a number of too many digits
        text = f"this {type(value).__name__}"
    return text if len(text) <= _QUOTED else f"{text[: _QUOTED - 1]}…"


@dataclass(frozen=True, slots=True)
class Text:
    """Constrains a non-empty string field by a pattern that both RE2 and Python understand."""

    pattern: str  # anchored at both ends
    max_length: int
    what: str  # a description of the pattern, for the error message

    def check(self, value: str) -> str:
        """Returns the value; `ValueError` if it is empty, too long or does not match."""
        if not 1 <= len(value) <= self.max_length or not re.fullmatch(self.pattern, value):
            raise ValueError(f"{quote(value)} is not {self.what}")
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Checks the pattern after the field is known to be a string."""
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Adds pattern and bounds to the field's schema."""
        return handler(schema) | {"minLength": 1, "maxLength": self.max_length, "pattern": self.pattern}


Int = Annotated[int, Strict()]
"""A whole number; text and booleans are refused."""

Number = Annotated[float, Strict()]
"""A number; text and booleans are refused."""

Bool = Annotated[bool, Strict()]
"""`true` or `false`; text and numbers are refused."""

DnsLabel = Annotated[
    str,
    Text(
        pattern="^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
        max_length=63,
        what="a DNS label (at most 63 of a-z, 0-9 and '-', with a letter or digit at both ends)",
    ),
]
"""A name that fits a label value, a host name and a part of a key."""
