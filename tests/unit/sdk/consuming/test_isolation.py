"""When a buffer that a suspect blocks is looked at again."""

from __future__ import annotations

import asyncio
import time

from agentstream.consuming.hold import Hold
from agentstream.consuming.isolation import PoisonIsolation, PrefetchQueue
from support.holds import a_hold
from support.waiting import until


def waiting(number: int, counter: int = 1) -> Hold:
    return a_hold(f"{number}-0", counter=counter)


class Line(PoisonIsolation):
    """One with nobody behind it.

    Attributes:
        looks: how often it was looked again.
        released: what was handed back.
        nudges: how often others were told.
    """

    def __init__(self, buffer: PrefetchQueue) -> None:
        super().__init__(buffer, self, self._nudged, self._looked)
        self.looks = self.nudges = 0
        self.released: list[Hold] = []

    async def release(self, *entries: Hold, patience: float | None) -> None:
        assert patience is None
        self.released += entries

    async def _nudged(self) -> None:
        self.nudges += 1

    def _looked(self) -> None:
        self.looks += 1
        self.watch()


async def order_poller() -> None:
    """Many turns of the event loop."""
    for _ in range(100):
        await asyncio.sleep(0)


async def test_a_suspect_that_nobody_asks_for_is_waited_for_without_haste() -> None:
    buffer = PrefetchQueue(patience=0.01)
    buffer.put(waiting(1, counter=3))
    line = Line(buffer)
    assert buffer.take(1, time.monotonic()) is None
    line.watch()
    await until(lambda: line.looks)
    await order_poller()
    assert line.looks == 1


async def test_what_waited_for_a_second_is_handed_back_and_others_are_told() -> None:
    buffer = PrefetchQueue(patience=10)
    suspect, ordinary = waiting(1, counter=3), waiting(2)
    buffer.put(suspect)
    buffer.put(ordinary)
    line = Line(buffer)
    assert buffer.take(0, time.monotonic() - 1) is suspect
    line.watch()
    await order_poller()
    await line.ended()
    assert (line.released, line.nudges) == ([ordinary], 1)


async def test_nothing_is_handed_back_once_it_is_stopped() -> None:
    buffer = PrefetchQueue(patience=10)
    buffer.put(waiting(1, counter=3))
    buffer.put(waiting(2))
    line = Line(buffer)
    buffer.take(0, time.monotonic() - 1)
    line.watch()
    line.stop()
    line.watch()
    await order_poller()
    assert (line.released, line.looks) == ([], 0)
