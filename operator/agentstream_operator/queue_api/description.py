"""The description of the API, as OpenAPI 3.1: the calls, their errors, and who may send them."""

from __future__ import annotations

from collections.abc import Iterator
from http import HTTPStatus
from importlib.metadata import version
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from agentstream_operator.queue_api.documents import Problem
from agentstream_operator.queue_api.examples import ANSWERS, NAMES, PROBLEMS, REQUESTS
from agentstream_operator.queue_api.problems import MEDIA_TYPE

TITLE: Final = "AgentStream queues"
_TEXT: Final = """What is in the queues of AgentStream: backlogs, messages, dead letters, replays.

Numbers that are not known are `null`, with `known: false`, and never 0. A page says which entries were looked
at, and its `cursor` goes on from there. Errors are `application/problem+json` and say what to do.
"""
_SCHEMES: Final = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "A token of a user or ServiceAccount of the cluster, or that of "
        "`.agentstream/console`.",
    },
    "proxy": {
        "type": "mutualTLS",
        "description": "The certificate of a trusted proxy, which says in headers who asks.",
    },
}
_ALWAYS = (400, 401, 403, 413, 414, 422, 429, 500, 503)
_NAMED = 404
_TAKEN = 409
_METHODS = frozenset({"get", "post", "patch", "delete"})


def describe(app: FastAPI) -> dict[str, Any]:
    """Builds the description."""
    found = get_openapi(
        title=TITLE, version=version("agentstream-operator"), description=_TEXT, routes=app.routes
    )
    components = found.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    problem = Problem.model_json_schema(by_alias=True, ref_template="#/components/schemas/{model}")
    schemas.update(problem.pop("$defs", {}))
    schemas["Problem"] = problem
    components["securitySchemes"] = dict(_SCHEMES)
    found["security"] = [{name: []} for name in _SCHEMES]
    for path, operation in _operations(found):
        for parameter in operation.get("parameters", ()):
            parameter["schema"] = _given(parameter["schema"])
            if parameter["name"] in NAMES:
                parameter["example"] = NAMES[parameter["name"]]
        responses = operation["responses"]
        for status in _errors(path, operation):
            refusal = PROBLEMS[status]
            responses[str(status)] = {
                "description": HTTPStatus(status).phrase,
                "headers": {name: {"schema": {"type": "string"}} for name in refusal.headers},
                "content": {
                    MEDIA_TYPE: {
                        "schema": {"$ref": "#/components/schemas/Problem"},
                        "example": refusal.problem.model_dump(mode="json"),
                    }
                },
            }
        operation["responses"] = dict(sorted(responses.items()))
        _add_examples(operation)
    return found


def _add_examples(operation: dict[str, Any]) -> None:
    name = operation["operationId"]
    if name in REQUESTS:
        operation["requestBody"]["content"]["application/json"]["example"] = REQUESTS[name]
    for status, response in operation["responses"].items():
        if (name, int(status)) in ANSWERS:
            for content in response["content"].values():
                content["example"] = ANSWERS[name, int(status)]


def _operations(found: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in found["paths"].items():
        for method, operation in methods.items():
            if method in _METHODS:
                yield path, operation


def _given(schema: dict[str, Any]) -> dict[str, Any]:
    """Describes a parameter that is there: left out, it is null, but null cannot be sent."""
    kinds = [kind for kind in schema.pop("anyOf", ()) if kind != {"type": "null"}]
    return {**kinds[0], **schema} if kinds else schema


def _errors(path: str, operation: dict[str, Any]) -> Iterator[int]:
    yield from _ALWAYS
    if "{" in path or "requestBody" in operation:
        yield _NAMED
    if "requestBody" in operation:
        yield _TAKEN
