"""How a stream that exists is declared: valid resources, and nothing that is there is lost."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentstream_operator.plan.takeover import LARGEST, Declared, ExistingGroup, ExistingStream, take_over
from agentstream_operator.resources.agentstream import AgentStream, ManagementPolicy
from agentstream_operator.resources.consumergroup import ConsumerGroup
from agentstream_operator.resources.parse import InvalidResource, parse_resource
from support.examples import examples

NOW = 1_796_000_000_000
DAY = 86_400_000
ROOT = Path(__file__).parents[3]


def stream_of(found: tuple[Declared, ...]) -> AgentStream:
    assert found[0].manifest is not None
    resource = parse_resource(found[0].manifest)
    assert isinstance(resource, AgentStream)
    return resource


def existing(**more: Any) -> ExistingStream:
    return ExistingStream(**{"now": NOW, "length": 3, "first": f"{NOW - DAY}-0", **more})


@pytest.mark.parametrize(
    ("key", "namespace", "name"),
    [
        ("{team-a.tasks}", "team-a", "tasks"),
        ("orders", "default", "orders"),
        ("shop:Orders_v2", "default", "shop-orders-v2"),
        ("{shop}:orders", "default", "shop-orders"),
        ("___", "default", "stream"),
        ("a" * 70, "default", "a" * 63),
    ],
)
def test_names_are_made_of_the_key_and_the_key_stays(key: str, namespace: str, name: str) -> None:
    stream = stream_of(take_over(existing(), key, None))
    assert (stream.metadata.namespace, stream.metadata.name, stream.stream_key) == (namespace, name, key)
    assert stream_of(take_over(existing(), key, "mine")).metadata.namespace == "mine"


@pytest.mark.parametrize("key", ["a b", "{a}{b}", "{a.b}:retry:c", "agentstream:x", "k" * 201, "ä", ""])
def test_a_key_that_no_stream_can_have_is_refused(key: str) -> None:
    with pytest.raises(InvalidResource):
        take_over(existing(), key, None)


_groups = st.builds(
    ExistingGroup,
    name=st.from_regex("[a-z0-9]([-a-z0-9]{0,8}[a-z0-9])?", fullmatch=True) | st.text(max_size=8),
    last=st.sampled_from(["0-0", "5-1", f"{NOW}-7"]),
    pending=st.integers(0, 10),
    consumers=st.tuples(st.text(max_size=5)),
)
_streams = st.builds(
    ExistingStream,
    now=st.just(NOW),
    length=st.integers(0, 10**12),
    first=st.none() | st.integers(0, 2 * NOW).map("{}-0".format),
    groups=st.lists(_groups, max_size=4, unique_by=lambda group: group.name).map(tuple),
    owner=st.dictionaries(st.sampled_from(["installation", "namespace", "name"]), st.text(max_size=5)),
    looked=st.integers(0, 500),
    foreign=st.integers(0, 500),
    oversized=st.integers(0, 1),
    senders=st.lists(st.text(max_size=5) | st.sampled_from(["boss", "b-2"]), unique=True).map(tuple),
)


@settings(max_examples=examples(200))
@given(_streams, st.sampled_from(["orders", "{team-a.tasks}", "a:b"]))
def test_whatever_there_is_the_resources_are_valid_and_keep_it(found: ExistingStream, key: str) -> None:
    declared = take_over(found, key, None)
    stream = stream_of(declared)
    retention = stream.spec.retention
    if stream.spec.management_policy is ManagementPolicy.MANAGED:
        assert found.oversized == 0
        if found.first is not None:
            assert retention.min_age.milliseconds > NOW - int(found.first.partition("-")[0])
    assert retention.max_length >= min(found.length, 10**9)
    for group, each in zip(found.groups, declared[1:], strict=True):
        if each.manifest is None:
            assert re.search("cannot be declared", each.notes[0])
            continue
        resource = parse_resource(each.manifest)
        assert isinstance(resource, ConsumerGroup)
        assert (resource.group_name, resource.spec.stream_ref.name) == (group.name, stream.metadata.name)
        assert resource.start_id == ("0" if group.last == "0-0" else group.last)
    pending = [group for group in found.groups if group.pending]
    assert sum("pending" in note for each in declared[1:] for note in each.notes) >= len(pending)


@pytest.mark.parametrize(
    ("found", "note"),
    [
        ({"foreign": 2, "looked": 3}, "2 of the newest 3 entries without a message of AgentStream"),
        ({"oversized": 1}, "entries larger than 17 MiB, more than any message may have: 1;"),
        ({"first": "1-0"}, "the ids are no times"),
        ({"first": f"{NOW + DAY}-0"}, "IdsInTheFuture: "),
        ({"senders": ("Boss",)}, "senders whose names no agent can have: Boss"),
        ({"senders": ()}, "no agent may send to it"),
        ({"owner": {"namespace": "a", "name": "b", "installation": "c"}}, "it belongs to AgentStream a/b"),
        ({}, "the key does not begin with {default.: in a cluster KeyNotAllowed"),
    ],
)
def test_what_cannot_be_declared_is_noted(found: dict[str, Any], note: str) -> None:
    notes = take_over(existing(**found), "orders", None)[0].notes
    assert any(each.startswith(note) for each in notes), notes


def test_the_largest_entry_is_that_of_the_function_library() -> None:
    text = (ROOT / "sdk" / "agentstream" / "functions" / "common.lua").read_text()
    assert f"local LARGEST = {LARGEST >> 20} * 1048576\n" in text
