"""Suspects run alone, everything else in order, and a blocked buffer is looked at again."""

from __future__ import annotations

import asyncio
import time

import pytest

from agentstream.consuming.hold import CLAIMED, Hold
from agentstream.consuming.isolation import PoisonIsolation, PrefetchQueue, is_exhausted, is_suspect
from support.holds import RETRIES, a_hold
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


def buffer(*held: Hold) -> PrefetchQueue:
    made = PrefetchQueue(patience=10)
    for one in held:
        made.put(one)
    return made


def test_deliveries_start_in_the_order_of_their_arrival() -> None:
    first, second = waiting(1), waiting(2)
    made = buffer(first, second)
    assert [made.take(0, 0), made.take(1, 0), made.take(2, 0)] == [first, second, None]


def test_what_was_tried_often_and_said_so_each_time_is_no_suspect() -> None:
    header = [b"m", b"{}", b"x", b'{"origin": "1-0", "attempts": 9}']
    retried = a_hold("5-0", header, source=RETRIES)
    made = buffer(retried, waiting(2))
    assert retried.next_attempt == 10
    assert made.take(0, 0) is retried
    assert made.take(1, 0) is not None


def test_what_was_claimed_twice_and_never_settled_is_a_suspect() -> None:
    claimed = a_hold("1-0", counter=2, state=CLAIMED)
    made = buffer(claimed)
    assert made.take(1, 0) is None


def test_a_suspect_starts_before_others_and_alone() -> None:
    ordinary, suspect = waiting(1), waiting(2, counter=3)
    made = buffer(ordinary, suspect)
    assert made.take(0, 0) is suspect
    assert made.take(1, 0) is None
    made.ended([suspect])
    assert made.take(0, 0) is ordinary


def test_a_suspect_waits_for_others_to_end_but_not_for_ever() -> None:
    suspect = waiting(1, counter=3)
    made = buffer(suspect)
    assert made.take(1, 5) is None
    assert made.changes_at(5) == 15
    assert made.take(1, 14.9) is None
    # nothing to wait for: whoever asks next has it
    assert made.changes_at(15) is None
    assert made.take(1, 15) is suspect
    assert made.changes_at(15) is None


def test_what_waits_behind_a_suspect_that_runs_gives_way_after_a_second() -> None:
    first, second, ordinary = waiting(1, counter=3), waiting(2, counter=3), waiting(3)
    made = buffer(ordinary, first, second)
    assert not made.give_way(0)
    assert made.take(0, 5) is first
    assert made.changes_at(5) == 6
    assert made.give_way(5.9) == []
    assert made.give_way(6) == [ordinary, second]
    assert len(made) == 0
    assert made.changes_at(6) is None
    assert made.is_blocked


def test_what_comes_while_a_suspect_runs_gives_way_at_once_after_the_second() -> None:
    suspect, ordinary = waiting(1, counter=3), waiting(2)
    made = buffer(suspect)
    made.take(0, 5)
    assert made.changes_at(5) is None
    made.put(ordinary)
    assert made.changes_at(5) == 6
    assert made.give_way(8) == [ordinary]


def test_a_suspect_that_waits_for_others_to_end_does_not_give_way_itself() -> None:
    first, second, ordinary = waiting(1, counter=3), waiting(2, counter=3), waiting(3)
    made = buffer(first, second, ordinary)
    assert made.take(1, 5) is None
    assert made.changes_at(5) == 6
    assert made.give_way(6) == [ordinary, second]
    assert made.changes_at(6) == 15
    assert made.take(1, 15) is first


def test_nothing_gives_way_once_the_suspects_are_through() -> None:
    first, second, ordinary = waiting(1, counter=3), waiting(2, counter=3), waiting(3)
    made = buffer(first, second, ordinary)
    made.take(0, 5)
    made.ended([first])
    # the second is in the way of the third for as long as the first was, too
    assert made.take(0, 5.8) is second
    assert made.changes_at(5.8) == 6
    made.ended([second])
    assert not made.is_blocked
    assert made.give_way(9) == []
    assert made.take(0, 9) is ordinary


def test_what_is_not_held_any_more_does_not_start() -> None:
    ordinary, suspect = waiting(1), waiting(2, counter=3)
    made = buffer(ordinary, suspect)
    made.take(1, 0)
    made.discard(suspect)
    made.discard(suspect)
    assert made.changes_at(1) is None
    assert made.take(1, 0) is ordinary


def test_everything_that_waits_can_be_taken_out_at_once() -> None:
    ordinary, suspect = waiting(1), waiting(2, counter=3)
    made = buffer(ordinary, suspect)
    assert len(made) == 2
    assert made.clear() == [ordinary, suspect]
    assert len(made) == 0


def test_the_end_of_another_delivery_does_not_end_the_loneliness_of_a_suspect() -> None:
    suspect, ordinary = waiting(1, counter=3), waiting(2)
    made = buffer(suspect, ordinary)
    made.take(0, 0)
    made.ended([ordinary])
    assert made.take(1, 0) is None


@pytest.mark.parametrize("max_deliveries", [1, 2, 3, 5, 100])
def test_whoever_runs_beside_a_message_that_kills_its_process_has_an_attempt_alone(
    max_deliveries: int,
) -> None:
    beside, alone = 0, 0
    for counter in range(max_deliveries + 2):
        hold = a_hold(counter=counter, state=CLAIMED)
        if is_exhausted(hold, max_deliveries):
            break
        alone += is_suspect(hold, max_deliveries)
        beside += not is_suspect(hold, max_deliveries)
    assert (beside, beside + alone) == (min(max(max_deliveries - 1, 1), 2), max(max_deliveries, 2))


def test_a_message_that_failed_by_itself_has_no_attempt_beyond_the_last() -> None:
    header = [b"m", b"{}", b"x", b'{"origin": "1-0", "attempts": 1}']
    assert is_exhausted(a_hold("5-0", header, source=RETRIES, state=CLAIMED), 2)
    assert not is_exhausted(a_hold("5-0", header, source=RETRIES), 2)
