"""Suspects run alone, and everything else in order."""

from __future__ import annotations

from agentstream.consuming.hold import CLAIMED, Hold
from agentstream.consuming.isolation import PrefetchQueue
from support.holds import RETRIES, a_hold


def waiting(number: int, counter: int = 1) -> Hold:
    return a_hold(f"{number}-0", counter=counter)


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
