"""How long a reply may have waited for an event loop that stood still."""

from __future__ import annotations

import asyncio

import pytest

from agentstream.consuming import loop_lag
from agentstream.consuming.loop_lag import LoopLag


class Clock:
    """A clock that is set by hand."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def loop_clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    by_hand = Clock()
    monkeypatch.setattr(loop_lag, "time", by_hand)
    return by_hand


def test_what_comes_while_the_loop_turns_came_now(loop_clock: Clock) -> None:
    beating = LoopLag(1.0)
    beating.reset()
    loop_clock.now += 2.0
    assert beating.stalled_since() == 102.0


def test_what_comes_after_a_stop_may_have_come_at_its_beginning(loop_clock: Clock) -> None:
    beating = LoopLag(1.0)
    beating.reset()
    loop_clock.now += 2.1
    assert beating.stalled_since() == 100.0
    assert beating.stalled_since() == 100.0
    beating.reset()
    assert beating.stalled_since() == loop_clock.now


async def test_a_beat_that_comes_before_whoever_asks_hides_nothing(loop_clock: Clock) -> None:
    beating = LoopLag(0.001)
    beating.reset()
    loop_clock.now += 5.0
    task = asyncio.create_task(beating.watch())
    await asyncio.sleep(0)
    assert beating.stalled_since() == 100.0
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
