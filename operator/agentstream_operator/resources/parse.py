"""Parses manifests; errors name the field, the problem and the correction."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from .agentstream import AgentStream
from .consumergroup import ConsumerGroup
from .meta import API_VERSION
from .model import BROKEN_RULES, quote
from .reasons import ConditionReason, ConditionType
from .status import UNOBSERVED

AnyResource = AgentStream | ConsumerGroup

MAX_DEPTH = 100
"""Levels of nesting of a manifest; the API server takes thousands in a JSON Schema, too many to work with."""

_MODELS: Mapping[str, type[AnyResource]] = {"AgentStream": AgentStream, "ConsumerGroup": ConsumerGroup}
_TYPES = frozenset(str(kind) for kind in ConditionType)
_REASONS = frozenset(str(reason) for reason in ConditionReason)


class InvalidResource(ValueError):  # noqa: N818 (it names what is wrong, as its message does)
    """A manifest is not a valid resource.

    Attributes:
        subject: the resource as far as known: `Kind namespace/name`.
        problems: one line each, with the path of the field.
    """

    def __init__(self, subject: str, problems: tuple[str, ...]) -> None:
        super().__init__("\n".join(f"{subject}: {problem}" for problem in problems))
        self.subject = subject
        self.problems = problems


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
        manifest = _plain(obj)
    except _TooDeepError as error:
        raise InvalidResource(subject, (f"{error}: is nested more than {MAX_DEPTH} levels deep",)) from None
    _clean_status(manifest)
    try:
        return model.model_validate(manifest, by_alias=True, by_name=False)
    except ValidationError as error:
        raise InvalidResource(subject, _all_problems(model, error)) from None


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
    namespace, name = metadata.get("namespace") or "default", metadata.get("name") or "?"
    return f"{obj.get('kind') or 'Resource'} {namespace}/{name}"


class _TooDeepError(ValueError):
    """A value is nested too deeply; the message is the field of the spec."""


def _plain(value: Any, path: tuple[int | str, ...] = ()) -> Any:
    """Converts a value to plain JSON: no fields that are null, times as text, whole numbers as integers.

    YAML reads an unquoted time as such, and the API server keeps `maxLength: 1e6` as it was written.
    """
    if len(path) > MAX_DEPTH:
        raise _TooDeepError(_path(path[:4]))
    if isinstance(value, Mapping):
        return {key: _plain(item, (*path, key)) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_plain(item, (*path, place)) for place, item in enumerate(value)]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    return value.isoformat() if isinstance(value, date) else value


def _clean_status(manifest: dict[str, Any]) -> None:
    """Drops conditions of other versions, and the status of a resource that no operator has seen."""
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


def _all_problems(model: type[BaseModel], error: ValidationError) -> tuple[str, ...]:
    details = error.errors(include_url=False)
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
