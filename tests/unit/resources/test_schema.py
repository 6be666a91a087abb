"""CRD schemas: as generated, structural, bounded; they and the models accept and refuse the same."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from hypothesis import given, settings
from pydantic import BaseModel, Field

from agentstream_operator.resources.crd import KINDS, crd
from agentstream_operator.resources.generate import conditions_page, documents, drifted, main
from agentstream_operator.resources.parse import InvalidResource, parse_resource, refused_changes
from agentstream_operator.resources.schema import SchemaError, structural_schema
from agentstream_operator.resources.status import ConditionReason, ConditionType
from unit.resources.api_server import nodes, refusals, schema_of, stored
from unit.resources.manifests import (
    a_group,
    a_replay,
    a_stream,
    a_template,
    groups,
    mutated,
    replays,
    streams,
)

NODES = [
    pytest.param(node, id=f"{kind}{path}")
    for kind in ("AgentStream", "ConsumerGroup", "StreamReplay")
    for path, node in nodes(schema_of(kind))
]
FORBIDDEN = {"$ref", "$defs", "anyOf", "oneOf", "allOf", "not", "const", "title", "uniqueItems", "nullable"}


@pytest.mark.parametrize("node", NODES)
def test_every_node_is_structural_and_bounded(node):
    assert not FORBIDDEN & node.keys()
    assert node["type"] in {"object", "array", "string", "integer", "number", "boolean"}
    if node["type"] == "string":
        assert "enum" in node or node["maxLength"] > 0
    if node["type"] == "array":
        assert "items" in node
        assert node["maxItems"] > 0
    if "additionalProperties" in node:
        assert "properties" not in node
        assert node["maxProperties"] > 0
    if "x-kubernetes-list-map-keys" in node:
        assert node["x-kubernetes-list-type"] == "map"
        assert set(node["x-kubernetes-list-map-keys"]) <= set(node["items"]["required"])
    assert set(node.get("required", ())) <= node.get("properties", {}).keys()


@pytest.mark.parametrize("node", NODES)
def test_patterns_are_anchored_and_rules_have_messages(node):
    if "pattern" in node:
        assert node["pattern"].startswith("^")
        assert node["pattern"].endswith("$")
        # RE2 has no lookaround and no backreferences
        assert not re.search(r"\(\?|\\[1-9]", node["pattern"])
    for rule in node.get("x-kubernetes-validations", ()):
        assert rule["rule"]
        assert rule["message"]
        if "fieldPath" in rule:
            assert rule["fieldPath"].removeprefix(".") in node["properties"]


@pytest.mark.parametrize("kind", ["AgentStream", "ConsumerGroup", "StreamReplay"])
def test_every_field_of_spec_and_status_is_described(kind):
    for part in ("spec", "status"):
        for path, node in nodes(schema_of(kind)["properties"][part]):
            assert path.endswith(("[]", "{}")) or node["description"].endswith(".")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.plural)
def test_columns_and_scale_paths_name_fields_that_exist(kind):
    version = crd(kind)["spec"]["versions"][0]
    paths = dict(nodes(schema_of(kind.model.__name__)))
    for column in version["additionalPrinterColumns"]:
        path = column["jsonPath"].split("[?")[0]
        assert path in paths or path == ".metadata.creationTimestamp"
    for path in version["subresources"].get("scale", {}).values():
        assert path in paths


def test_only_groups_scale():
    assert [kind.plural for kind in KINDS if kind.scale] == ["consumergroups"]


class Union(BaseModel):
    value: int | str


class Tree(BaseModel):
    children: Annotated[list[Tree], Field(max_length=3)]


class Anything(BaseModel):
    value: object


class Exclusive(BaseModel):
    value: Annotated[float, Field(gt=0)]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Union, "Union.value: a CRD schema has no unions"),
        (Tree, "Tree.children.[]: Tree contains itself"),
        (Anything, "Anything.value: no type"),
        (Exclusive, "Exclusive.value: a CRD schema has no exclusiveMinimum"),
    ],
)
def test_what_a_crd_cannot_say_is_refused(model, message):
    with pytest.raises(SchemaError) as caught:
        structural_schema(model)
    assert str(caught.value) == message


ROOT = Path(__file__).parents[3]


def test_the_repository_holds_what_would_be_generated():
    assert drifted(ROOT) == [], "run `make generate`"


def test_writing_makes_a_check_pass_and_a_change_makes_it_fail(tmp_path, capsys):
    assert main(["--check", "--root", str(tmp_path)]) == 1
    assert main(["--root", str(tmp_path)]) == 0
    assert main(["--check", "--root", str(tmp_path)]) == 0
    capsys.readouterr()
    (tmp_path / "docs/reference/conditions.md").write_text("edited")
    assert main(["--check", "--root", str(tmp_path)]) == 1
    assert (
        capsys.readouterr().err
        == "docs/reference/conditions.md differs from the models; run `make generate`\n"
    )


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.plural)
def test_the_yaml_is_the_crd_without_anchors(kind):
    text = documents()[f"crds/{kind.name}.yaml"]
    assert yaml.safe_load(text) == crd(kind)
    assert "&id" not in text
    assert documents()[f"charts/agentstream/files/crds/{kind.name}.yaml"] == text


def test_the_page_has_a_row_for_every_word():
    lines = conditions_page().splitlines()
    for word in (*ConditionType, *ConditionReason):
        assert any(line.startswith(f"| `{word}` |") for line in lines)
    assert all(line.count("|") == 4 for line in lines if line.startswith("|"))


def _problems(manifest: dict[str, Any]) -> tuple[str, ...]:
    try:
        parse_resource(manifest)
    except InvalidResource as error:
        return error.problems
    return ()


def _assert_agreement(manifest: dict[str, Any]) -> None:
    of_server, of_model = refusals(manifest), _problems(manifest)
    assert bool(of_server) == bool(of_model), (of_server, of_model)


@given(streams)
@settings(max_examples=100)
def test_they_agree_on_streams(manifest):
    _assert_agreement(manifest)


@given(groups)
@settings(max_examples=150)
def test_they_agree_on_groups(manifest):
    _assert_agreement(manifest)


@given(replays)
@settings(max_examples=150)
def test_they_agree_on_replays(manifest):
    _assert_agreement(manifest)


@given(mutated(replays))
@settings(max_examples=200)
def test_they_agree_on_replays_with_something_wrong(manifest):
    _assert_agreement(manifest)


@given(replays, replays)
@settings(max_examples=150)
def test_they_agree_on_changes_of_replays(old, new):
    if not refusals(old) and not refusals(new):
        changed = {*refusals(new, old)}
        said = {line.partition(": ")[2] for line in refused_changes(parse_resource(old), parse_resource(new))}
        assert changed == said


@given(mutated(streams))
@settings(max_examples=200)
def test_they_agree_on_streams_with_something_wrong(manifest):
    _assert_agreement(manifest)


@given(mutated(groups))
@settings(max_examples=300)
def test_they_agree_on_groups_with_something_wrong(manifest):
    _assert_agreement(manifest)


@given(streams | groups | replays)
@settings(max_examples=100)
def test_filling_in_the_schemas_defaults_changes_nothing_for_the_model(manifest):
    if not refusals(manifest):
        assert parse_resource(stored(manifest)) == parse_resource(manifest)


@given(streams | groups | replays)
@settings(max_examples=50)
def test_a_resource_survives_being_written_as_a_manifest(manifest):
    if not refusals(manifest):
        resource = parse_resource(manifest)
        assert parse_resource(resource.as_manifest()) == resource
        assert refusals(resource.as_manifest()) == []


TIME = "2024-02-29T12:00:00.5Z"
ACCEPTED = {
    "a stream without a spec": {key: value for key, value in a_stream().items() if key != "spec"},
    "a group that runs elsewhere": a_group(),
    "a fixed number of pods": a_group(template=a_template(), replicas=3),
    "scaling by defaults": a_group(template=a_template(), autoscaling={}),
    "null as absent": a_stream(key=None, retention={"maxBytes": None, "minAge": None}),
    "a key that looks like a derived one but for its end": a_stream(key="{team-a.tasks}:metadata"),
    "a key that looks like the operator's but for its end": a_stream(key="{agentstream-probe.a}"),
    "a key that nothing is derived as, for want of a tag": a_stream(key="shop:order"),
    "whole numbers with a fraction of zero": a_stream(retention={"maxLength": 1e6}),
    "unknown fields of pods": a_group(template={"spec": {**a_template()["spec"], "hostNetwork": True}}),
    "contracts of several types and versions": a_stream(
        contracts=[
            {"type": "event", "schema": {"type": "object"}},
            {"type": "event", "version": 2, "schema": {"type": "object", "required": ["doc"]}},
            {"type": "task_request", "schema": {"type": "object", "$defs": {"a": {"maximum": 1.5}}}},
        ]
    ),
    "a leap day": a_group(startFrom="2024-02-29T00:00:00Z"),
    "a replay of everything": a_replay(),
    "a replay of one moment": a_replay(**{"from": {"source": "Stream", "since": TIME, "until": TIME}}),
    "a replay of an entry": a_replay(**{"from": {"source": "Stream", "since": "1-1", "until": "1-1"}}),
    "ids of more digits are later": a_replay(
        **{"from": {"source": "Stream", "since": "9-0", "until": "10-0"}}
    ),
    "a dry run of a removal": a_replay(
        **{"from": {"source": "DeadLetters"}}, action="Drop", dryRun=True, select={"types": ["event"]}
    ),
    "ids of entries and messages": a_replay(select={"ids": ["1-0", "7ec428e0-0c1d-4f5a-9b57-0123456789ab"]}),
}

REFUSED = {
    "a replay of nowhere": a_replay(**{"from": {}}),
    "a replay of nobody": a_replay(groupRef=None),
    "a range that ends before it begins": a_replay(
        **{"from": {"source": "Stream", "since": "10-0", "until": "9-0"}}
    ),
    "a range of times that ends before it begins": a_replay(
        **{"from": {"source": "Stream", "since": TIME, "until": "2024-02-29T13:00:00.4+01:00"}}
    ),
    "a removal of messages of the stream": a_replay(action="Drop", select={"types": ["event"]}),
    "a removal of everything": a_replay(**{"from": {"source": "DeadLetters"}}, action="Drop"),
    "a removal of everything by an empty select": a_replay(
        **{"from": {"source": "DeadLetters"}}, action="Drop", select={}
    ),
    "a removal of everything by an empty list": a_replay(
        **{"from": {"source": "DeadLetters"}}, action="Drop", select={"ids": []}
    ),
    "a removal that delivers what has expired": a_replay(
        **{"from": {"source": "DeadLetters"}}, action="Drop", select={"ids": ["1-0"]}, expired="Deliver"
    ),
    "reasons of messages that did not die": a_replay(select={"reasons": ["MaxDeliveries"]}),
    "the short id of a message": a_replay(select={"ids": ["7ec428e0"]}),
    "an unknown field": a_stream(retention={"maxAge": "24h"}),
    "snake case": a_stream(retention={"min_age": "24h"}),
    "a retention of nothing": a_stream(retention={"minAge": "0s"}),
    "two hash tags": a_stream(key="{a}{b}"),
    "an empty hash tag": a_stream(key="a{}"),
    "the key of answers": a_stream(key="{team-a.coder}:reply:0"),
    "the key of a group's retries": a_stream(key="{team-a.tasks}:retry:coder"),
    "the prefix of another stream's keys": a_stream(key="{team-a.tasks}:once"),
    "the prefix of another agent's answers": a_stream(key="{team-a.coder}:reply"),
    "the key of a namespace's routes": a_stream(key="agentstream:agentstream:team-a:routes"),
    "the key of the operator's trials": a_stream(key="agentstream-probe"),
    "the key of a stream's owner": a_stream(key="{team-a.tasks}:meta"),
    "a producer listed twice": a_stream(producers=["a", "a"]),
    "a number as text": a_stream(retention={"maxLength": "10"}),
    "two contracts of one type and version": a_stream(
        contracts=[
            {"type": "event", "schema": {"type": "object"}},
            {"type": "event", "version": 1, "schema": {"type": "object"}},
        ]
    ),
    "a contract of something else than objects": a_stream(
        contracts=[{"type": "event", "schema": {"type": "array"}}]
    ),
    "a contract without a type of payloads": a_stream(contracts=[{"type": "event", "schema": {}}]),
    "a contract of no message": a_stream(contracts=[{"type": "wish", "schema": {"type": "object"}}]),
    "signing without a policy": a_stream(signing={"rotation": 1}),
    "a boolean as text": a_stream(broadcast="true"),
    "a boolean as a number": a_stream(broadcast=1),
    "a number as a boolean": a_stream(retention={"maxLength": True}),
    "a name with a dot": a_stream(name="a.b"),
    "a group without a stream": {**a_group(), "spec": {}},
    "a lease of two hours": a_group(delivery={"lease": "2h"}),
    "a first wait above the longest": a_group(delivery={"backoff": {"initial": "10m"}}),
    "a duration that CEL cannot hold": a_group(delivery={"lease": "99999999h"}),
    "pods without a template": a_group(replicas=1),
    "scaling without a template": a_group(autoscaling={}),
    "two numbers of pods": a_group(template=a_template(), replicas=1, autoscaling={}),
    "more pods at least than at most": a_group(template=a_template(), autoscaling={"minReplicas": 11}),
    "a pod without containers": a_group(template={"spec": {"containers": []}}),
    "a container without a name": a_group(template={"spec": {"containers": [{"image": "a"}]}}),
    "a day that does not exist": a_group(startFrom="2023-02-29T00:00:00Z"),
    "a time before 1970": a_group(startFrom="1970-01-01T00:00:00+01:00"),
    "a line feed at the end": a_group(group="a\n"),
}


@pytest.mark.parametrize("manifest", ACCEPTED.values(), ids=ACCEPTED)
def test_both_accept(manifest):
    assert refusals(manifest) == []
    assert _problems(manifest) == ()


@pytest.mark.parametrize("manifest", REFUSED.values(), ids=REFUSED)
def test_both_refuse(manifest):
    assert refusals(manifest) != []
    assert _problems(manifest) != ()


IMMUTABLE = [
    (a_stream, "key", "a", "b"),
    (a_group, "group", "a", "b"),
    (a_group, "agent", "a", "b"),
    (a_group, "startFrom", "Beginning", "1-0"),
    (a_replay, "select", {"types": ["event"]}, {"types": ["task_request"]}),
    (a_replay, "limit", 1, 2),
    (a_replay, "reason", "INC-1", "INC-2"),
]
MUTABLE = {"suspend": True, "rate": 7, "window": 7, "ttlSecondsAfterFinished": 7}
FIXED = {
    "groupRef": {"name": "other"},
    "from": {"source": "DeadLetters"},
    "action": "Drop",
    "expired": "Deliver",
    "dryRun": True,
}


def test_of_a_replay_only_its_pace_may_change():
    old = a_replay()
    for field, value in MUTABLE.items():
        new = a_replay(**{field: value})
        assert refusals(new, old) == []
        assert refused_changes(parse_resource(old), parse_resource(new)) == ()
    for field, value in FIXED.items():
        new = a_replay(**{"select": {"ids": ["1-0"]}, "from": {"source": "DeadLetters"}, field: value})
        said = refused_changes(parse_resource(a_replay(select={"ids": ["1-0"]})), parse_resource(new))
        assert f"spec.{field}: {field} is immutable: create another resource instead" in said
        assert f"{field} is immutable: create another resource instead" in refusals(new, old)
    fields = {*schema_of("StreamReplay")["properties"]["spec"]["properties"]}
    assert fields == {*MUTABLE, *FIXED, "select", "limit", "reason"}


@pytest.mark.parametrize(("make", "field", "one", "other"), IMMUTABLE)
def test_an_immutable_field_cannot_be_added_changed_or_removed(make, field, one, other):
    absent, first, second = make(), make(**{field: one}), make(**{field: other})
    message = f"{field} is immutable: create another resource instead"
    for old, new in [(absent, first), (first, second), (first, absent)]:
        assert refusals(new, old) == [message]
        assert refused_changes(parse_resource(old), parse_resource(new)) == (f"spec.{field}: {message}",)
    for same in (absent, first):
        assert refusals(same, same) == []
        assert refused_changes(parse_resource(same), parse_resource(same)) == ()


def test_a_group_cannot_move_to_another_stream():
    old, new = a_group(), a_group(streamRef={"name": "others"})
    assert len(refusals(new, old)) == 1
    assert len(refused_changes(parse_resource(old), parse_resource(new))) == 1


def signed(rotation, policy="Require"):
    return a_stream(signing={"policy": policy, "rotation": rotation})


@pytest.mark.parametrize(
    ("old", "new", "refused"),
    [
        (signed(1), signed(2, "Warn"), False),
        (signed(1), signed(1, "Off"), False),
        (signed(1), a_stream(), False),
        (a_stream(), signed(0), False),
        (signed(2), signed(1), True),
        (signed(1), a_stream(signing={"policy": "Require"}), True),
    ],
)
def test_keys_are_not_rotated_backwards(old, new, refused):
    assert bool(refusals(new, old)) is refused
    assert bool(refused_changes(parse_resource(old), parse_resource(new))) is refused


def test_everything_else_may_change():
    old = a_group(template=a_template(), replicas=1)
    new = a_group(template=a_template(image="coder:2"), autoscaling={}, suspend=True, deliver="All")
    assert refusals(new, old) == []
    assert refused_changes(parse_resource(old), parse_resource(new)) == ()
