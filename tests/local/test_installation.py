"""What a newcomer installs: one name, and the quickstart runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from agentstream_operator.commands.extra import KUBERNETES

ROOT = Path(__file__).parents[2]
MOST = 60 * 2**20
"""Bytes that the installation may take: less than half of what it took with the packages for clusters."""


def uv() -> str:
    return shutil.which("uv") or str(ROOT / ".bootstrap" / "bin" / "uv")


def run(*command: str | Path, **more: str) -> str:
    """Runs a command. Returns its output."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("COVERAGE_", "PYTHONPATH"))}
    ran = subprocess.run(
        command, env={**environment, **more}, capture_output=True, text=True, check=False, timeout=300
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout + ran.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheels of this repository, and what the lock file says belongs to them."""
    place = tmp_path_factory.mktemp("installed")
    lock = ("--frozen", "--no-default-groups", "--no-emit-workspace", "--package", "agentstream-operator")
    run(
        uv(),
        "build",
        "--quiet",
        "--directory",
        ROOT,
        "--wheel",
        "--all-packages",
        "--out-dir",
        place / "wheels",
    )
    run(uv(), "export", "--quiet", "--directory", ROOT, *lock, "--output-file", place / "locked.txt")
    run(uv(), "venv", "--quiet", "--python", sys.executable, place / "venv")
    install = (uv(), "pip", "install", "--quiet", "--python", place / "venv" / "bin" / "python")
    run(*install, "--require-hashes", "--requirement", place / "locked.txt")
    run(*install, "--no-index", "--find-links", place / "wheels", "agentstream-operator")
    return place / "venv"


def test_it_has_what_the_lock_says_and_nothing_for_clusters(installed: Path) -> None:
    (packages,) = installed.glob("lib/python3*/site-packages")
    assert not [name for name in KUBERNETES if (packages / name).exists()]
    assert sum(file.lstat().st_size for file in packages.rglob("*") if file.is_file()) < MOST


def test_it_runs_the_quickstart(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "a.txt").write_text("some words")
    said = run(
        installed / "bin" / "agentstream", "dev", ROOT / "examples" / "quickstart",
        "--until-idle", "1s", "--data", tmp_path / "data",
        QUICKSTART_ROOT=str(tmp_path / "tree"), QUICKSTART_OUTPUT=str(tmp_path / "out"),
    )  # fmt: skip
    assert "everything is ready" in said
    assert "a.txt" not in said
    assert (tmp_path / "out" / "report.md").exists()


def test_the_console_brings_its_pages_and_files(installed: Path) -> None:
    names = "console.css", "console.js", "icon.svg"
    script = (
        "from importlib.resources import files; from agentstream_operator.console.pages import *; "
        "page = ShownPage('login.html', 'Log in', {'next': '/console', 'problem': None}); "
        "print(render(page, None, '/console/login'), "
        "*(x.name for x in files('agentstream_operator.console').joinpath('static').iterdir()))"
    )
    said = run(installed / "bin" / "python", "-c", script)
    assert "<h1>Log in</h1>" in said
    assert all(name in said for name in names)
