"""The description of the API: examples are what their schemas say, and the page lists every call."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from agentstream_operator.queue_api.app import application
from agentstream_operator.queue_api.events import LiveViews
from agentstream_operator.reconcile.state.index import ResourceIndex
from support.asking import ask
from support.queue_api import JANE, Granted, MemoryReplays, TokensAreNames, nothing_there

PAGE = Path(__file__).parents[3] / "docs" / "api.md"
EXPLAINED = (401, 403, 404, 409, 413, 422, 429, 503)


@pytest.fixture
async def described() -> Any:
    sources = nothing_there(ResourceIndex())
    app = application(sources, MemoryReplays(), TokensAreNames(), Granted(), LiveViews())
    return (await ask(app, "GET", "/openapi.json", headers=JANE)).json


def operations(described: Any) -> Iterator[tuple[str, str, Any]]:
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def problems_of(described: Any, schema: Any, example: object) -> list[str]:
    """What is wrong with an example; also fields that its schema does not know."""
    strict = {
        name: {"additionalProperties": False, **found}
        for name, found in described["components"]["schemas"].items()
    }
    whole = {**schema, "components": {"schemas": strict}}
    checks = Draft202012Validator(whole, format_checker=Draft202012Validator.FORMAT_CHECKER)
    return [f"{error.json_path}: {error.message}" for error in checks.iter_errors(example)]


def contents(operation: Any) -> Iterator[tuple[str, Any]]:
    if "requestBody" in operation:
        yield "body", operation["requestBody"]["content"]["application/json"]
    for status, response in operation["responses"].items():
        for content in response.get("content", {}).values():
            yield status, content


async def test_every_body_and_every_answer_has_an_example_that_fits_its_schema(described: Any) -> None:
    wrong = {
        (method, path, which): found
        for method, path, operation in operations(described)
        for which, content in contents(operation)
        if "example" not in content
        or (found := problems_of(described, content["schema"], content["example"]))
    }
    assert not wrong


async def test_every_parameter_that_must_be_given_has_an_example_that_fits(described: Any) -> None:
    given = [
        (path, parameter)
        for _, path, operation in operations(described)
        for parameter in operation.get("parameters", ())
    ]
    assert not [(path, p["name"]) for path, p in given if p["required"] and "example" not in p]
    wrong = {
        (path, p["name"]): found
        for path, p in given
        if "example" in p and (found := problems_of(described, p["schema"], p["example"]))
    }
    assert not wrong


async def test_an_example_of_a_problem_has_its_status_and_a_remedy(described: Any) -> None:
    seen = set()
    for _, _, operation in operations(described):
        for status, response in operation["responses"].items():
            for media_type, content in response.get("content", {}).items():
                if media_type == "application/problem+json":
                    assert content["example"]["status"] == int(status)
                    assert content["example"]["remedy"]
                    seen.add(int(status))
    assert seen >= set(EXPLAINED)


async def test_the_page_lists_every_call_with_its_parameters_and_rights(described: Any) -> None:
    rows = re.findall(
        r"^\| `(GET|POST|PATCH|DELETE) (/[^`?]*)(?:\?([^`]*))?`.*\| (.*) \|$", PAGE.read_text(), re.MULTILINE
    )
    page = {
        (method, path): (set(re.findall(r"(\w+)=", query)), re.findall(r"`([^`]*)`", needs))
        for method, path, query, needs in rows
    }
    assert page.keys() == {(method, path) for method, path, _ in operations(described)}
    for method, path, operation in operations(described):
        query = {p["name"] for p in operation.get("parameters", ()) if p["in"] == "query"}
        wanted = (query, operation["x-agentstream-access"])
        if path != "/events":
            assert page[method, path] == wanted, (method, path)
