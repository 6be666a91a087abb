"""Whatever a manifest holds, parsing gives a resource, or an error that fits into lines of a log or a status.

`AGENTSTREAM_EXAMPLES=10000` tries ten thousand manifests of each property.
"""

from __future__ import annotations

import copy
import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentstream_operator.resources.parse import AnyResource, InvalidResource, parse_resource
from support.examples import trying
from unit.resources.manifests import a_group, a_stream, a_template, groups, streams

LONGEST = 1_000
"""Characters of a line of an error."""

SLOWEST = 5.0
"""Seconds of work for one manifest, on a machine that is busy with others."""


def nested(levels: int, kind: str) -> Any:
    """A value of so many levels."""
    value: Any = 1
    for _ in range(levels):
        value = [value] if kind == "list" else {"a": value}
    return value


_deep = st.builds(
    nested, st.sampled_from([1, 60, 65, 200, 900, 3_000, 20_000]), st.sampled_from(["list", "map"])
)
_large = st.builds(
    lambda count, part: [copy.copy(part) for _ in range(count)],
    st.sampled_from([100, 5_000, 250_000]),
    st.sampled_from([0, "", {}, [], None]),
)
_scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([10**400, -(10**400), 2**63, 2**64, 1e308, float("inf"), float("-inf"), float("nan")]),
    st.floats(),
    st.text(),
    st.sampled_from(["a\nb", "\r\n", "\x00", "\x1b[2J", "\u2028", "\ud800", "x" * 100_000, "9" * 5_000]),
)  # fmt: skip
anything = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
hostile = st.one_of(anything, _scalars, _deep, _large)


def everywhere(value: Any) -> list[tuple[Any, Any]]:
    """Every place in a manifest: what holds it, and its key."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, item in items for place in ((value, key), *everywhere(item))]


@st.composite
def spoilt(draw: st.DrawFn) -> Any:
    """A manifest that was valid, or nearly, with anything in places of it."""
    manifest = copy.deepcopy(draw(streams | groups))
    manifest |= draw(st.sampled_from([{}, {"status": {"conditions": [], "observedGeneration": 1}}]))
    manifest["metadata"] |= draw(
        st.sampled_from([{}, {"annotations": {"a": "b"}, "finalizers": ["a"], "uid": "u", "generation": 1}])
    )
    places = everywhere(manifest)
    for _ in range(draw(st.integers(1, 3))):
        within, key = draw(st.sampled_from(places))
        match draw(st.sampled_from(["value", "field"])):
            case "field" if isinstance(within, dict):
                within[draw(st.text() | st.just("x\n" * 50_000))] = draw(hostile)
            case _:
                within[key] = draw(hostile)
    return manifest


def parsed(manifest: Any) -> AnyResource | None:
    """The resource, or None where the manifest is none; fails where the error is not what it has to be."""
    began = time.process_time()
    try:
        return parse_resource(manifest)
    except InvalidResource as error:
        lines = (error.subject, *error.problems)
    finally:
        assert time.process_time() - began < SLOWEST
    assert len(lines) > 1
    for line in lines:
        assert line.isprintable(), line[:LONGEST]
        assert 0 < len(line) <= LONGEST
    return None


@trying(150)
@given(spoilt())
def test_a_manifest_with_anything_anywhere_is_a_resource_or_an_error_of_a_line(manifest: Any) -> None:
    parsed(manifest)


@trying(100)
@given(hostile)
def test_what_is_no_manifest_at_all_is_an_error_of_a_line(value: Any) -> None:
    assert parsed(value) is None


@trying(50)
@given(hostile, hostile, hostile)
def test_names_and_kinds_may_be_anything(kind: Any, name: Any, namespace: Any) -> None:
    assert parsed({**a_stream(), "kind": kind}) is None or kind == "AgentStream"
    parsed({**a_stream(), "metadata": {"name": name, "namespace": namespace}})
    assert parsed({"kind": kind, "apiVersion": name, "metadata": namespace}) is None


VALID = [
    a_stream(contracts=[{"type": "event", "schema": {"type": "object"}}], retention={"minAge": "1h"}),
    a_group(template=a_template(env=[{"name": "A", "value": "b"}]), autoscaling={"minReplicas": 1}),
]
PLACES = [
    (number, place) for number, manifest in enumerate(VALID) for place in range(len(everywhere(manifest)))
]
POISONS = {
    "deep": nested(3_000, "list"),
    "deeper": nested(20_000, "map"),
    "large": [{} for _ in range(210_000)],
    "long": "x" * 1_000_000,
    "digits": 10**5_000,
    "lines": "a\nb",
    "half": "\ud800",
    "nan": float("nan"),
    "key": {"x\n" * 1_000: 1},
}


@pytest.mark.parametrize("poison", POISONS)
def test_a_poison_in_every_place_is_an_error_of_a_line(poison: str) -> None:
    for number, place in PLACES:
        manifest = copy.deepcopy(VALID[number])
        within, key = everywhere(manifest)[place]
        within[key] = POISONS[poison]
        parsed(manifest)


def test_what_the_tests_spoil_is_valid() -> None:
    assert [parsed(json.loads(json.dumps(manifest))) is not None for manifest in VALID] == [True, True]
