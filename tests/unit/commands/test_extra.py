"""A plain installation: the command line without the packages that talk to a cluster."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from agentstream_operator.commands.extra import KUBERNETES

WITHOUT = f"import sys; sys.modules.update(dict.fromkeys({sorted(KUBERNETES)!r}));"
MAIN = "from agentstream_operator.cli import main; main()"
EVERYTHING = """
import importlib, pkgutil, agentstream_operator.local.dev
for room in ("local", "commands", "queue_api"):
    package = importlib.import_module(f"agentstream_operator.{room}")
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        # the way to a cluster is the one that needs it
        if module.name != "agentstream_operator.commands.forward":
            importlib.import_module(module.name)
"""


def python(code: str, *arguments: str) -> tuple[int, str]:
    """Runs it in a Python that cannot import what the extra adds."""
    ran = subprocess.run(
        [sys.executable, "-c", WITHOUT + code, *arguments], capture_output=True, text=True, check=False
    )
    return ran.returncode, ran.stdout + ran.stderr


def test_dev_mode_and_the_command_line_import_nothing_of_it() -> None:
    assert python(EVERYTHING) == (0, "")


@pytest.mark.parametrize("command", [("--help",), ("dev", "--help"), ("operator", "--help"), ("version",)])
def test_other_commands_work_without_it(command: tuple[str, ...]) -> None:
    code, text = python(MAIN, *command)
    assert code == 0, text


@pytest.mark.parametrize(
    "command",
    [
        ("operator", "--redis-url-file", "URL"),
        ("metrics-server", "--redis-url-file", "URL", "--tls-directory", "DIR"),
        ("remove-finalizers",),
    ],
)
def test_a_command_that_needs_it_says_in_a_line_how_to_get_it(
    command: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "url").write_text("redis://o:p@redis:6379")
    filled = (each.replace("URL", f"{tmp_path}/url").replace("DIR", str(tmp_path)) for each in command)
    remedy = "needs more packages: pip install 'agentstream-operator[kubernetes]'"
    assert python(MAIN, *filled) == (2, f"error: `agentstream {command[0]}` {remedy}\n")


def test_what_is_missing_otherwise_is_not_blamed_on_it() -> None:
    code, text = python("sys.modules['yaml'] = None;" + MAIN, "validate", "m.yaml")
    assert code == 1
    assert "import of yaml halted" in text
