"""Prometheus and promtool: what the Makefile fetched, or what is installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from support.helm import ROOT

_FETCHED = ROOT / ".venv/prometheus/usr/bin"


def program(name: str) -> Path:
    """Finds `prometheus` or `promtool`; skips the test with a word that cannot be missed if there is none."""
    found = _FETCHED / name if (_FETCHED / name).exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"NO {name.upper()}, NEITHER ALERTS NOR DASHBOARDS ARE TESTED: run `make prometheus`")
    return Path(found)


def promtool(*arguments: str | Path) -> str:
    """Runs promtool. Returns what it prints; fails the test with it if promtool does."""
    done = subprocess.run(
        [program("promtool"), *arguments], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
