"""Contracts on the server: their fields, and what checks payloads against a JSON Schema."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from agentstream.errors import SettingsError

if TYPE_CHECKING:
    from jsonschema_rs import Draft202012Validator

FIRST_VERSION = 1
"""The version of a payload whose message names none."""

REMEDY = "pip install 'agentstream[contracts]'"


def field_of(message_type: str, version: int) -> str:
    """The field of the contracts hash for payloads of a type and version: `<type>@<version>`."""
    return f"{message_type}@{version}"


def validator(schema: Any) -> Draft202012Validator:
    """What checks payloads against a schema. Values stay out of what it says is wrong.

    Raises:
        SettingsError: what checks schemas is not installed.
        ValueError: it is no JSON Schema (draft 2020-12), or refers to something outside of it.
    """
    try:
        from jsonschema_rs import Draft202012Validator  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise SettingsError(f"payloads on this stream have contracts; to check them: {REMEDY}") from error
    return Draft202012Validator(schema, offline=True, mask="the value")


def path_of(steps: Iterable[str | int]) -> str:
    """The way to a value within a payload, such as `$.parts[0].doc`."""
    return "$" + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)
