"""How a manifest is applied for trial: what it leaves out is removed only if it was applied before."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from agentstream_operator.cluster.trial import patch_of
from support.examples import examples

LAST = "kubectl.kubernetes.io/last-applied-configuration"


def merged(live: Any, patch: Any) -> Any:
    """RFC 7396."""
    if not isinstance(patch, dict):
        return patch
    out = dict(live) if isinstance(live, dict) else {}
    for name, value in patch.items():
        if value is None:
            out.pop(name, None)
        else:
            out[name] = merged(out.get(name), value)
    return out


def fields(spec: Any) -> Any:
    """A spec as a set of fields (FieldsV1)."""
    return {f"f:{name}": fields(value) for name, value in spec.items()} if isinstance(spec, dict) else {}


def live_of(spec: dict[str, Any], applied: dict[str, Any], *, by_server: bool) -> dict[str, Any]:
    """A resource with a spec, of which this was applied: by server-side apply, or by kubectl."""
    if by_server:
        entries = [
            {"manager": "helm", "operation": "Apply", "fieldsV1": {"f:spec": fields(applied)}},
            {"manager": "kubectl-scale", "operation": "Update", "fieldsV1": {"f:spec": fields(spec)}},
        ]
        return {"metadata": {"managedFields": entries}, "spec": spec}
    return {"metadata": {"annotations": {LAST: json.dumps({"spec": applied})}}, "spec": spec}


_NAMES = st.sampled_from("abc")
_specs = st.recursive(
    st.integers(0, 3) | st.lists(st.integers(0, 2), max_size=2),
    lambda parts: st.dictionaries(_NAMES, parts, max_size=3),
)
_maps = st.dictionaries(_NAMES, _specs, max_size=3)


@settings(max_examples=examples(300))
@given(_maps, _maps, _maps, st.booleans())
def test_what_is_declared_holds_what_was_applied_goes_and_the_rest_stays(
    declared: dict[str, Any],
    applied: dict[str, Any],
    live: dict[str, Any],
    by_server: bool,  # noqa: FBT001 - hypothesis names its arguments by position
) -> None:
    patch = patch_of({"metadata": {}, "spec": declared}, live_of(live, applied, by_server=by_server))
    _holds(declared, applied, live, merged(live, patch["spec"]))


def _holds(declared: Any, applied: Any, live: Any, after: Any) -> None:
    assert isinstance(after, dict)
    for name, value in declared.items():
        parts = [each.get(name) if isinstance(each, dict) else None for each in (applied, live)]
        if isinstance(value, dict) and isinstance(parts[1], dict):
            _holds(value, parts[0], parts[1], after[name])
        else:
            assert after[name] == value
    for name in live.keys() - declared.keys():
        if isinstance(applied, dict) and name in applied:
            assert name not in after
        else:
            assert after[name] == live[name]
    assert after.keys() <= declared.keys() | live.keys()


def test_labels_and_annotations_are_applied_too_and_that_of_kubectl_stays() -> None:
    before = {"metadata": {"labels": {"a": "1"}, "annotations": {"x": "1"}}}
    annotations = {LAST: json.dumps(before), "x": "1", "other": "1"}
    live = {"metadata": {"labels": {"a": "1", "b": "1"}, "annotations": annotations}, "spec": {}}
    patch = patch_of({"metadata": {"labels": {"c": "1"}}}, live)
    assert patch["metadata"] == {"labels": {"c": "1", "a": None}, "annotations": {"x": None}}


def test_an_annotation_that_anybody_wrote_is_not_trusted() -> None:
    for text in ("{", "[]", "null", '{"spec": 7}', '{"metadata": {"labels": "x"}}'):
        live = {"metadata": {"annotations": {LAST: text}}, "spec": {"a": 1}}
        assert patch_of({"metadata": {}, "spec": {"b": 1}}, live)["spec"] == {"b": 1}
