"""Contracts on the server: names of their fields, their digest, and validators for their JSON Schemas."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from agentstream.errors import SettingsError

if TYPE_CHECKING:
    from jsonschema_rs import Draft202012Validator

FIRST_VERSION = 1
"""The schema version of a payload whose message names none."""

REMEDY = "pip install 'agentstream[contracts]'"


def field_of(message_type: str, version: int) -> str:
    """The field of the contracts hash for payloads of a type and version: `<type>@<version>`."""
    return f"{message_type}@{version}"


def contracts_digest(schemas: Mapping[str, str]) -> str:
    """A digest that changes with the contracts of a stream; empty if there are none.

    Args:
        schemas: JSON Schemas by `<type>@<version>`.
    """
    whole = "\n".join(f"{field} {schemas[field]}" for field in sorted(schemas))
    return hashlib.sha256(whole.encode()).hexdigest()[:16] if schemas else ""


def validator(schema: Any) -> Draft202012Validator:
    """Makes a validator of payloads; its messages quote no values.

    Raises:
        SettingsError: `jsonschema-rs` is not installed.
        ValueError: the schema is no JSON Schema (draft 2020-12), or refers to something outside of it.
    """
    try:
        from jsonschema_rs import Draft202012Validator  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise SettingsError(
            f"the stream has contracts, and jsonschema-rs is not installed to check them: {REMEDY}"
        ) from error
    return Draft202012Validator(schema, offline=True, mask="the value")


def path_of(steps: Iterable[str | int]) -> str:
    """The JSON path of a value within a payload, such as `$.parts[0].doc`."""
    return "$" + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)
