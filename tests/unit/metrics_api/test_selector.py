"""Label selectors, as the Kubernetes API reads them."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentstream_operator.metrics_api.selector import InvalidSelectorError, parse

LABELS = {"group": "coder", "stream": "tasks"}


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ("", True),
        ("  ", True),
        ("group=coder", True),
        ("group==coder", True),
        ("group = coder , stream = tasks", True),
        ("group=coder,stream=other", False),
        ("group!=coder", False),
        ("group!=other", True),
        ("missing!=x", True),
        ("group", True),
        ("missing", False),
        ("!missing", True),
        ("! group", False),
        ("group in (coder, planner)", True),
        ("group in (planner)", False),
        ("group notin (planner)", True),
        ("group notin (coder,planner)", False),
        ("missing notin (x)", True),
        ("stream in (tasks),group=coder", True),
        ("in in (in)", False),
        ("group=", False),
        ("example.com/group=x", False),
    ],
)
def test_it_selects_what_is_as_required(text, matches):
    assert parse(text).matches(LABELS) is matches


@pytest.mark.parametrize(
    "text",
    [
        "=",
        "!",
        "!!a",
        "a=b=c",
        "a=b,",
        ",a=b",
        "a,,b",
        "a in",
        "a in x",
        "a in (x",
        "a in (x y)",
        "a in ((x))",
        "a > 1",
        "-a",
        "a-",
        "a=-b",
        "a b",
        "A/b",
        "a=ä",
        f"a={'b' * 64}",
    ],
)
def test_what_is_no_selector_is_refused(text: str) -> None:
    with pytest.raises(InvalidSelectorError):
        parse(text)


@pytest.mark.parametrize(
    ("text", "only"),
    [
        ("group=coder,stream=tasks", "coder"),
        ("group in (coder)", "coder"),
        ("group in (coder,planner)", None),
        ("group!=coder", None),
        ("group", None),
        ("stream=tasks", None),
        ("", None),
    ],
)
def test_the_one_value_that_is_left_is_known(text: str, only: str | None) -> None:
    assert parse(text).only("group") == only


@given(st.text(alphabet="ab=!,() in/.-\t\x00é", max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(InvalidSelectorError):
        assert parse(text).matches(LABELS) in {True, False}
