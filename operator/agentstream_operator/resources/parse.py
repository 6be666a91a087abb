"""Parses manifests; errors name the field, the problem and the correction."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date
from difflib import get_close_matches
from typing import Any, get_args

import msgspec
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from .agentstream import AgentStream
from .consumergroup import ConsumerGroup
from .meta import API_VERSION, ObjectMeta
from .model import BROKEN_RULES, quote
from .reasons import ConditionReason, ConditionType
from .status import UNOBSERVED, ReplayPhase
from .streamreplay import StreamReplay

StreamOrGroup = AgentStream | ConsumerGroup
AnyResource = StreamOrGroup | StreamReplay

MAX_DEPTH = 64
"""Levels of nesting of a manifest; the API server takes thousands in a JSON Schema, too many to work with."""

MAX_SIZE = 65_536
"""The largest pod template or JSON Schema, in bytes of its JSON; parsed, it takes twenty times as much."""

_MOST_VALUES = 200_000
"""Values of a manifest: some tenths of a second of work."""

_MOST_PROBLEMS = 20
_LONGEST_SUBJECT, _LONGEST_PROBLEM = 300, 1_000

_MODELS: Mapping[str, type[AnyResource]] = {
    "AgentStream": AgentStream,
    "ConsumerGroup": ConsumerGroup,
    "StreamReplay": StreamReplay,
}
_TYPES = frozenset(str(kind) for kind in ConditionType)
_REASONS = frozenset(str(reason) for reason in ConditionReason)
_PHASES = frozenset(str(phase) for phase in ReplayPhase)


class InvalidResource(ValueError):  # noqa: N818 (it names what is wrong, as its message does)
    """A manifest is not a valid resource.

    Attributes:
        subject: the resource as far as known: `Kind namespace/name`.
        problems: one line each, with the path of the field.
    """

    def __init__(self, subject: str, problems: tuple[str, ...]) -> None:
        self.subject = _line(subject, _LONGEST_SUBJECT)
        self.problems = tuple(_line(problem, _LONGEST_PROBLEM) for problem in problems)
        super().__init__("\n".join(f"{self.subject}: {problem}" for problem in self.problems))


def parse_resource(obj: Mapping[str, Any]) -> AnyResource:
    """Parses a manifest as the API server would, which treats null as absent, in unknown fields, too.

    Conditions of other versions of the operator with unknown types or reasons are dropped.

    Raises:
        InvalidResource: the kind is unknown, or a field is missing, unknown or invalid.
    """
    if not isinstance(obj, Mapping):
        raise InvalidResource("Resource default/?", (f"{quote(obj)} is not a map of fields",))
    subject = _subject(obj)
    kind = obj.get("kind")
    model = _MODELS.get(kind) if isinstance(kind, str) else None
    if model is None:
        raise InvalidResource(subject, (f"kind: {quote(kind)} is not one of {', '.join(_MODELS)}",))
    if obj.get("apiVersion") != API_VERSION:
        problem = f"apiVersion: {quote(obj.get('apiVersion'))} is not supported (write {API_VERSION})"
        raise InvalidResource(subject, (problem,))
    try:
        return _validated(model, obj)
    except _OutOfBoundsError as error:
        raise InvalidResource(subject, (str(error),)) from None
    except ValidationError as error:
        raise InvalidResource(subject, _all_problems(model, error)) from None
    except Exception as error:
        # whatever one resource has, the others are read
        problem = f"cannot be read: {type(error).__name__}: {quote(str(error))}"
        raise InvalidResource(subject, (problem,)) from error


def _validated(model: type[AnyResource], obj: Mapping[str, Any]) -> AnyResource:
    _refuse_large(obj.get("spec"))
    # managed fields alone may be larger than the rest
    manifest = _plain({**obj, "metadata": _read_metadata(obj.get("metadata"))})
    _clean_status(manifest)
    return model.model_validate(manifest, by_alias=True, by_name=False)


def refused_changes(old: AnyResource, new: AnyResource) -> tuple[str, ...]:
    """Returns the API server's errors for a change of a resource: one line per immutable field."""
    return tuple(
        f"spec{rule.field_path}: {rule.message}"
        for rule in new.spec.rules
        if rule.holds_between is not None and not rule.holds_between(old.spec, new.spec)
    )


