"""What a manifest changes: the fields, and what they mean for messages."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentstream_operator.plan.changes import (
    Act,
    FieldChange,
    PlannedResource,
    StreamNow,
    Trial,
    change_of,
    differences,
)
from agentstream_operator.resources.meta import ResourceKey
from support.examples import examples
from unit.resources.manifests import groups, mutated, replays, streams

STREAM, GROUP = ResourceKey("AgentStream", "team", "tasks"), ResourceKey("ConsumerGroup", "team", "coder")
REPLAY = ResourceKey("StreamReplay", "team", "again")
UNKNOWN = StreamNow()
REF = {"streamRef": {"name": "tasks"}}
TEMPLATE = {"spec": {"containers": [{"name": "c", "image": "a:1"}]}}
NEWER = {"spec": {"containers": [{"name": "c", "image": "a:2"}]}}


def change(
    key: ResourceKey,
    before: dict[str, Any] | None,
    after: dict[str, Any] | None,
    now: StreamNow = UNKNOWN,
) -> PlannedResource:
    more = REF if key is GROUP else {}
    specs = [None if spec is None else {"spec": {**more, **spec}} for spec in (before, after)]
    return change_of(Trial(key, *specs), now)


@pytest.mark.parametrize(
    ("key", "before", "after", "means"),
    [
        (
            STREAM,
            {"retention": {"minAge": "24h"}},
            {"retention": {"minAge": "1h"}},
            ["settled messages older than 1h are removed for good; the oldest one is 23h5m old"],
        ),
        (STREAM, {"retention": {"minAge": "1h"}}, {"retention": {"minAge": "24h"}}, []),
        (
            STREAM,
            {},
            {"retention": {"maxLength": 10}},
            ["the smaller limit holds at once, by onFull: TrimAcknowledged; the stream has 1,200 messages"],
        ),
        (
            STREAM,
            {},
            {"retention": {"onFull": "TrimOldest"}},
            ["at a limit, the oldest messages are removed, also those nobody has handled"],
        ),
        (
            STREAM,
            {"producers": ["a", "b"]},
            {"producers": ["b", "c"]},
            ["may not send any more: a", "may send from now on: c"],
        ),
        (
            STREAM,
            {},
            {"signing": {"policy": "Require"}},
            ["messages without a valid signature become dead letters"],
        ),
        (
            STREAM,
            {"maxMessageBytes": 4096},
            {"maxMessageBytes": 2048},
            ["messages above 2,048 bytes are refused; those there become dead letters"],
        ),
        (STREAM, {}, {"deletionPolicy": "Delete"}, ["deleting the resource will delete its messages"]),
        (STREAM, {}, {"broadcast": True}, ["broadcasts are sent to it"]),
        (GROUP, {}, {"suspend": True}, ["it has no consumers, and messages wait"]),
        (
            GROUP,
            {"template": TEMPLATE},
            {"template": NEWER},
            ["its consumers are replaced; what they hold is handled, or delivered again"],
        ),
        (
            GROUP,
            {},
            {"delivery": {"maxDeliveries": 2}},
            ["what has failed 2 times is dead at its next failure"],
        ),
        (
            GROUP,
            {},
            {"deadLetter": {"enabled": False}},
            ["nothing becomes a dead letter: what fails is tried for ever"],
        ),
        (
            GROUP,
            {},
            {"deadLetter": {"minAge": "1h"}},
            ["dead letters older than 1h are removed for good"],
        ),
        (GROUP, {}, {"deliver": "All"}, ["it gets every message"]),
        (
            GROUP,
            {},
            {"deletionPolicy": "Delete"},
            ["deleting the resource will delete the group and what it has not settled"],
        ),
    ],
)
def test_a_change_says_what_it_means(
    key: ResourceKey, before: dict[str, Any], after: dict[str, Any], means: list[str]
) -> None:
    found = change(key, before, after, StreamNow(1_200, 83_142.0))
    assert (found.act, list(found.means)) == (Act.CHANGE, means)
    assert found.fields


@pytest.mark.parametrize(
    ("key", "spec", "first"),
    [
        (
            STREAM,
            {"producers": ["a"]},
            "makes the stream {team.tasks}, or takes over one that is there with its messages",
        ),
        (
            GROUP,
            {},
            "what is sent from now on (startFrom: End)",
        ),
        (
            GROUP,
            {"startFrom": "Beginning"},
            "all 1,200 messages that the stream has (startFrom: Beginning)",
        ),
        (
            GROUP,
            {"startFrom": "1-0"},
            "the messages of the stream from 1-0 on",
        ),
        (
            REPLAY,
            {"groupRef": {"name": "coder"}, "from": {"source": "Stream"}},
            "gives messages to coder once more: `agentstream replay coder --dry-run` counts them",
        ),
        (
            REPLAY,
            {
                "groupRef": {"name": "coder"},
                "from": {"source": "DeadLetters"},
                "action": "Drop",
                "select": {"reasons": ["a"]},
            },
            "removes dead letters of coder for good",
        ),
    ],
)
def test_a_creation_says_what_it_means(key: ResourceKey, spec: dict[str, Any], first: str) -> None:
    found = change(key, None, spec, StreamNow(1_200))
    if key is GROUP:
        first = f"a new group gets {first}; one that is there goes on where it was"
    assert (found.act, found.means) == (Act.CREATE, (first,))


def test_a_group_without_a_stream_is_said_as_its_condition_says_it() -> None:
    found = change_of(Trial(GROUP, None, {"spec": REF}, orphan=True), StreamNow())
    assert found.means[1].startswith("StreamMissing: ")


@pytest.mark.parametrize(
    ("key", "spec", "means"),
    [
        (STREAM, {}, "the stream {team.tasks} stays with its messages, and is trimmed no more"),
        (STREAM, {"deletionPolicy": "Delete"}, "the stream {team.tasks} is deleted with its messages"),
        (
            STREAM,
            {"deletionPolicy": "DeleteIfEmpty"},
            "the stream {team.tasks} is deleted, unless a group has messages left",
        ),
        (GROUP, {}, "the group coder stays where it is, and has no consumers any more"),
        (
            GROUP,
            {"deletionPolicy": "Delete"},
            "the group coder is deleted, and what it has not settled with it",
        ),
    ],
)
def test_a_removal_says_what_becomes_of_the_data(key: ResourceKey, spec: dict[str, Any], means: str) -> None:
    assert change(key, spec, None).means == (means,)


def test_what_is_refused_says_why_and_nothing_else() -> None:
    found = change_of(Trial(STREAM, None, {"spec": {}}, ("no",)), StreamNow())
    assert (found.act, found.means, found.fields) == (Act.REFUSE, ("no",), ())


def test_fields_are_compared_as_deep_as_they_are_alike() -> None:
    before = {"a": {"b": 1, "c": [{"d": 1}, {"d": 2}]}, "e": [1]}
    after = {"a": {"b": 1, "c": [{"d": 1}, {"d": 3}]}, "e": [1, 2], "f": {}}
    assert list(differences(before, after, "spec")) == [
        FieldChange("spec.a.c[1].d", 2, 3),
        FieldChange("spec.e", [1], [1, 2]),
        FieldChange("spec.f", None, {}),
    ]


def test_labels_and_annotations_count_and_what_the_operator_writes_does_not() -> None:
    before = {"spec": {}, "metadata": {"labels": {"a": "1"}, "resourceVersion": "1"}, "status": {}}
    after = {"spec": {}, "metadata": {"labels": {"a": "2"}, "resourceVersion": "2", "generation": 2}}
    found = change_of(Trial(STREAM, before, after), StreamNow())
    assert found.fields == (FieldChange("metadata.labels.a", "1", "2"),)


def without_nulls(value: Any) -> Any:
    """A manifest as the API server keeps it."""
    if isinstance(value, dict):
        return {name: without_nulls(part) for name, part in value.items() if part is not None}
    return [without_nulls(part) for part in value] if isinstance(value, list) else value


_ANY = st.one_of(streams, groups, replays, mutated(streams), mutated(groups), mutated(replays)).map(
    lambda manifest: {"kind": manifest["kind"], "spec": without_nulls(manifest.get("spec"))}
)


@settings(max_examples=examples(200))
@given(_ANY, _ANY, st.builds(StreamNow, st.none() | st.integers(0), st.none() | st.floats(0, 1e9)))
def test_whatever_the_manifests_are_a_change_is_told(
    before: dict[str, Any], after: dict[str, Any], now: StreamNow
) -> None:
    key = ResourceKey(after["kind"], "team", "x")
    old, new = ({"spec": each["spec"] if isinstance(each["spec"], dict) else {}} for each in (before, after))
    assert change_of(Trial(key, old, old), now).act is Act.NOTHING
    found = change_of(Trial(key, old, new), now)
    assert (found.act is Act.NOTHING) == (old == new)
    assert all("\n" not in text for text in found.means)
    assert change_of(Trial(key, None, new), now).act is Act.CREATE
    assert change_of(Trial(key, old, None), now).act is Act.REMOVE
