"""`agentstream plan` in the folder of an `agentstream dev`: what is compared, and what is printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from agentstream_operator.resources.parse import parse_resource
from support.fake_api import FakeApi, run, runs
from unit.resources.manifests import a_group, a_replay, a_stream

GETS_ALL = "a new group gets all 1,200 messages that the stream has (startFrom: Beginning)"


@pytest.fixture
def running(api: FakeApi, folder: Path) -> FakeApi:
    """An `agentstream dev` that runs a stream and a group, and knows another one of an earlier run."""
    runs(api, folder, a_stream(), a_group(), earlier=[a_group("earlier")])
    return api


def write(folder: Path, *manifests: dict[str, Any]) -> None:
    (folder / "m.yaml").write_text(yaml.safe_dump_all(manifests))


def test_what_is_as_declared_is_exit_code_0(running: FakeApi, folder: Path) -> None:
    del running
    write(folder, a_stream(), a_group())
    ran = run("plan", "m.yaml")
    assert (ran.code, ran.out, ran.err) == (0, "2 as declared\n", "")


def test_what_changes_is_printed_field_by_field(running: FakeApi, folder: Path) -> None:
    del running
    again = a_replay()
    write(folder, a_stream(retention={"minAge": "1h"}), a_group("reviewer", startFrom="Beginning"), again)
    ran = run("plan", "m.yaml")
    assert (ran.code, ran.err) == (1, "")
    assert ran.lines == [
        "change   AgentStream default/tasks",
        "         spec.retention.minAge: 24h -> 1h",
        "         settled messages older than 1h are removed for good; the oldest one is 2h old",
        "create   ConsumerGroup default/reviewer",
        f"         {GETS_ALL}; one that is there goes on where it was",
        "remove   ConsumerGroup default/coder",
        "         the group coder stays where it is, and has no consumers any more",
        "create   StreamReplay default/again",
        "         gives messages to coder once more: `agentstream replay coder --dry-run` counts them",
        "2 to create, 1 to change, 1 to remove",
    ]
    read = json.loads(run("plan", "m.yaml", "-o", "json").out)
    assert [change["act"] for change in read["changes"]] == ["change", "create", "remove", "create"]
    assert read["changes"][0]["fields"] == [{"path": "spec.retention.minAge", "before": "24h", "after": "1h"}]


def test_an_immutable_field_is_refused_and_a_group_without_a_stream_is_said(
    running: FakeApi, folder: Path
) -> None:
    del running
    write(folder, a_stream(), a_group(startFrom="Beginning"), a_group("b", streamRef={"name": "none"}))
    ran = run("plan", "m.yaml")
    assert ran.code == 2
    assert "refused  ConsumerGroup default/coder" in ran.lines
    assert any(line.strip().startswith("spec.startFrom: startFrom is immutable") for line in ran.lines)
    assert any(line.strip().startswith("StreamMissing: ") for line in ran.lines)


def test_what_another_version_stored_is_compared_field_by_field(running: FakeApi, folder: Path) -> None:
    del running
    file = folder / ".agentstream" / "resources.json"
    stored = json.loads(file.read_text())
    (one,) = (each for each in stored if each["kind"] == "AgentStream")
    one["spec"] = json.dumps({**json.loads(one["spec"]), "formerly": 1})
    file.write_text(json.dumps(stored))
    write(folder, a_stream(), a_group())
    ran = run("plan", "m.yaml")
    assert (ran.code, ran.lines[1]) == (1, "         spec.formerly: 1 -> (absent)")


def test_a_replay_that_was_carried_out_is_not_carried_out_again(running: FakeApi, folder: Path) -> None:
    del running
    kept = folder / ".agentstream" / "replays"
    kept.mkdir()
    write(folder, a_stream(), a_group(), a_replay())
    for marks, rate, code in (
        ({}, 100, 0),
        ({}, 7, 1),
        ({"agentstream.dev/declared": "deleted"}, 7, 0),
    ):
        spec = parse_resource(a_replay(rate=rate)).spec.as_manifest()
        document = {"metadata": {"name": "again", "annotations": marks}, "spec": spec}
        (kept / "default.again.json").write_text(json.dumps(document))
        assert run("plan", "m.yaml").code == code


def test_mistakes_are_lines_as_dev_reports_them(running: FakeApi, folder: Path) -> None:
    asked = len(running.asked)
    write(folder, a_stream(retention={"minAge": "1 hour"}), a_group(replica=1))
    ran = run("plan", "m.yaml", "missing.yaml")
    assert (ran.code, ran.out) == (2, "")
    lines = ran.err.splitlines()
    assert lines[0] == "error: missing.yaml: does not exist"
    assert lines[1].startswith("error: m.yaml:7: AgentStream default/tasks: spec.retention.minAge: '1 hour'")
    assert len(lines) == 3
    (folder / "m.yaml").write_text("kind: Service\napiVersion: v1\n")
    assert run("plan", "m.yaml").err == (
        "error: m.yaml: declares no AgentStream, no ConsumerGroup and no StreamReplay\n"
    )
    assert len(running.asked) == asked


def test_standard_input_is_a_manifest_and_an_address_is_not_enough(running: FakeApi, folder: Path) -> None:
    ran = run("plan", "-", given=yaml.safe_dump_all([a_stream(), a_group()]))
    assert (ran.code, ran.out) == (0, "2 as declared\n")
    write(folder, a_stream())
    ran = run("plan", "m.yaml", "--api", running.url)
    assert ran.code == 2
    assert ran.err.startswith("error: --api: the HTTP API knows no manifests")


def test_values_of_others_are_cut_and_move_no_cursor(running: FakeApi, folder: Path) -> None:
    del running
    hostile = a_stream(contracts=[{"type": "event", "schema": {"type": "object", "title": "\x1b[2J" * 40}}])
    write(folder, hostile, a_group())
    ran = run("plan", "m.yaml")
    assert "\x1b" not in ran.out
    assert all(len(line) < 200 for line in ran.lines)


def test_a_data_directory_that_cannot_be_read_is_a_line(running: FakeApi, folder: Path) -> None:
    del running
    write(folder, a_stream())
    resources = folder / ".agentstream" / "resources.json"
    resources.unlink()
    resources.mkdir()
    ran = run("plan", "m.yaml")
    assert (ran.code, len(ran.err.splitlines())) == (3, 1)
