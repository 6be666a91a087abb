"""What the page about the guarantees says is proved by tests that there are."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "guarantees.md"


def promises() -> list[tuple[str, str]]:
    """Each promise, and what the page says proves it."""
    rows = [line.strip("| ").split(" | ") for line in PAGE.read_text(encoding="utf-8").splitlines()]
    return [(cells[0], cells[2]) for cells in rows if len(cells) == 3 and cells[0].startswith("**")]


@cache
def functions_of(path: Path) -> frozenset[str]:
    """The names of the functions in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return frozenset(node.name for node in tree.body if isinstance(node, functions))


def test_there_are_promises() -> None:
    assert len(promises()) > 30


@pytest.mark.parametrize(("promise", "proof"), promises(), ids=lambda text: text[:40])
def test_a_promise_names_tests_that_there_are(promise: str, proof: str) -> None:
    named = re.findall(r"`([^`]+)`", proof)
    assert named, f"{promise} is proved by nothing"
    for one in named:
        path, _, test = one.partition("::")
        if path.startswith("e2e/"):
            assert (ROOT / path).exists()
        else:
            assert test, f"name a test, as `{path}::test_…`"
            assert test in functions_of(ROOT / "tests" / path), f"{one} does not exist"
