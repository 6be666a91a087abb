"""Manifests: what they and their templates mean here, and one clear line for each mistake."""

from __future__ import annotations

import os
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from agentstream_operator.local.manifests.documents import read_documents
from agentstream_operator.local.manifests.loader import Manifests, load_manifests
from agentstream_operator.local.processes.commands import Command, command_of, expand
from agentstream_operator.resources.consumergroup import ConsumerGroup
from agentstream_operator.resources.meta import ResourceKey
from agentstream_operator.resources.parse import parse_resource

STREAM = """apiVersion: agentstream.dev/v1alpha1
kind: AgentStream
metadata: {name: tasks}
spec:
  producers: [planner]
"""
HEAD = STREAM.partition("spec:")[0]
GROUP = """apiVersion: agentstream.dev/v1alpha1
kind: ConsumerGroup
metadata:
  name: coder
spec:
  streamRef: {name: tasks}
"""


def loaded(tmp_path: Path, text: str) -> Manifests:
    (tmp_path / "m.yaml").write_text(text)
    return load_manifests([tmp_path / "m.yaml"])


def problems(tmp_path: Path, text: str) -> list[str]:
    return [p.removeprefix(f"{tmp_path}/") for p in loaded(tmp_path, text).problems]


def test_documents_of_a_file_are_read_in_order(tmp_path: Path) -> None:
    found = loaded(tmp_path, f"{GROUP}---\n{STREAM}")
    assert [str(key) for key in found.declared] == [
        "ConsumerGroup default/coder",
        "AgentStream default/tasks",
    ]


def test_each_resource_knows_its_place(tmp_path: Path) -> None:
    found = loaded(tmp_path, f"{GROUP}---\n{STREAM}")
    assert [line.line for line in found.lines.values()] == [1, 8]


def test_files_of_a_directory_are_read_by_name(tmp_path: Path) -> None:
    (tmp_path / "b.yml").write_text(STREAM)
    (tmp_path / "a.yaml").write_text(GROUP)
    (tmp_path / "notes.txt").write_text("{{{")
    assert [key.name for key in load_manifests([tmp_path]).declared] == ["coder", "tasks"]


def test_a_file_given_twice_is_read_once(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text(STREAM)
    assert not load_manifests([tmp_path, tmp_path / "m.yaml"]).problems


def test_json_is_read_too(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text(
        '{"apiVersion":"agentstream.dev/v1alpha1","kind":"AgentStream","metadata":{"name":"t"}}'
    )
    assert load_manifests([tmp_path]).declared


def test_items_of_a_list_are_resources(tmp_path: Path) -> None:
    indented = "".join(f"    {line}\n" for line in STREAM.splitlines())
    found = loaded(tmp_path, f"apiVersion: v1\nkind: List\nitems:\n  -\n{indented}")
    assert list(found.declared) == [ResourceKey("AgentStream", "default", "tasks")]


def test_a_list_without_items_declares_nothing(tmp_path: Path) -> None:
    assert not loaded(tmp_path, "apiVersion: v1\nkind: List\n").declared


def test_empty_documents_are_nothing(tmp_path: Path) -> None:
    assert problems(tmp_path, f"---\n---\n{STREAM}---\n") == []


def test_other_kinds_are_ignored(tmp_path: Path) -> None:
    found = loaded(tmp_path, f"apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: x}}\n---\n{STREAM}")
    assert list(found.ignored) == ["Deployment"]
    assert not found.problems


def test_an_unquoted_time_is_text(tmp_path: Path) -> None:
    assert problems(tmp_path, f"{GROUP}  startFrom: 2026-01-31T12:00:00Z\n") == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            STREAM.replace("producers", "producer"),
            ["m.yaml:5: AgentStream default/tasks: spec.producer: unknown field (did you mean producers?)"],
        ),
        (
            f"{STREAM}  retention:\n    minAge: 24x\n",
            [
                (
                    "m.yaml:7: AgentStream default/tasks: spec.retention.minAge: "
                    "'24x' is not a duration (write e.g. 24h, 1h30m)"
                )
            ],
        ),
        (
            GROUP.replace("  streamRef: {name: tasks}", "  suspend: false"),
            ["m.yaml:5: ConsumerGroup default/coder: spec.streamRef: is required"],
        ),
        (
            STREAM.replace("v1alpha1", "v9"),
            [
                (
                    "m.yaml:1: AgentStream default/tasks: apiVersion: 'agentstream.dev/v9' is not supported"
                    " (write agentstream.dev/v1alpha1)"
                )
            ],
        ),
        (
            STREAM.replace("AgentStream", "AgentStreem"),
            [
                (
                    "m.yaml:2: AgentStreem default/tasks: kind: 'AgentStreem' is not one of "
                    "AgentStream, ConsumerGroup, StreamReplay"
                )
            ],
        ),
        ("- 1\n", ["m.yaml:1: Resource default/?: [1] is not a map of fields"]),
        (f"{STREAM}spec: {{}}\n", ["m.yaml:6: spec is set twice, first on line 4"]),
        (
            f"{STREAM}---\n{STREAM}",
            ["m.yaml:7: AgentStream default/tasks is declared twice, first at m.yaml:1"],
        ),
        ("a: [1\nb: 2\n", ["m.yaml:2: is not valid YAML: did not find expected ',' or ']'"]),
        ("a: !!python/object:os.system x\n", None),
        ("a: \x01\n", None),
    ],
)
def test_each_mistake_is_one_line_with_its_place(
    tmp_path: Path, text: str, expected: list[str] | None
) -> None:
    found = [p.replace(f"{tmp_path}/", "") for p in problems(tmp_path, text)]
    if expected is None:
        assert len(found) == 1
        assert found[0].startswith("m.yaml")
        assert "\n" not in found[0]
    else:
        assert found == expected


