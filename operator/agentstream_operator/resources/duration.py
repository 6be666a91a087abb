"""Durations in the format of Go and Kubernetes: `24h`, `1h30m`, `500ms`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from .model import quote
from .rules import Rule

PATTERN = "^([0-9]+(ms|s|m|h))+$"
MAX_LENGTH = 32
LONGEST = "87600h"
"""Ten years; CEL represents at most 292."""

_UNITS = {"h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}
_PART = re.compile("([0-9]+)(ms|s|m|h)")
_LONGEST_MS = 87_600 * _UNITS["h"]


@dataclass(frozen=True, order=True, slots=True)
class Duration:
    """A length of time, exact to the millisecond; `ValueError` if it is negative or above ten years."""

    milliseconds: int

    def __post_init__(self) -> None:
        if not 0 <= self.milliseconds <= _LONGEST_MS:
            raise ValueError(f"a duration must be between 0s and {LONGEST}")

    @property
    def seconds(self) -> float:
        """Its whole length in seconds."""
        return self.milliseconds / 1_000

    def __str__(self) -> str:
        return format_duration(self)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Takes a string or a Duration; becomes a string in manifests."""
        return core_schema.no_info_plain_validator_function(
            _validate, serialization=core_schema.to_string_ser_schema(when_used="always")
        )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Describes a string with a pattern; `format: duration` would promise fractions and signs, too."""
        out: JsonSchemaValue = {"type": "string", "minLength": 2, "maxLength": MAX_LENGTH, "pattern": PATTERN}
        at_most(LONGEST).add_to(out)
        return out


def _validate(value: Any) -> Duration:
    return value if isinstance(value, Duration) else parse_duration(value)


def parse_duration(text: str) -> Duration:
    """Parses a sum of whole numbers with the units `h`, `m`, `s` and `ms`; `ValueError` if it is invalid."""
    if not isinstance(text, str) or len(text) > MAX_LENGTH or not re.fullmatch(PATTERN, text):
        raise ValueError(f"{quote(text)} is not a duration (write e.g. 24h, 1h30m)")
    total = sum(int(count) * _UNITS[unit] for count, unit in _PART.findall(text))
    if total > _LONGEST_MS:
        raise ValueError(f"must be at most {LONGEST}")
    return Duration(total)


def format_duration(duration: Duration) -> str:
    """Formats a duration with the largest units first: 90 minutes are `1h30m`."""
    rest = duration.milliseconds
    parts = []
    for unit, length in _UNITS.items():
        count, rest = divmod(rest, length)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


def at_least(text: str) -> Rule:
    """Builds the rule that a duration is not shorter than this."""
    cel, limit = f"duration(self) >= duration('{text}')", parse_duration(text)
    return Rule(cel, f"must be at least {text}", lambda duration: duration >= limit)


def at_most(text: str) -> Rule:
    """Builds the rule that a duration is not longer than this."""
    cel, limit = f"duration(self) <= duration('{text}')", parse_duration(text)
    return Rule(cel, f"must be at most {text}", lambda duration: duration <= limit)
