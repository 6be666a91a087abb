"""The declared resources: what changed, what is said about them, and what outlives the process."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from agentstream_operator.local.manifests.catalog import Catalog
from agentstream_operator.local.manifests.metadata import (
    assign_metadata,
    read_metadata,
    with_metadata,
    write_metadata,
)
from agentstream_operator.local.replays import LocalReplays
from agentstream_operator.local.screen.output import LocalError
from agentstream_operator.resources.agentstream import AgentStream
from agentstream_operator.resources.consumergroup import ConsumerGroup
from agentstream_operator.resources.meta import FINALIZER, ResourceKey
from agentstream_operator.resources.parse import parse_resource
from agentstream_operator.resources.status import (
    AgentStreamStatus,
    ConditionReason,
    ConditionType,
    set_condition,
)
from support.dev import a_group, a_stream

NOW = datetime(2026, 1, 1, tzinfo=UTC)
STREAM = ResourceKey("AgentStream", "default", "tasks")
GROUP = ResourceKey("ConsumerGroup", "default", "coder")


class Case:
    """A catalog of one file, and all that came of it."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / "m.yaml"
        self.records = directory / "resources.json"
        self.said: list[str] = []
        self.put_in: list[AgentStream | ConsumerGroup] = []
        self.removed: list[ResourceKey] = []
        replays = LocalReplays(directory / "replays", output=self, now=lambda: NOW)
        self.catalog = Catalog(
            [self.file], metadata=self.records, replays=replays, output=self, now=lambda: NOW
        )

    def say(self, text: str) -> None:
        self.said.append(text)

    def relay(self, _name: str, _text: str) -> None:
        raise AssertionError

    def put(self, resource: AgentStream | ConsumerGroup) -> None:
        self.put_in.append(resource)

    def remove(self, key: ResourceKey) -> None:
        self.removed.append(key)

    def declare(self, text: str) -> None:
        self.file.write_text(text)
        manifests = self.catalog.read()
        assert not manifests.problems
        self.catalog.apply(manifests)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    case = Case(tmp_path)
    case.declare(a_stream("tasks") + a_group("coder", "tasks", "true"))
    case.catalog.attach(case)
    return case


def test_what_is_declared_is_put_in_with_identity_and_age(case: Case) -> None:
    assert [r.key for r in case.put_in] == [STREAM, GROUP]
    assert {r.metadata.generation for r in case.put_in} == {1}
    assert len({r.metadata.uid for r in case.put_in}) == 2


def test_what_did_not_change_is_not_put_in_again(case: Case) -> None:
    case.declare(f"{case.file.read_text()}# a comment\n")
    assert len(case.put_in) == 2


def test_what_changed_is_put_in_again(case: Case) -> None:
    case.declare(case.file.read_text().replace("replicas: 1", "replicas: 2"))
    assert [(r.key, r.metadata.generation) for r in case.put_in[2:]] == [(GROUP, 2)]


def test_what_is_no_longer_declared_is_removed(case: Case) -> None:
    case.declare(a_stream("tasks"))
    assert case.removed == [GROUP]
    assert case.said[-1] == "ConsumerGroup default/coder: no longer declared"


def test_what_is_declared_again_is_another_resource(case: Case) -> None:
    before = case.file.read_text()
    case.declare(a_stream("tasks"))
    case.declare(before)
    assert case.put_in[-1].metadata.uid != case.put_in[1].metadata.uid


def test_a_finalizer_is_put_in(case: Case) -> None:
    case.catalog.set_finalizer(GROUP, present=True)
    assert case.put_in[-1].metadata.finalizers == (FINALIZER,)
    case.catalog.set_finalizer(GROUP, present=False)
    assert case.put_in[-1].metadata.finalizers == ()


def test_a_resource_with_a_finalizer_goes_when_that_goes(case: Case) -> None:
    case.catalog.set_finalizer(GROUP, present=True)
    case.declare(a_stream("tasks"))
    assert (case.put_in[-1].key, case.put_in[-1].deleting) == (GROUP, True)
    assert case.removed == []
    case.catalog.set_finalizer(GROUP, present=False)
    assert case.removed == [GROUP]


def test_a_finalizer_of_an_unknown_resource_changes_nothing(case: Case) -> None:
    case.catalog.set_finalizer(STREAM._replace(name="x"), present=False)
    assert (len(case.put_in), case.removed) == (2, [])


def test_an_immutable_field_cannot_change(case: Case) -> None:
    case.file.write_text(
        case.file.read_text().replace("streamRef: {name: tasks}", "streamRef: {name: other}")
    )
    problem = case.catalog.read().problems[0]
    assert problem.startswith(
        f"{case.file}:6: ConsumerGroup default/coder: spec.streamRef: streamRef is immutable"
    )