def test_two_mistakes_are_two_lines(tmp_path: Path) -> None:
    assert len(problems(tmp_path, f"{STREAM}  a: 1\n  b: 2\n")) == 2


def test_a_mistake_in_a_list_has_its_line(tmp_path: Path) -> None:
    text = f"{GROUP}  template:\n    spec:\n      containers:\n        - name: a\n        - name: B\n"
    assert problems(tmp_path, text)[0].startswith("m.yaml:11: ConsumerGroup default/coder: spec.template")


def test_an_alias_to_itself_is_a_mistake(tmp_path: Path) -> None:
    assert len(problems(tmp_path, "a: &x [*x]\n")) == 1


def test_a_path_that_does_not_exist_is_named(tmp_path: Path) -> None:
    assert load_manifests([tmp_path / "nowhere"]).problems == [f"{tmp_path}/nowhere: does not exist"]


def test_a_directory_without_manifests_is_named(tmp_path: Path) -> None:
    assert load_manifests([tmp_path]).problems == [
        f"{tmp_path}: contains no manifests (.yaml, .yml or .json files)"
    ]


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_bytes(b"\xff\xfe\xfa")
    assert load_manifests([tmp_path]).problems[0].startswith(f"{tmp_path}/m.yaml: is not UTF-8 text")


def test_a_path_below_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text(STREAM)
    assert len(load_manifests([tmp_path / "m.yaml" / "x"]).problems) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is unreadable to root")
@pytest.mark.parametrize("what", ["file", "directory"])
def test_what_cannot_be_read_is_named(tmp_path: Path, what: str) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "m.yaml").write_text(STREAM)
    locked = tmp_path / "d" if what == "directory" else tmp_path / "d" / "m.yaml"
    locked.chmod(0)
    try:
        assert "cannot be read: Permission denied" in load_manifests([tmp_path / "d"]).problems[0]
    finally:
        locked.chmod(0o700)


def test_a_field_that_is_not_there_stands_where_its_parent_stands(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text(STREAM)
    document = read_documents(tmp_path / "m.yaml")[0]
    assert document.at("spec.retention.minAge").line == 4
    assert document.at("spec.producers[7]").line == 5
    assert document.at("nothing").line == 1


SURROUNDINGS = {"PATH": "/usr/bin", "HOME": "/home/me", "AGENTSTREAM_PASSWORD": "secret"}


def a_group(pod: dict[str, Any] | None = None, **container: Any) -> ConsumerGroup:
    template = {"spec": {"containers": [{"name": "c", **container}], **(pod or {})}}
    resource = parse_resource(
        {
            "apiVersion": "agentstream.dev/v1alpha1",
            "kind": "ConsumerGroup",
            "metadata": {"name": "coder"},
            "spec": {"streamRef": {"name": "tasks"}, "template": template},
        }
    )
    assert isinstance(resource, ConsumerGroup)
    return resource


def the_command(pod: dict[str, Any] | None = None, **container: Any) -> Command:
    command = command_of(a_group(pod, **container), Path("/b"), Path("/manifests"), SURROUNDINGS)
    assert command is not None
    return command


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("$(A)/x", "1/x"),
        ("$(A)$(B)", "12"),
        ("$(UNKNOWN)", "$(UNKNOWN)"),
        ("$$(A)", "$(A)"),
        ("$A ${A} $", "$A ${A} $"),
    ],
)
def test_references_are_replaced_as_kubernetes_does(text: str, expected: str) -> None:
    assert expand(text, {"A": "1", "B": "2"}) == expected


def test_command_and_arguments_follow_each_other() -> None:
    assert the_command(command=["python", "x.py"], args=["-v"]).arguments == ("python", "x.py", "-v")


def test_arguments_refer_to_the_environment_of_the_container() -> None:
    command = the_command(
        command=["echo"], args=["$(GREETING)"], env=[{"name": "GREETING", "value": "hello"}]
    )
    assert command.arguments == ("echo", "hello")


