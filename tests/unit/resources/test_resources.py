"""What resources say of themselves: names with their defaults, and the wishes in annotations."""

from __future__ import annotations

import pytest

from agentstream_operator.resources.agentstream import AgentStream, OnFull
from agentstream_operator.resources.consumergroup import ConsumerGroup
from agentstream_operator.resources.duration import parse_duration
from agentstream_operator.resources.meta import (
    FORCE_DELETE_ANNOTATION,
    PAUSED_ANNOTATION,
    ObjectMeta,
    ResourceKey,
)
from agentstream_operator.resources.parse import parse_resource
from unit.resources.manifests import a_group, a_stream, a_template


def with_metadata(manifest, **metadata):
    return parse_resource({**manifest, "metadata": {**manifest["metadata"], **metadata}})


def test_a_stream_has_a_key_of_its_own_by_default():
    assert parse_resource(a_stream()).stream_key == "{default.tasks}"
    assert with_metadata(a_stream(), namespace="team-a").stream_key == "{team-a.tasks}"
    assert parse_resource(a_stream(key="legacy")).stream_key == "legacy"


def test_a_groups_names_are_the_resources_by_default():
    group = parse_resource(a_group("coder"))
    assert (group.group_name, group.agent_name) == ("coder", "coder")
    group = parse_resource(a_group("coder", group="coders", agent="ada"))
    assert (group.group_name, group.agent_name) == ("coders", "ada")


def test_a_group_starts_at_the_end_by_default():
    assert parse_resource(a_group()).start_id == "$"


@pytest.mark.parametrize(("spec", "pods"), [({}, 1), ({"replicas": 0}, 0), ({"replicas": 7}, 7)])
def test_one_pod_runs_by_default(spec, pods):
    assert parse_resource(a_group(template=a_template(), **spec)).fixed_replicas == pods


def test_defaults_are_those_of_the_documentation():
    stream = AgentStream(metadata=ObjectMeta(name="tasks")).spec
    assert stream.retention.min_age == parse_duration("24h")
    assert (stream.retention.max_length, stream.retention.max_bytes) == (1_000_000, None)
    assert stream.retention.on_full is OnFull.TRIM_ACKNOWLEDGED
    group = parse_resource(a_group(template=a_template(), autoscaling={})).spec
    assert (str(group.delivery.lease), group.delivery.max_deliveries) == ("10s", 5)
    assert (group.autoscaling.min_replicas, group.autoscaling.max_replicas) == (0, 10)
    assert (group.autoscaling.target_backlog, str(group.autoscaling.scale_down_after)) == (100, "30s")


def test_a_key_reads_as_people_write_it():
    key = with_metadata(a_group(), namespace="team-a").key
    assert key == ResourceKey("ConsumerGroup", "team-a", "coder")
    assert str(key) == "ConsumerGroup team-a/coder"


@pytest.mark.parametrize(("value", "expected"), [("true", True), ("false", False), ("", False)])
def test_annotations_pause_and_force_a_deletion(value, expected):
    assert with_metadata(a_stream(), annotations={PAUSED_ANNOTATION: value}).paused is expected
    assert with_metadata(a_stream(), annotations={FORCE_DELETE_ANNOTATION: value}).force_delete is expected


def test_a_deletion_time_means_that_it_is_being_deleted():
    assert not parse_resource(a_stream()).deleting
    assert with_metadata(a_stream(), deletionTimestamp="2026-01-01T00:00:00Z").deleting


def test_metadata_that_the_operator_does_not_read_is_ignored():
    stream = with_metadata(
        a_stream(),
        uid="u",
        generation=3,
        resourceVersion="7",
        finalizers=["f"],
        managedFields=[{"manager": "m"}],
    )
    assert (stream.metadata.uid, stream.metadata.generation) == ("u", 3)
    assert (stream.metadata.resource_version, stream.metadata.finalizers) == ("7", ("f",))


def test_a_template_keeps_what_the_operator_does_not_know():
    template = a_template(
        command=["python"],
        args=["-m", "coder"],
        env=[{"name": "A", "value": "1"}],
        workingDir="/app",
        tty=True,
    )
    template["spec"]["nodeSelector"] = {"disk": "ssd"}
    group = parse_resource(a_group(template=template))
    assert isinstance(group, ConsumerGroup)
    container = group.spec.template.spec.containers[0]
    assert (container.command, container.args, container.working_dir) == (
        ("python",),
        ("-m", "coder"),
        "/app",
    )
    assert (container.env[0].name, container.env[0].value) == ("A", "1")
    assert group.spec.template.as_manifest()["spec"]["nodeSelector"] == {"disk": "ssd"}
    assert group.spec.template.as_manifest()["spec"]["containers"][0]["tty"] is True


def test_resources_cannot_be_changed_in_place():
    with pytest.raises(ValueError, match="frozen"):
        parse_resource(a_stream()).spec.broadcast = True
