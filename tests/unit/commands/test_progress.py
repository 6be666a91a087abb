"""Progress of a replay: a bar for who looks, lines for logs, nothing where programs read."""

from __future__ import annotations

import io

import pytest

from agentstream_operator.commands.output import Printer
from agentstream_operator.commands.progress import open_progress
from agentstream_operator.commands.replaying import describe
from agentstream_operator.queue_api.documents import ReplayAnswer

SHOWN = "replay team-a/again Running: {}/4 moved · 1 handled"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def answer(moved: int) -> ReplayAnswer:
    spec = {"groupRef": {"name": "coder"}, "from": {"source": "DeadLetters"}}
    status = {"phase": "Running", "matched": 4, "moved": moved, "handled": 1}
    fields = {"namespace": "team-a", "name": "again", "uid": "u", "phase": "Running"}
    return ReplayAnswer.model_validate({**fields, "spec": spec, "status": status})


def show(file: io.StringIO, output: str = "table") -> str:
    with open_progress(Printer(file, output), describe) as progress:
        for moved in (1, 1, 3):
            progress.show(answer(moved))
    return file.getvalue()


def test_on_a_terminal_a_bar_goes_to_standard_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert not show(Terminal())
    assert SHOWN.format(3) in capsys.readouterr().err


def test_elsewhere_there_is_a_line_for_each_change(capsys: pytest.CaptureFixture[str]) -> None:
    assert show(io.StringIO()).splitlines() == [SHOWN.format(1), SHOWN.format(3)]
    assert not capsys.readouterr().err


@pytest.mark.parametrize("file", [io.StringIO(), Terminal()])
def test_where_programs_read_there_is_nothing(file: io.StringIO, capsys: pytest.CaptureFixture[str]) -> None:
    assert not show(file, "json")
    assert not capsys.readouterr().err
