"""Answers of the API server: what is nested too deeply is cut off, and everything else is there."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentstream_operator.cluster.answers import DEEPEST, _cut, decode, decode_page
from support.examples import trying

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.text(max_size=5)
    | st.sampled_from(['"\\', "[{"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)
opening = st.lists(
    st.sampled_from([('{"a":', "}"), ("[", "]"), ("[1,", ',"]"]'), ('{"\\"[{":', "}")]), max_size=6
)


def nested(pairs: list[tuple[str, str]], times: int, inner: str) -> str:
    """A value inside of so many times these levels."""
    before, after = "".join(first for first, _ in pairs), "".join(last for _, last in reversed(pairs))
    return before * times + inner + after * times


def depth(value: Any) -> int:
    found, level = [value], 0
    while found := [
        inner
        for each in found
        if isinstance(each, dict | list)
        for inner in (each.values() if isinstance(each, dict) else each)
    ]:
        level += 1
    return level


@trying(100)
@given(values)
def test_what_is_not_deep_is_not_changed(value: Any) -> None:
    text = json.dumps(value).encode()
    assert _cut(text) == text


@trying(100)
@given(opening, st.integers(1, 2_000), values)
def test_whatever_is_deep_is_cut_where_it_is_too_deep(
    pairs: list[tuple[str, str]], times: int, inner: Any
) -> None:
    text = json.dumps(inner)
    deep = f'{{"before": {text}, "deep": {nested(pairs, times, text)}, "after": {text}}}'.encode()
    found = json.loads(_cut(deep))
    assert (found["before"], found["after"]) == (inner, inner)
    assert depth(found) <= DEEPEST
    assert decode(deep).keys() == found.keys()


@pytest.mark.parametrize("pair", [("[", "]"), ('{"a":', "}")])
@pytest.mark.parametrize("levels", [900, 1_000, 3_000, 10_000, 200_000])
def test_an_object_of_any_depth_is_one_of_its_page(pair: tuple[str, str], levels: int) -> None:
    page = '{"metadata": {"resourceVersion": "7"}, "items": [{"x": 1}, {"x": %s, "y": 2}, {"x": 3}]}'
    found = list(decode_page((page % nested([pair], levels, "1")).encode()))
    assert [found[0], found[1]["y"], found[2]] == [{"x": 1}, 2, {"x": 3}]
    # it is still deeper than a resource may be
    assert depth(found[1]) >= min(levels, DEEPEST - 2)


@pytest.mark.parametrize("text", [b"", b"[", b"{]", b"[" * 3_000, b"[" * 3_000 + b"}" * 3_000, b'["' * 3_000])
def test_what_is_not_json_is_an_error(text: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode(text)
