"""Manifests checked against each other: what the operator would say of them only later."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agentstream_operator.local.manifests.checks import Findings, check
from agentstream_operator.local.manifests.loader import load_manifests
from unit.resources.manifests import a_group, a_replay, a_stream, a_template


def checked(directory: Path, *manifests: dict[str, Any]) -> Findings:
    """What is found in one file with these manifests, without its directory."""
    file = directory / "m.yaml"
    file.write_text("\n---\n".join(json.dumps(manifest, indent=1) for manifest in manifests))
    found = check(load_manifests([file]))
    return Findings(
        [line.removeprefix(f"{directory}/") for line in found.mistakes],
        [line.removeprefix(f"{directory}/") for line in found.warnings],
    )


def elsewhere(manifest: dict[str, Any]) -> dict[str, Any]:
    """The same in another namespace."""
    return {**manifest, "metadata": {**manifest["metadata"], "namespace": "elsewhere"}}


TASKS = a_stream(producers=["boss"])
BROKEN = {"type": "event", "schema": {"type": "object", "properties": {"n": {"type": "whole"}}}}

MISTAKES = {
    "a dangling reference": ([a_group()], "no AgentStream default/tasks is declared"),
    "a reference into another namespace": ([elsewhere(TASKS), a_group()], "no AgentStream default/tasks"),
    "one key for two streams": (
        [a_stream(key="jobs", producers=["a"]), a_stream("b", key="jobs", producers=["a"])],
        "the key jobs is already used by AgentStream default/tasks at",
    ),
    "two keys with the same derived keys": (
        [a_stream(key="jobs", producers=["a"]), a_stream("b", key="{jobs}", producers=["a"])],
        "the key {jobs} is already used",
    ),
    "one group for two resources": (
        [TASKS, a_group(), a_group("other", group="coder")],
        "the group coder of the stream tasks is already used by ConsumerGroup default/coder at",
    ),
    "one Deployment for two groups": (
        [TASKS, *(a_group(name, deploymentRef={"name": "app"}, replicas=1) for name in ("a", "b"))],
        "the Deployment app is already used by ConsumerGroup default/a at",
    ),
    "a replay of no group": ([TASKS, a_replay()], "no ConsumerGroup default/coder is declared"),
    "a replay of a group elsewhere": (
        [TASKS, a_group(), elsewhere(a_replay())],
        "no ConsumerGroup elsewhere/coder is declared; add it or give its file",
    ),
    "a schema that is none": ([a_stream(contracts=[BROKEN], producers=["a"])], "is not a valid JSON Schema"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_what_cannot_be_brought_into_effect_is_a_mistake_with_its_line(tmp_path: Path, case: str) -> None:
    manifests, text = MISTAKES[case]
    (mistake,) = checked(tmp_path, *manifests).mistakes
    assert text in mistake
    assert mistake.startswith("m.yaml:")
    last = json.dumps(manifests[-1], indent=1).count("\n") + 1
    lines = sum(json.dumps(m, indent=1).count("\n") + 1 for m in manifests) + len(manifests) - 1
    assert lines - last < int(mistake.split(":")[1]) <= lines


@pytest.mark.parametrize(
    "manifests",
    [
        [TASKS, a_group()],
        [a_group(), TASKS],
        [TASKS, elsewhere(TASKS), a_group(), elsewhere(a_group())],
        [TASKS, a_group(), a_group("other", template=a_template())],
    ],
)
def test_what_belongs_together_has_no_mistakes(tmp_path: Path, manifests: list[dict[str, Any]]) -> None:
    assert checked(tmp_path, *manifests) == Findings()


def test_a_stream_that_nobody_may_send_to_is_a_warning(tmp_path: Path) -> None:
    found = checked(tmp_path, a_stream())
    assert found.mistakes == []
    (warning,) = found.warnings
    assert "spec.producers: is empty" in warning


@pytest.mark.parametrize("text", ["", "\n", "# later\n", "---\n"])
def test_an_empty_file_is_a_mistake(tmp_path: Path, text: str) -> None:
    (tmp_path / "m.yaml").write_text(text)
    assert check(load_manifests([tmp_path])).mistakes == [f"{tmp_path}/m.yaml: is empty"]


def test_a_set_without_a_resource_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n")
    assert check(load_manifests([tmp_path])).mistakes == ["no AgentStream and no ConsumerGroup is declared"]


def test_mistakes_of_a_manifest_itself_come_first(tmp_path: Path) -> None:
    found = checked(tmp_path, a_stream(wrong=1), a_group())
    assert "wrong" in found.mistakes[0]
    assert "streamRef" in found.mistakes[1]
