"""What the embedded Valkey is told, and what its log means."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentstream_operator.local.processes.supervisor import describe_exit, restart_delay
from agentstream_operator.local.server import valkey
from agentstream_operator.local.server.valkey import (
    ValkeySettings,
    cause_of_end,
    config_text,
    explain,
    half_of_memory,
)

DATA = Path("DATA")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "1:M 1 Nov 2026 23:53:34.6 # Error writing to the AOF file: No space left on device",
            "cannot write to DATA: No space left on device",
        ),
        (
            "1:M 1 Nov 2026 23:53:34.6 # Short write while writing to the AOF file: (nwritten=1, expected=2)",
            "cannot write to DATA: No space left on device",
        ),
        (
            "1:M 1 Nov 2026 23:53:34.6 # Can't open or create append-only dir appendonlydir: Not a directory",
            "cannot write to DATA: Not a directory",
        ),
        (
            "1:M 1 Nov 2026 23:53:34.6 # Can't open the append-only file x.aof: Permission denied",
            "cannot write to DATA: Permission denied",
        ),
        (
            "1:M 1 Nov 2026 23:53:34.6 # Warning: Could not create 127.0.0.1:7: bind: Address already in use",
            "cannot listen on port 7: Address already in use",
        ),
        ("1:M 23 Nov 2026 23:53:34.665 * Ready to accept connections tcp", None),
        ("no log line", None),
    ],
)
def test_a_line_of_the_log_says_what_it_means(line: str, expected: str | None) -> None:
    assert explain(line, DATA, 7) == expected


def test_why_a_server_ended_is_the_latest_thing_with_a_meaning() -> None:
    lines = [
        "1:M 1 Nov 2026 23:53:34.6 # Error writing to the AOF file: No space left on device",
        "1:M 1 Nov 2026 23:53:34.6 # bye bye...",
    ]
    assert cause_of_end(lines, DATA, 7) == "cannot write to DATA: No space left on device"


def test_why_a_server_ended_is_otherwise_its_latest_warning() -> None:
    lines = ["1:M 1 Nov 2026 23:53:34.6 # Bad file format", "1:M 23 Nov 2026 23:53:34.665 * Module unloaded"]
    assert cause_of_end(lines, DATA, 7) == "Bad file format"


def test_why_a_server_ended_may_be_any_line() -> None:
    assert cause_of_end([">>> 'prot 7'", "Bad directive"], DATA, 7) == "Bad directive"


def test_a_silent_server_is_said_to_be_silent() -> None:
    assert cause_of_end([], DATA, 7) == "it logged nothing"


def test_a_path_with_quotes_and_spaces_is_quoted() -> None:
    settings = ValkeySettings(Path("/v"), Path('/a "b" \\c'), 7, 1, "secret")
    assert 'dir "/a \\"b\\" \\\\c"\n' in config_text(settings)


def test_settings_show_no_password() -> None:
    assert "secret" not in repr(ValkeySettings(Path("/v"), DATA, 7, 1, "secret"))


def test_the_memory_of_a_control_group_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "max").write_text("1000000\n")
    monkeypatch.setattr(valkey, "_LIMIT", tmp_path / "max")
    assert half_of_memory() == 500_000


@pytest.mark.parametrize("text", ["max\n", None])
def test_without_a_control_group_the_machine_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str | None
) -> None:
    if text is not None:
        (tmp_path / "max").write_text(text)
    monkeypatch.setattr(valkey, "_LIMIT", tmp_path / "max")
    assert half_of_memory() > 500_000


def test_restarts_are_held_back_more_and_more() -> None:
    assert [restart_delay(n) for n in (1, 2, 3, 9, 10**6)] == [0.2, 0.4, 0.8, 30.0, 30.0]


@pytest.mark.parametrize(
    ("code", "expected"), [(0, "exit code 0"), (-9, "killed by SIGKILL"), (-250, "killed by signal 250")]
)
def test_an_end_is_put_into_words(code: int, expected: str) -> None:
    assert describe_exit(code) == expected
