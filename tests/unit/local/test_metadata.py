"""Identity, age and generation of resources outlive the process."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from agentstream_operator.local.manifests.metadata import (
    assign_metadata,
    read_metadata,
    with_metadata,
    write_metadata,
)
from agentstream_operator.local.screen.output import LocalError
from agentstream_operator.resources.agentstream import AgentStream
from agentstream_operator.resources.parse import parse_resource

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def a_stream(name: str, **spec: object) -> AgentStream:
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
    b, a = a_stream("b"), a_stream("a")
    records = assign_metadata({}, [b, a], NOW)
    assert records[b.key].created < records[a.key].created


def test_what_is_declared_later_is_younger_even_if_the_clock_was_set_back() -> None:
    a, b = a_stream("a"), a_stream("b")
    first = assign_metadata({}, [a], NOW)
    assert assign_metadata(first, [b, a], NOW - timedelta(days=1))[b.key].created > first[a.key].created


def test_an_unchanged_resource_keeps_its_record() -> None:
    a = a_stream("a")
    first = assign_metadata({}, [a], NOW)
    assert assign_metadata(first, [a_stream("a")], NOW + timedelta(days=1)) == first


def test_a_changed_spec_is_a_new_generation_of_the_same_resource() -> None:
    a = a_stream("a")
    first = assign_metadata({}, [a], NOW)[a.key]
    second = assign_metadata({a.key: first}, [a_stream("a", broadcast=True)], NOW)[a.key]
    assert (second.generation, second.uid, second.created) == (2, first.uid, first.created)


def test_records_of_what_is_not_declared_now_stay() -> None:
    a, b = a_stream("a"), a_stream("b")
    assert set(assign_metadata(assign_metadata({}, [a], NOW), [b], NOW)) == {a.key, b.key}


def test_a_resource_carries_what_is_remembered() -> None:
    a = a_stream("a")
    record = assign_metadata({}, [a], NOW)[a.key]
    metadata = with_metadata(a, record).metadata
    assert (metadata.uid, metadata.generation, metadata.creation_timestamp) == (record.uid, 1, record.created)


def test_records_survive_in_a_file(tmp_path: Path) -> None:
    records = assign_metadata({}, [a_stream("a")], NOW)
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