def _subject(obj: Mapping[str, Any]) -> str:
    metadata = obj.get("metadata")
    metadata = metadata if isinstance(metadata, Mapping) else {}
    found = (obj.get("kind"), metadata.get("namespace"), metadata.get("name"))
    kind, namespace, name = (
        value if isinstance(value, str) else quote(value) if value else "" for value in found
    )
    return f"{kind or 'Resource'} {namespace or 'default'}/{name or '?'}"


def _line(text: str, longest: int) -> str:
    """Makes a line of limited length of a text that may have parts of a manifest."""
    text = text[:longest]
    text = text if text.isprintable() else repr(text)[1:-1]
    return text if len(text) < longest else f"{text[: longest - 1]}…"


class _OutOfBoundsError(ValueError):
    """A value is too large, too deep or no text; the message names the field."""


_METADATA = frozenset(field.alias for field in ObjectMeta.model_fields.values())


def _read_metadata(found: Any) -> Any:
    return {name: found[name] for name in found if name in _METADATA} if isinstance(found, Mapping) else found


def _refuse_large(spec: Any) -> None:
    """Refuses parts that may have any fields and are too large to keep."""
    if not isinstance(spec, Mapping):
        return
    parts = {"template": spec.get("template")}
    contracts = spec.get("contracts")
    if isinstance(contracts, list | tuple):
        schemas = (each.get("schema") for each in contracts if isinstance(each, Mapping))
        parts |= {f"contracts[{place}].schema": schema for place, schema in enumerate(schemas)}
    for name, part in parts.items():
        size = _size(part)
        if size > MAX_SIZE:
            raise _OutOfBoundsError(f"spec.{name}: has {size:,} bytes as JSON; the limit is {MAX_SIZE:,}")


def _size(part: Any) -> int:
    try:
        return len(msgspec.json.encode(part, enc_hook=str))
    except (TypeError, ValueError, RecursionError):
        # nothing that JSON can be; `_plain` says what is wrong
        return 0


