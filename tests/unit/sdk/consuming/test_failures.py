"""Lines about failed attempts: one each, and a traceback for each kind of error."""

from __future__ import annotations

import json
import logging

import pytest
from pythonjsonlogger.json import JsonFormatter

from agentstream.consuming import failures
from agentstream.consuming.failures import Tracebacks, log_failure


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


def fail(error: Exception) -> None:
    raise error


def raised(error: Exception) -> Exception:
    try:
        fail(error)
    except type(error) as caught:
        return caught
    raise AssertionError


@pytest.fixture
def tracebacks(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of fresh tracebacks."""
    clock = Clock()
    monkeypatch.setattr(failures, "_tracebacks", Tracebacks(always=False, clock=clock))
    return clock


def test_the_first_of_a_kind_has_a_traceback_and_the_next_is_a_line(
    tracebacks: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(3):
        log_failure(logging.WARNING, "attempt 2 of 5, again in 1.8 s", raised(ValueError(f"no {number}")))
    text = logging.Formatter("%(message)s")
    first, *others = (text.format(record) for record in caplog.records)
    assert first.startswith(
        "attempt 2 of 5, again in 1.8 s: ValueError: no 0\nTraceback (most recent call last)"
    )
    assert others == [f"attempt 2 of 5, again in 1.8 s: ValueError: no {n}" for n in (1, 2)]


def test_each_line_as_json_has_the_traceback(tracebacks: Clock, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        log_failure(logging.WARNING, "attempt", raised(ValueError("no")))
    first, second = (json.loads(JsonFormatter("%(message)s").format(record)) for record in caplog.records)
    assert "raise error" in first["exc_info"]
    assert "exc_info" not in second
    assert second["traceback"] == first["exc_info"]


def test_another_class_and_another_place_are_another_kind(tracebacks: Clock) -> None:
    shown = failures._tracebacks
    here = ValueError("elsewhere")
    try:
        raise here
    except ValueError:
        pass
    errors = [raised(ValueError()), raised(KeyError()), here, ValueError("never raised")]
    assert [shown.is_due(error) for error in errors] == [True] * 4
    assert [shown.is_due(error) for error in errors] == [False] * 4


def test_a_kind_comes_again_after_an_hour(tracebacks: Clock) -> None:
    error = raised(ValueError())
    assert failures._tracebacks.is_due(error)
    tracebacks.advance(3599)
    assert not failures._tracebacks.is_due(error)
    tracebacks.advance(1)
    assert failures._tracebacks.is_due(error)


def test_what_is_remembered_of_ever_new_kinds_is_bounded(tracebacks: Clock) -> None:
    kinds = [raised(type(f"Error{n}", (Exception,), {})()) for n in range(1000)]
    for error in kinds:
        assert failures._tracebacks.is_due(error)
    assert len(failures._tracebacks._logged) == 256
    assert not failures._tracebacks.is_due(kinds[-1])


def test_all_have_one_where_this_is_asked_for() -> None:
    shown, error = Tracebacks(always=True), raised(ValueError())
    assert shown.is_due(error)
    assert shown.is_due(error)


def test_the_text_of_a_stranger_stays_in_one_line(
    tracebacks: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        log_failure(logging.WARNING, "attempt", raised(ValueError("a\nERROR forged \x1b[2J" + "x" * 5000)))
    line = caplog.records[1].getMessage()
    assert line.startswith("attempt: ValueError: a\\nERROR forged \\x1b[2Jxxx")
    assert len(line) < 600
    assert "\nERROR forged" not in vars(caplog.records[1])["traceback"]
