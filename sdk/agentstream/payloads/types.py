"""Types of payloads, and how they are converted to JSON objects and back.

A payload is a JSON object. In programs it may be a `dict`, a `msgspec.Struct`, a dataclass, a `TypedDict` or
a pydantic model. Pydantic is not imported here: before a program loads it, no value can be one of its models.
"""

from __future__ import annotations

import dataclasses
import sys
import types
import typing
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from agentstream.errors import InvalidPayload, error_text
from agentstream.protocol.contracts import path_of
from agentstream.signals import is_of_signal

if TYPE_CHECKING:
    # type checkers have it; at run time the default is not needed
    from typing_extensions import TypeVar

    Payload = TypeVar("Payload", default=dict[str, Any])
else:
    Payload = typing.TypeVar("Payload")

_RAW = (dict, dict[str, Any], Mapping[str, Any], Any)


def payload_of(value: Any) -> dict[str, Any]:
    """Converts a payload to a JSON object.

    Raises:
        InvalidPayload: it cannot be converted.
    """
    if isinstance(value, dict):
        return value
    if _is_model(type(value)):
        try:
            payload = value.model_dump(mode="json", by_alias=True)
        except Exception as error:  # a serializer of the model may raise anything
            raise InvalidPayload(f"{_name(type(value))} cannot be serialized: {error_text(error)}") from error
    elif isinstance(value, msgspec.Struct) or _is_dataclass(type(value)):
        try:
            payload = msgspec.to_builtins(value, str_keys=True)
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidPayload(f"{_name(type(value))} holds what JSON cannot: {error}") from error
    else:
        payload = None
    if not isinstance(payload, dict):
        raise InvalidPayload(
            f"a payload is a JSON object: a dict, msgspec.Struct, dataclass or pydantic model, "
            f"not {_name(type(value))}"
        )
    return payload


def version_of(value: Any) -> int | None:
    """The `__schema_version__` of a payload's class, or of such a class itself; None without one."""
    version = getattr(value, "__schema_version__", None)
    return version if isinstance(version, int) else None


def json_schema_of(payload_type: Any) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a type of payloads, to be pasted into a contract.

    Raises:
        TypeError: it is no type of payloads.
    """
    reader_of(payload_type)
    if _is_model(payload_type):
        schema = payload_type.model_json_schema()
    else:
        schema = msgspec.json.schema(payload_type)
    # beside a reference, where the type refers to itself
    return {"type": "object", **schema}


def to_type(payload: dict[str, Any], payload_type: type[Payload]) -> Payload:
    """Reads a payload by the rules of JSON: nothing is converted that JSON has a type for.

    Raises:
        InvalidPayload: it does not fit; the message ends with the path of what does not.
        TypeError: the type is none that a payload may have.
    """
    read: Callable[[dict[str, Any]], Payload] = reader_of(payload_type)
    return read(payload)


def reader_of(payload_type: Any) -> Callable[[dict[str, Any]], Any]:
    """Makes a function that converts JSON objects to a type, as `to_type` does.

    Raises:
        TypeError: the type is none that a payload may have.
    """
    if is_raw(payload_type):
        return lambda payload: payload
    if not is_payload_type(payload_type):
        raise TypeError(
            f"a payload is a dict, msgspec.Struct, dataclass, TypedDict or pydantic model, "
            f"not {_name(payload_type)}"
        )
    if _is_model(payload_type):
        return lambda payload: _checked(_read_model, payload, payload_type)
    # raises now if msgspec does not support the type
    msgspec.json.Decoder(payload_type)
    return lambda payload: _checked(_convert, payload, payload_type)


def is_raw(payload_type: Any) -> bool:
    """Whether payloads of a type are the JSON objects themselves."""
    return any(payload_type == raw for raw in _RAW)


def is_payload_type(annotation: Any) -> bool:
    """Whether payloads may have a type."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        # a union of tagged structs
        return all(_is_struct(member) for member in typing.get_args(annotation))
    kind = origin or annotation
    return (
        is_raw(annotation)
        or kind is dict
        or any(fits(kind) for fits in (_is_struct, _is_dataclass, _is_typed_dict, _is_model))
    )


def _convert(payload: dict[str, Any], payload_type: Any) -> Any:
    return msgspec.convert(payload, payload_type, str_keys=True)


def _read_model(payload: dict[str, Any], model: Any) -> Any:
    # from JSON, as a strict model would refuse a string for a time
    return model.model_validate_json(msgspec.json.encode(payload))


def _checked(read: Callable[[dict[str, Any], Any], Any], payload: dict[str, Any], payload_type: Any) -> Any:
    try:
        return read(payload, payload_type)
    except BaseException as error:  # a validator of the type may raise anything
        if is_of_signal(error):
            raise
        what = _first_problem(error) or error_text(error)
        raise InvalidPayload(f"the payload is no {_name(payload_type)}: {what}") from error


def _first_problem(error: BaseException) -> str:
    """The first problem and its path, in the form of msgspec's messages."""
    if isinstance(error, msgspec.ValidationError):
        return str(error)
    pydantic = sys.modules.get("pydantic")
    if pydantic is None or not isinstance(error, pydantic.ValidationError):
        return ""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    return f"{first['msg']} - at `{path_of(first['loc'])}`" if first["loc"] else str(first["msg"])


def _is_struct(kind: Any) -> bool:
    kind = typing.get_origin(kind) or kind
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _is_dataclass(kind: Any) -> bool:
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)


def _is_typed_dict(kind: Any) -> bool:
    # that of typing_extensions, too
    return isinstance(kind, type) and issubclass(kind, dict) and hasattr(kind, "__total__")


def _is_model(kind: Any) -> bool:
    pydantic = sys.modules.get("pydantic")
    return pydantic is not None and isinstance(kind, type) and issubclass(kind, pydantic.BaseModel)


def _name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind)