def test_a_variable_may_refer_to_one_before_it() -> None:
    env = [{"name": "A", "value": "1"}, {"name": "B", "value": "$(A)2"}]
    assert the_command(command=["x"], env=env).environment["B"] == "12"


def test_a_variable_from_another_source_is_left_out() -> None:
    env = [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]
    assert "A" not in the_command(command=["x"], env=env).environment


def test_our_own_interpreter_comes_first() -> None:
    path = the_command(command=["python"]).environment["PATH"].split(os.pathsep)
    assert path == [str(Path(sys.executable).parent), "/usr/bin"]


def test_agents_inherit_the_surroundings_but_no_other_connection() -> None:
    environment = the_command(command=["x"]).environment
    assert environment["HOME"] == "/home/me"
    assert {n for n in environment if n.startswith("AGENTSTREAM_")} == {"AGENTSTREAM_BINDING"}


def test_the_binding_is_named_in_the_environment() -> None:
    assert the_command(command=["x"]).environment["AGENTSTREAM_BINDING"] == "/b"


def test_a_relative_directory_is_below_that_of_the_manifest() -> None:
    assert the_command(command=["x"], workingDir="sub").directory == Path("/manifests/sub")


def test_an_absolute_directory_is_taken_as_it_is() -> None:
    assert the_command(command=["x"], workingDir="/app").directory == Path("/app")


def test_the_directory_is_that_of_the_manifest_unless_given() -> None:
    assert the_command(command=["x"]).directory == Path("/manifests")


def test_the_directory_of_a_manifest_that_is_named_from_here_is_made_absolute() -> None:
    command = command_of(a_group(command=["x"]), Path("/b"), Path("sub"), {})
    assert command is not None
    assert command.directory == Path.cwd() / "sub"


def test_an_image_alone_is_no_command() -> None:
    assert command_of(a_group(image="coder:1", args=["-v"]), Path("/b"), Path("/manifests"), {}) is None


def test_a_group_without_a_template_has_no_command() -> None:
    group = a_group(command=["x"])
    bare = group.model_copy(update={"spec": group.spec.model_copy(update={"template": None})})
    assert command_of(bare, Path("/b"), Path("/manifests"), {}) is None


def test_the_time_to_end_is_that_of_kubernetes() -> None:
    assert the_command(command=["x"]).grace == 30


def test_the_time_to_end_may_be_given() -> None:
    assert the_command({"terminationGracePeriodSeconds": 45}, command=["x"]).grace == 45


def test_the_time_to_end_is_never_below_the_lease() -> None:
    assert the_command({"terminationGracePeriodSeconds": 1}, command=["x"]).grace == 10


def runnable(arguments: tuple[str, ...], directory: Path) -> str | None:
    return Command(arguments, {"PATH": os.environ["PATH"]}, directory, directory, 1.0).problem


def test_a_program_of_the_path_can_be_started(tmp_path: Path) -> None:
    assert runnable(("sh", "-c", "true"), tmp_path) is None


def test_a_program_beside_the_directory_can_be_started(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("#!/bin/sh\n")
    (tmp_path / "run").chmod(0o755)
    assert runnable(("./run",), tmp_path) is None


def test_a_missing_program_is_named(tmp_path: Path) -> None:
    assert runnable(("no-such-program",), tmp_path) == "command 'no-such-program' does not exist"


def test_a_file_that_is_no_program_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    assert runnable(("./run",), tmp_path) == "command './run' is not executable"


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    assert runnable(("sh",), tmp_path / "x") == f"workingDir {tmp_path / 'x'} is not a directory"


def test_a_command_shows_no_environment() -> None:
    assert "environment" not in repr(the_command(command=["x"]))


BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in pairwise("abcdefgh")
)
TOO_DEEP = "is nested more than 64 levels deep, or contains itself by an alias"
UNWORKABLE = {
    "an alias of itself": (f"{HEAD}spec: &s {{x: *s}}\n", f"m.yaml:4: {TOO_DEEP}"),
    "an alias of itself, twice": (f"{HEAD}spec: &s [*s, *s]\n", f"m.yaml:4: {TOO_DEEP}"),
    "deep maps": (f"{HEAD}spec: {'{a: ' * 500}1{'}' * 500}\n", f"m.yaml:4: {TOO_DEEP}"),
    "deep lists": (f"{HEAD}spec: {'[' * 20_000}{']' * 20_000}\n", f"m.yaml:4: {TOO_DEEP}"),
    "aliases of aliases": (BOMB, "m.yaml:7: has more than 1,000,000 values, with aliases replaced by"),
}


@pytest.mark.parametrize("case", UNWORKABLE)
def test_what_would_fill_the_memory_or_the_stack_is_one_line(tmp_path: Path, case: str) -> None:
    text, expected = UNWORKABLE[case]
    (problem,) = problems(tmp_path, text)
    assert problem.startswith(expected)
