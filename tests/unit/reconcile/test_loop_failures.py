"""What fails in a loop is counted and logged once; a loop that completes no round is told of."""

from __future__ import annotations

import logging

import pytest

from agentstream.errors import ServerRefused
from agentstream_operator.reconcile import supervision
from agentstream_operator.reconcile.state.loop_failures import STANDS, Loop, LoopFailures
from agentstream_operator.reconcile.supervision import supervised


def test_a_failure_is_logged_until_it_is_another_and_again_after_a_success(
    caplog: pytest.LogCaptureFixture,
) -> None:
    failures = LoopFailures()
    with caplog.at_level(logging.INFO):
        told = [failures.failed(Loop.CLEAN, "a", ServerRefused(why)) for why in ("x", "x", "y", "y")]
        told.append(failures.failed(Loop.CLEAN, "b", ServerRefused("y")))
        failures.fine(Loop.CLEAN, "a")
        failures.fine(Loop.CLEAN, "a")
        told.append(failures.failed(Loop.CLEAN, "a", ServerRefused("y")))
    assert told == [True, False, True, False, True, True]
    assert failures.counts[Loop.CLEAN] == 6
    assert [record.message for record in caplog.records].count("can clean up a again") == 1
    assert "Traceback" not in caplog.text


def test_a_bug_is_logged_with_its_place(caplog: pytest.LogCaptureFixture) -> None:
    failures = LoopFailures()
    try:
        int("x")
    except ValueError as error:
        failures.failed(Loop.MEASURE, "a", error)
    assert "Traceback" in caplog.text


@pytest.mark.parametrize("loop", [Loop.MEASURE, Loop.CLEAN])
def test_a_loop_that_completes_no_round_stands(monkeypatch: pytest.MonkeyPatch, loop: Loop) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    failures = LoopFailures()
    assert failures.standing() is None
    failures.completed(loop)
    failures.not_completed(loop, ValueError("odd"))
    now += STANDS
    assert failures.standing() is None
    now += 1
    assert failures.standing() == f"cannot {loop} streams for 46 s: ValueError: odd"
    failures.completed(loop)
    assert failures.standing() is None


async def test_a_task_that_ends_begins_again_later_and_later(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pauses: list[float] = []
    runs = 0

    class EnoughError(BaseException):
        pass

    async def run() -> None:
        nonlocal runs
        runs += 1
        if runs == 2:
            raise ValueError("odd")

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 7:
            raise EnoughError

    monkeypatch.setattr(supervision.asyncio, "sleep", pause)
    with pytest.raises(EnoughError):
        await supervised("count", run)
    assert pauses == [1, 2, 4, 8, 16, 30, 30]
    assert runs == 7
    assert "the task to count ended; it begins again in 2 s" in caplog.text
    assert "ValueError: odd" in caplog.text
