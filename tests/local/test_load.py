"""The load test judges what it did; how fast a machine is belongs to no test."""

from __future__ import annotations

import subprocess
import sys

from support.helm import ROOT


def verdict(*arguments: str) -> tuple[int, dict[str, str]]:
    """The exit code, and for each promise whether it was kept."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "load/run.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith(("ok ", "FAIL "))]
    assert lines, done.stderr
    return done.returncode, {line[1]: line[0] for line in lines}


def test_everything_that_was_sent_is_delivered_and_acknowledged() -> None:
    _, kept = verdict("--rate", "100", "--minutes", "0.05")
    assert {kept[name] for name in ("lost", "waiting", "delivered", "receipts", "failed")} == {"ok"}


def test_a_rate_that_no_machine_keeps_fails_the_test_and_loses_nothing() -> None:
    code, kept = verdict("--rate", "1000000", "--batch", "1000", "--minutes", "0.05")
    # a question whose time is over in the flood is a dead letter
    assert (code, kept["rate"], kept["lost"]) == (1, "FAIL", "ok")
