"""The command line: clear lines for mistakes, quick answers."""

from __future__ import annotations

import platform
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


def test_valid_manifests_are_counted(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text(STREAM)
    assert run("validate", str(tmp_path)) == (0, "1 resource, no mistakes\n")


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
    code, text = run("operator", "--redis-url", "rediss://redis", "--redis-ca-file", str(tmp_path / "ca.crt"))
    assert code == 2
    assert text.startswith(f"error: --redis-ca-file: {tmp_path}/ca.crt is not a PEM certificate")
    assert text.count("\n") == 1


def test_missing_parts_of_the_installation_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "agentstream_operator.local.dev", None)
    code, text = run("dev", "m.yaml")
    assert code == 2
    assert text.endswith("pip install 'agentstream-operator[dev]'\n")


def test_a_machine_without_a_server_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(LocalError, match=r"^there is no embedded Valkey for this machine"):
        server_binary()