def test_records_that_cannot_be_written_are_an_error(tmp_path: Path) -> None:
    case = Case(tmp_path)
    (tmp_path / ".resources.json.new").mkdir()
    with pytest.raises(LocalError, match="cannot write to"):
        case.declare(a_stream("tasks"))


def a_status(status: str, reason: ConditionReason, message: str = "") -> AgentStreamStatus:
    conditions = set_condition((), ConditionType.READY, status, reason, message, 1, NOW)  # type: ignore[arg-type]
    return AgentStreamStatus(conditions=conditions)


def test_readiness_is_said_when_it_changes(case: Case) -> None:
    for _ in range(2):
        case.catalog.set_status(STREAM, a_status("False", ConditionReason.WRONG_TYPE, "it is a string"))
    case.catalog.set_status(STREAM, a_status("True", ConditionReason.READY))
    case.catalog.set_status(STREAM, AgentStreamStatus())
    assert case.said == [
        "AgentStream default/tasks: not ready: WrongType: it is a string",
        "AgentStream default/tasks: ready",
    ]


def test_what_has_no_effect_here_is_said_once(case: Case) -> None:
    text = a_group("two", "tasks", "true").replace("[{name: c,", "[{name: c, image: x}, {name: d,")
    foreign = "apiVersion: v1\nkind: Namespace\n---\n"
    for _ in range(2):
        case.declare(a_stream("tasks") + text.replace("image: x}", 'image: x, command: ["x"]}') + foreign)
    assert case.said[:-1] == [
        f"ignored kinds: Namespace (first at {case.file}:14)",
        "container images are ignored: commands run as processes on this machine",
        f"{case.file}:6: ConsumerGroup default/two: only the first container runs in local mode",
    ]


def test_a_place_is_known_even_after_the_resource_has_gone(case: Case) -> None:
    case.declare(a_stream("tasks"))
    assert case.catalog.place(GROUP) == f"{case.file}:6"
    assert case.catalog.place(GROUP._replace(name="x")) == "ConsumerGroup default/x"


def a_stream_of(name: str, **spec: object) -> AgentStream:
    resource = parse_resource(
        {
            "apiVersion": "agentstream.dev/v1alpha1",
            "kind": "AgentStream",
            "metadata": {"name": name},
            "spec": spec,
        }
    )
    assert isinstance(resource, AgentStream)
    return resource


def test_the_first_declared_is_the_oldest() -> None:
    b, a = a_stream_of("b"), a_stream_of("a")
    records = assign_metadata({}, [b, a], NOW)
    assert records[b.key].created < records[a.key].created


def test_what_is_declared_later_is_younger_even_if_the_clock_was_set_back() -> None:
    a, b = a_stream_of("a"), a_stream_of("b")
    first = assign_metadata({}, [a], NOW)
    assert assign_metadata(first, [b, a], NOW - timedelta(days=1))[b.key].created > first[a.key].created


def test_an_unchanged_resource_keeps_its_record() -> None:
    a = a_stream_of("a")
    first = assign_metadata({}, [a], NOW)
    assert assign_metadata(first, [a_stream_of("a")], NOW + timedelta(days=1)) == first


def test_a_changed_spec_is_a_new_generation_of_the_same_resource() -> None:
    a = a_stream_of("a")
    first = assign_metadata({}, [a], NOW)[a.key]
    second = assign_metadata({a.key: first}, [a_stream_of("a", broadcast=True)], NOW)[a.key]
    assert (second.generation, second.uid, second.created) == (2, first.uid, first.created)


def test_records_of_what_is_not_declared_now_stay() -> None:
    a, b = a_stream_of("a"), a_stream_of("b")
    assert set(assign_metadata(assign_metadata({}, [a], NOW), [b], NOW)) == {a.key, b.key}


def test_a_resource_carries_what_is_remembered() -> None:
    a = a_stream_of("a")
    record = assign_metadata({}, [a], NOW)[a.key]
    metadata = with_metadata(a, record).metadata
    assert (metadata.uid, metadata.generation, metadata.creation_timestamp) == (record.uid, 1, record.created)


def test_records_survive_in_a_file(tmp_path: Path) -> None:
    records = assign_metadata({}, [a_stream_of("a")], NOW)
    write_metadata(tmp_path / "r", records)
    assert read_metadata(tmp_path / "r") == records


@pytest.mark.parametrize("text", ["", "[", '[{"kind": 1}]'])
def test_a_damaged_file_counts_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "r").write_text(text)
    assert read_metadata(tmp_path / "r") == {}


def test_a_missing_file_counts_as_none(tmp_path: Path) -> None:
    assert read_metadata(tmp_path / "r") == {}


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match=r"cannot read .*: Is a directory"):
        read_metadata(tmp_path)


def test_a_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    with pytest.raises(LocalError, match=r"cannot write to .*: Is a directory"):
        write_metadata(tmp_path / "d", {})
