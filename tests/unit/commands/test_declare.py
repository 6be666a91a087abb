"""What all commands have in common: quick help, and lines for mistakes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from support.fake_api import run

HEAVY = (
    "aiohttp",
    "fastapi",
    "hiredis",
    "httpx",
    "kopf",
    "kubernetes",
    "rich",
    "uvicorn",
    "yaml",
)
IMPORTED = f"""
import sys
from agentstream_operator.cli import main
try:
    main()
finally:
    print(sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)
"""


@pytest.mark.parametrize("command", [[], ["lag"], ["top"], ["dev"]])
def test_help_imports_nothing_that_takes_long(command: list[str]) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", IMPORTED, *command, "--help"], capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stderr) == (0, "[]\n")
    assert ran.stdout.startswith("Usage: ")


def test_an_unknown_option_is_said_without_a_box(folder: Path) -> None:
    ran = run("lag", "--nonsense")
    assert ran.code == 2
    assert ran.err.splitlines()[-1].startswith("Error: No such option: --nonsense")
