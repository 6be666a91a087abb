"""Errors of manifests: one line per problem, with the path of the field and what to write instead."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from types import MappingProxyType
from typing import NoReturn

import pytest

from agentstream_operator.resources.parse import MAX_SIZE, InvalidResource, parse_resource
from unit.resources.manifests import API_VERSION, a_group, a_stream, a_template

STREAM = "AgentStream default/tasks: "
GROUP = "ConsumerGroup default/coder: "
CASES = [
    (
        a_stream(retention={"minAge": "12x"}),
        STREAM + "spec.retention.minAge: '12x' is not a duration (write e.g. 24h, 1h30m)",
    ),
    (a_stream(retention={"minAge": "1ms"}), STREAM + "spec.retention.minAge: must be at least 1s"),
    (
        a_stream(retention={"maxlen": 4}),
        STREAM + "spec.retention.maxlen: unknown field (did you mean maxLength?)",
    ),
    (
        a_stream(minAge="3h"),
        STREAM + "spec.minAge: unknown field (did you mean spec.retention.minAge?)",
    ),
    (
        a_group(autoscaling={"zzz": 1}, template=a_template()),
        GROUP + "spec.autoscaling.zzz: unknown field "
        "(known here: mode, minReplicas, maxReplicas, targetBacklog, targetAge, scaleDownAfter)",
    ),
    (
        a_group(template={**a_template(), "metadata": {"label": {}}}),
        GROUP + "spec.template.metadata.label: unknown field (did you mean labels?)",
    ),
    ({**a_stream(), "specs": {}}, STREAM + "specs: unknown field (did you mean spec?)"),
    (
        a_stream(retention={"onFull": "Drop"}),
        STREAM
        + "spec.retention.onFull: 'Drop' is not one of 'TrimAcknowledged', 'Backpressure' or 'TrimOldest'",
    ),
    (a_stream(retention={"maxLength": 0}), STREAM + "spec.retention.maxLength: must be at least 1, not 0"),
    (
        a_stream(retention={"maxLength": "10"}),
        STREAM + "spec.retention.maxLength: '10' is not a whole number",
    ),
    (a_stream(maxMessageBytes=1023), STREAM + "spec.maxMessageBytes: must be at least 1024, not 1023"),
    (
        a_stream(maxMessageBytes=(16 << 20) + 1),
        STREAM + "spec.maxMessageBytes: must be at most 16777216, not 16777217",
    ),
    (a_stream(broadcast="yes"), STREAM + "spec.broadcast: 'yes' is not true or false"),
    (a_stream(key=5), STREAM + "spec.key: 5 is not text (put it in quotes)"),
    (
        a_stream(key="a b"),
        STREAM + "spec.key: 'a b' is not a stream key (at most 200 of A-Z, a-z, 0-9 and ._:{}-)",
    ),
    (
        a_stream(key="{team-a.coder}:reply:0"),
        STREAM + "spec.key: a suffix such as :retry:coder is reserved for keys derived from a stream",
    ),
    (a_stream(producers="planner"), STREAM + "spec.producers: 'planner' is not a list"),
    (a_stream(producers=["a", "b", "a"]), STREAM + "spec.producers: 'a' is listed twice"),
    (a_stream(producers=["a"] * 257), STREAM + "spec.producers: may list at most 256"),
    (
        a_stream(producers=["A"]),
        STREAM + "spec.producers[0]: 'A' is not a DNS label "
        "(at most 63 of a-z, 0-9 and '-', with a letter or digit at both ends)",
    ),
    (a_group(delivery=5), GROUP + "spec.delivery: 5 is not a map of fields"),
    (
        a_group(delivery={"maxDeliveries": 101}),
        GROUP + "spec.delivery.maxDeliveries: must be at most 100, not 101",
    ),
    (
        a_group(delivery={"backoff": {"factor": "2"}}),
        GROUP + "spec.delivery.backoff.factor: '2' is not a number",
    ),
    (
        a_group(delivery={"backoff": {"initial": "1h"}}),
        GROUP + "spec.delivery.backoff: initial must not exceed max",
    ),
    (
        a_group(template={"spec": {"containers": []}}),
        GROUP + "spec.template.spec.containers: must list at least 1",
    ),
    (
        a_group(template=a_template(env=[{"name": ""}])),
        GROUP + "spec.template.spec.containers[0].env[0].name: must have 1 characters or more",
    ),
    (
        a_group(template={**a_template(), "metadata": {"labels": {"a": "b" * 64}}}),
        GROUP + "spec.template.metadata.labels.a: may have at most 63 characters",
    ),
    (
        a_group(template={**a_template(), "metadata": {"labels": [1]}}),
        GROUP + "spec.template.metadata.labels: [1] is not a map",
    ),
    (
        a_group(startFrom="2023-02-29T00:00:00Z"),
        GROUP + "spec.startFrom: '2023-02-29T00:00:00Z' is not an existing time",
    ),
    ({**a_group(), "spec": {}}, GROUP + "spec.streamRef: is required"),
    (
        a_group(replicas=1, autoscaling={}),
        GROUP
        + "spec: replicas and autoscaling exclude each other\n"
        + GROUP
        + "spec: replicas and autoscaling "
        "need a template or deploymentRef",
    ),
    (
        {**a_stream(), "kind": "Widget"},
        "Widget default/tasks: kind: 'Widget' is not one of AgentStream, ConsumerGroup, StreamReplay",
    ),
    (
        {"metadata": 3},
        "Resource default/?: kind: None is not one of AgentStream, ConsumerGroup, StreamReplay",
    ),
    ({"kind": ["a"]}, "['a'] default/?: kind: ['a'] is not one of AgentStream, ConsumerGroup, StreamReplay"),
    (
        {**a_stream(), "apiVersion": "agentstream.dev/v1"},
        STREAM + f"apiVersion: 'agentstream.dev/v1' is not supported (write {API_VERSION})",
    ),
    (
        {**a_stream(), "metadata": {"name": "tasks", "annotations": {"a": 1}}},
        STREAM + "metadata.annotations.a: 1 is not text (put it in quotes)",
    ),
    (a_stream(key=None, retention={3: 4}), STREAM + "spec.retention[3]: Keys should be strings"),
    (["a"], "Resource default/?: ['a'] is not a map of fields"),
]


@pytest.mark.parametrize(
    ("manifest", "message"), CASES, ids=[message.split(": ", 1)[1] for _, message in CASES]
)
def test_a_problem_is_told_in_one_line(manifest, message):
    with pytest.raises(InvalidResource) as caught:
        parse_resource(manifest)
    assert str(caught.value) == message


def test_several_problems_are_told_at_once():
    manifest = a_stream(retention={"minAge": "12x", "maxLength": 0}, broadcast=1)
    manifest["metadata"]["namespace"] = "team-a"
    with pytest.raises(InvalidResource) as caught:
        parse_resource(manifest)
    assert caught.value.subject == "AgentStream team-a/tasks"
    assert caught.value.problems == (
        "spec.retention.minAge: '12x' is not a duration (write e.g. 24h, 1h30m)",
        "spec.retention.maxLength: must be at least 1, not 0",
        "spec.broadcast: 1 is not true or false",
    )


def test_a_long_value_is_cut_in_the_message():
    with pytest.raises(InvalidResource) as caught:
        parse_resource(a_stream(retention={"minAge": "x" * 1_000}))
    assert len(str(caught.value)) < 200


def test_any_mapping_will_do():
    manifest = {**a_stream(), "spec": MappingProxyType({"producers": ("planner",)})}
    assert parse_resource(MappingProxyType(manifest)).spec.producers == ("planner",)


def test_a_time_that_yaml_has_read_as_one_is_taken():
    noon = datetime(2026, 11, 22, 12, tzinfo=UTC)
    assert parse_resource(a_group(startFrom=noon)).spec.start_from == "2026-11-22T12:00:00Z"
    with pytest.raises(InvalidResource, match="'2026-11-22' is not Beginning, End, an entry id"):
        parse_resource(a_group(startFrom=date(2026, 11, 22)))


def test_conditions_in_words_of_another_version_are_left_out():
    known = {
        "type": "Ready",
        "status": "True",
        "reason": "Ready",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
        "newField": 1,
    }
    others = [{**known, "type": "Novel"}, {**known, "reason": "Novel"}, {**known, "reason": ["a"]}, "junk"]
    stream = parse_resource({**a_stream(), "status": {"conditions": [*others, known], "novel": 1}})
    assert [condition.type for condition in stream.status.conditions] == ["Ready"]


def test_a_condition_without_a_known_status_is_a_problem():
    broken = {
        "type": "Ready",
        "status": "Maybe",
        "reason": "Ready",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    with pytest.raises(
        InvalidResource, match=r"status\.conditions\[0\]\.status: Input should be 'True', 'False'"
    ):
        parse_resource({**a_stream(), "status": {"conditions": [broken]}})


@pytest.mark.parametrize("inner", ["{}", "[]"])
def test_what_is_nested_too_deeply_to_be_worked_with_is_one_line(inner: str) -> None:
    def schema(depth: int) -> dict[str, object]:
        value: object = 1
        for _ in range(depth):
            value = {"p": value} if inner == "{}" else [value]
        return {"type": "object", "x": value}

    assert parse_resource(a_stream(contracts=[{"type": "event", "schema": schema(58)}]))
    for depth in (62, 5_000):
        with pytest.raises(InvalidResource) as caught:
            parse_resource(a_stream(contracts=[{"type": "event", "schema": schema(depth)}]))
        assert caught.value.problems == ("spec.contracts[0].schema: is nested more than 64 levels deep",)


def padded(size: int) -> dict[str, object]:
    """A pod template that is so large as JSON."""
    template = a_template(args=[""])
    template["spec"]["containers"][0]["note"] = ""
    bare = len(json.dumps(template, separators=(",", ":")))
    template["spec"]["containers"][0]["note"] = "x" * (size - bare)
    return template


def test_a_template_of_the_largest_size_is_taken_and_a_larger_one_is_one_line() -> None:
    assert parse_resource(a_group(template=padded(MAX_SIZE)))
    with pytest.raises(InvalidResource) as caught:
        parse_resource(a_group(template=padded(MAX_SIZE + 1)))
    assert caught.value.problems == ("spec.template: has 65,537 bytes as JSON; the limit is 65,536",)


MILLION = [{} for _ in range(350_000)]
HALF = "\ud800"
OUT_OF_BOUNDS = {
    "a MB of empty maps in a template": (
        a_group(template=a_template(junk=MILLION)),
        "spec.template: has 1,050,0",
    ),
    "a MB of empty maps in a schema": (
        a_stream(contracts=[{"type": "event", "schema": {"type": "object", "x": MILLION}}]),
        "spec.contracts[0].schema: has 1,050,0",
    ),
    "a MB in a field that nobody knows": (
        a_stream(novel=MILLION),
        "spec.novel: the resource has more than 200,000 values",
    ),
    "schemas that are many values together": (
        a_stream(
            contracts=[
                {"type": "event", "version": n, "schema": {"type": "object", "x": MILLION[:21_000]}}
                for n in range(1, 11)
            ]
        ),
        "the resource has more than 200,000 values",
    ),
    "half a pair of surrogates as a value": (
        a_group(template=a_template(junk=HALF)),
        "spec.template.spec.containers[0].junk: has half of a pair of surrogates",
    ),
    "a set": (
        a_group(template=a_template(args={"a"})),
        "spec.template.spec.containers[0].args: is a set, which JSON does not have",
    ),
    "what contains itself": (
        a_stream(novel=(loop := {}, loop.update(again=loop))),
        "spec.novel[0].again: is",
    ),
}


@pytest.mark.parametrize(("manifest", "problem"), OUT_OF_BOUNDS.values(), ids=OUT_OF_BOUNDS)
def test_what_is_too_large_or_no_json_is_one_line(manifest: dict[str, object], problem: str) -> None:
    with pytest.raises(InvalidResource) as caught:
        parse_resource(manifest)
    assert len(caught.value.problems) == 1
    assert problem in caught.value.problems[0]


def test_managed_fields_are_not_looked_at() -> None:
    managed: object = {}
    for _ in range(5_000):
        managed = {"f:x": managed}
    metadata = {"name": "tasks", "managedFields": [{"fieldsV1": managed}]}
    assert parse_resource({**a_stream(), "metadata": metadata}) == parse_resource(a_stream())


def test_a_number_that_no_integer_is_meant_by_stays_as_it_was_written() -> None:
    group = parse_resource(a_group(template=a_template(huge=1e300, whole=1e6)))
    container = group.spec.template.as_manifest()["spec"]["containers"][0]
    assert (container["huge"], container["whole"]) == (1e300, 1_000_000)
    assert isinstance(container["huge"], float)


def test_any_error_in_one_resource_is_that_resource_s() -> None:
    class Odd(dict[str, object]):
        def items(self) -> NoReturn:
            raise RuntimeError("no items today")

    with pytest.raises(InvalidResource, match="cannot be read: RuntimeError: 'no items today'"):
        parse_resource({**a_stream(), "spec": Odd(producers=[])})


def test_so_many_problems_are_told_as_one_can_read() -> None:
    with pytest.raises(InvalidResource) as caught:
        parse_resource(a_stream(**{f"novel{n}": n for n in range(10_000)}))
    assert len(caught.value.problems) == 20