def _plain(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Converts a manifest to plain JSON: no fields that are null, times as text, whole numbers as integers.

    YAML reads an unquoted time as such, and the API server keeps `maxLength: 1e6` as it was written. Without
    recursion: the limit of the depth is ours.
    """
    made: dict[str, Any] = {}
    waiting: list[tuple[Any, Any, tuple[int | str, ...]]] = [(made, manifest, ())]
    values = 0
    while waiting:
        into, found, path = waiting.pop()
        values += len(found)
        if len(path) > MAX_DEPTH:
            raise _OutOfBoundsError(f"{_path(path[:4])}: is nested more than {MAX_DEPTH} levels deep")
        if values > _MOST_VALUES:
            raise _OutOfBoundsError(f"{_path(path[:4])}: the resource has more than {_MOST_VALUES:,} values")
        named = isinstance(found, Mapping)
        for key, item in found.items() if named else enumerate(found):
            if named and item is None:
                continue
            value: Any
            if isinstance(item, Mapping | list | tuple):
                value = {} if isinstance(item, Mapping) else []
                waiting.append((value, item, (*path, key)))
            else:
                value = _scalar(item, (*path, key))
            if named:
                into[key] = value
            else:
                into.append(value)
    return made


_EXACT = 2.0**53
_HALF = re.compile("[\ud800-\udfff]")


def _scalar(value: Any, path: tuple[int | str, ...]) -> Any:
    if isinstance(value, date):
        return value.isoformat().replace("+00:00", "Z")
    if value is not None and not isinstance(value, str | int | float):
        raise _OutOfBoundsError(f"{_path(path)}: is a {type(value).__name__}, which JSON does not have")
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
        return int(value)
    if isinstance(value, str) and not value.isascii() and _HALF.search(value):
        raise _OutOfBoundsError(f"{_path(path)}: has half of a pair of surrogates, which is no text")
    return value


def _clean_status(manifest: dict[str, Any]) -> None:
    """Drops words of other versions, and the status of a resource that no operator has seen."""
    status = manifest.get("status")
    if isinstance(status, dict) and status.get("observedGeneration") == UNOBSERVED:
        del manifest["status"]
    if isinstance(status, dict) and isinstance(status.get("conditions"), list):
        status["conditions"] = [
            condition
            for condition in status["conditions"]
            if isinstance(condition, dict)
            and str(condition.get("type")) in _TYPES
            and str(condition.get("reason")) in _REASONS
        ]
    if isinstance(status, dict) and status.get("phase") not in _PHASES:
        status.pop("phase", None)


def _all_problems(model: type[BaseModel], error: ValidationError) -> tuple[str, ...]:
    details = error.errors(include_url=False)[:_MOST_PROBLEMS]
    # a list whose items are wrong is also said to be too short
    parents = {detail["loc"][:depth] for detail in details for depth in range(len(detail["loc"]))}
    return tuple(
        problem for detail in details if detail["loc"] not in parents for problem in _problems(model, detail)
    )


def _problems(model: type[BaseModel], detail: ErrorDetails) -> list[str]:
    where = _path(detail["loc"])
    if detail["type"] == BROKEN_RULES:
        return [f"{where}: {text}" for text in detail["ctx"]["problems"]]
    return [f"{where}: {_text(model, detail)}"]


def _path(loc: tuple[int | str, ...]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).removeprefix(".")


# by pydantic's error type, with its context; {value} is what was written
_TEXTS = {
    "missing": "is required",
    "value_error": "{error}",
    "enum": "{value} is not one of {expected}",
    "greater_than_equal": "must be at least {ge}, not {value}",
    "less_than_equal": "must be at most {le}, not {value}",
    "string_too_short": "must have {min_length} characters or more",
    "string_too_long": "may have at most {max_length} characters",
    "too_short": "must list at least {min_length}",
    "too_long": "may list at most {max_length}",
    "bool_type": "{value} is not true or false",
    "dict_type": "{value} is not a map",
    "float_type": "{value} is not a number",
    "int_type": "{value} is not a whole number",
    "mapping_type": "{value} is not a map",
    "model_type": "{value} is not a map of fields",
    "string_type": "{value} is not text (put it in quotes)",
    "tuple_type": "{value} is not a list",
}


def _text(model: type[BaseModel], detail: ErrorDetails) -> str:
    if detail["type"] == "extra_forbidden":
        return f"unknown field ({_suggestion(model, detail['loc'])})"
    text = _TEXTS.get(detail["type"])
    if text is None:
        return detail["msg"]
    return text.format(value=quote(detail["input"]), **detail.get("ctx", {}))


def _suggestion(model: type[BaseModel], loc: tuple[int | str, ...]) -> str:
    """Suggests a field: a similar one here, the same one elsewhere, or lists all of here."""
    fields = _fields(model)
    *parents, name = (part for part in loc if isinstance(part, str))
    parent = tuple(parents)
    here = [path[-1] for path in fields if path[:-1] == parent]
    if similar := get_close_matches(str(name), here, n=1):
        return f"did you mean {similar[0]}?"
    elsewhere = [".".join(path) for path in fields if path[-1] == name]
    if elsewhere:
        return f"did you mean {elsewhere[0]}?"
    return f"known here: {', '.join(here)}"


def _fields(model: type[BaseModel], parent: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Returns the path of every field of a model, without list positions."""
    paths = []
    for field in model.model_fields.values():
        path = (*parent, field.alias or "")
        paths.append(path)
        for part in _models_in(field.annotation):
            paths += _fields(part, path)
    return paths


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]
