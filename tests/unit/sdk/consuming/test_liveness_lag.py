"""A loop that was held up is noticed, whoever looks first after it."""

from __future__ import annotations

import asyncio

import pytest

from agentstream.consuming import liveness as loop_lag
from agentstream.consuming.liveness import LoopLag


class Clock:
    """A clock that is set by hand."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    by_hand = Clock()
    monkeypatch.setattr(loop_lag, "time", by_hand)
    return by_hand


def test_what_comes_while_the_loop_turns_came_now(clock: Clock) -> None:
    beating = LoopLag(1.0)
    beating.reset()
    clock.now += 2.0
    assert beating.stalled_since() == 102.0


def test_what_comes_after_a_stop_may_have_come_at_its_beginning(clock: Clock) -> None:
    beating = LoopLag(1.0)
    beating.reset()
    clock.now += 2.1
    assert beating.stalled_since() == 100.0
    assert beating.stalled_since() == 100.0
    beating.reset()
    assert beating.stalled_since() == clock.now


async def test_a_beat_that_comes_before_whoever_asks_hides_nothing(clock: Clock) -> None:
    beating = LoopLag(0.001)
    beating.reset()
    clock.now += 5.0
    task = asyncio.create_task(beating.watch())
    await asyncio.sleep(0)
    assert beating.stalled_since() == 100.0
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
