"""What a container of a template means on this machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from agentstream_operator.local.processes.commands import Command, command_of, expand
from agentstream_operator.resources.consumergroup import ConsumerGroup
from agentstream_operator.resources.parse import parse_resource

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
