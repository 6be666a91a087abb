"""How the objects that the operator makes are named and found again."""

from __future__ import annotations

from typing import Any

import pytest

from agentstream_operator.cluster.labels import (
    MANAGED_BY,
    OURS,
    deployment_name,
    is_ours,
    secret_name,
)


def test_children_are_named_after_whom_they_are_for() -> None:
    assert (deployment_name("review"), secret_name("coder")) == ("review-consumer", "agentstream-coder")


@pytest.mark.parametrize(
    ("metadata", "ours"),
    [
        ({"labels": {MANAGED_BY: "agentstream", "a": "b"}}, True),
        ({"labels": {MANAGED_BY: "Helm"}}, False),
        ({"labels": {}}, False),
        ({"labels": None}, False),
        ({}, False),
    ],
)
def test_what_is_ours_carries_our_label(metadata: dict[str, Any], *, ours: bool) -> None:
    assert is_ours(metadata) is ours


def test_the_selector_finds_what_is_ours() -> None:
    name, value = OURS.split("=")
    assert is_ours({"labels": {name: value}})
