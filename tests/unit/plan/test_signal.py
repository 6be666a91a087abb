"""What is known of a group's work, and how fast it comes and goes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentstream_operator.plan.observed import GroupSeen, StreamSeen
from agentstream_operator.plan.signal import (
    UNKNOWN,
    Knowledge,
    Pace,
    Rate,
    Signal,
    combine,
    follow_pace,
    follow_rate,
    read_signal,
)

GROUP = GroupSeen(
    exists=True,
    pending=3,
    undelivered=7,
    oldest_undelivered="8000-1",
    oldest_pending="5500-0",
    retry_ready=True,
    retry_length=5,
    retry_pending=2,
    delayed=4,
    due=1,
    stats={"settled": 40, "resettled": 2},
)


def seen(group: GroupSeen, now: int = 10_000) -> StreamSeen:
    return StreamSeen(type="stream", now=now, groups={"g": group})


def test_a_group_s_work_is_what_waits_and_runs_on_both_of_its_streams() -> None:
    signal = read_signal(seen(GROUP), "g", Rate(0, 100, events=20, seconds=10))
    assert signal == Signal(
        undelivered=10, pending=5, due=1, oldest=2.0, oldest_pending=4.5, arrival=2.0, settled=42
    )
    assert (signal.waiting, signal.backlog, signal.known) == (11, 16, True)


def test_an_estimate_says_so() -> None:
    group = GroupSeen(exists=True, undelivered=5000, exact=False)
    assert read_signal(seen(group), "g", None).knowledge is Knowledge.BOUNDED


@pytest.mark.parametrize("name", ["missing", "g"])
def test_a_group_that_is_not_there_is_unknown(name: str) -> None:
    assert read_signal(seen(GroupSeen(exists=False)), name, None) == UNKNOWN


def test_a_clock_that_was_set_back_makes_nothing_younger_than_new() -> None:
    assert read_signal(seen(GROUP, now=1000), "g", None).oldest == 0.0


def test_the_work_of_groups_adds_up() -> None:
    first = Signal(1, 2, 3, 4.0, 5.0, 6.0, 7)
    second = Signal(10, 20, 30, 1.0, 50.0, 60.0, 70, Knowledge.BOUNDED)
    assert combine([first, second]) == Signal(11, 22, 33, 4.0, 50.0, 66.0, 77, Knowledge.BOUNDED)
    assert combine([first]) == first
    assert combine([]) == Signal()
    assert combine([first, UNKNOWN]) == UNKNOWN


def rate_of(*readings: tuple[float, int]) -> Rate:
    rate = None
    for at, count in readings:
        rate = follow_rate(rate, count, at)
    assert rate is not None
    return rate


def test_one_reading_tells_no_rate() -> None:
    assert rate_of((0, 100)).value is None


@given(st.lists(st.floats(0.1, 100), min_size=1, max_size=30))
def test_a_steady_rate_is_found_whatever_the_intervals_are(intervals: list[float]) -> None:
    rate, at = follow_rate(None, 0, 0), 0.0
    for interval in intervals:
        at += interval
        rate = follow_rate(rate, round(at * 1000), at)
    assert rate.value == pytest.approx(1000, rel=0.02)


def test_a_burst_fades_with_time() -> None:
    rate = rate_of((0, 0), (2, 0), (4, 10_000))
    values = []
    for second in range(6, 66, 2):
        rate = follow_rate(rate, 10_000, second)
        values.append(rate.value)
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.1 * values[0]


def test_a_counter_that_began_again_says_nothing_and_is_followed_from_there() -> None:
    rate = rate_of((0, 1000), (10, 1100), (20, 5))
    assert rate.value == pytest.approx(10)
    assert follow_rate(rate, 105, 30).value == pytest.approx(10)


def test_a_clock_that_does_not_move_on_says_nothing() -> None:
    rate = rate_of((0, 0), (10, 100))
    assert follow_rate(rate, 500, 10) == rate
    assert follow_rate(rate, 500, 9) == rate


def paced(*steps: tuple[float, int, float, int]) -> Pace:
    """The pace after measurements: when, settled so far, age of the oldest that waits, consumers that run."""
    pace = None
    for at, settled, oldest, ready in steps:
        pace = follow_pace(pace, Signal(settled=settled, oldest=oldest), ready, at)
    assert pace is not None
    return pace


def test_the_pace_is_that_of_consumers_that_cannot_keep_up() -> None:
    assert paced((0, 0, 5, 2), (2, 40, 5, 2), (4, 80, 5, 2)).value == pytest.approx(10)


def test_what_runs_counts_as_half_done() -> None:
    pace = follow_pace(None, Signal(oldest=5), 1, 0)
    pace = follow_pace(pace, Signal(oldest=5, pending=8), 1, 20)
    assert pace is not None
    assert pace.value == pytest.approx(4 / 20)


def test_consumers_that_keep_up_do_not_show_what_they_can_do() -> None:
    pace = paced((0, 0, 5, 2), (10, 200, 5, 2))
    assert pace.value == pytest.approx(10)
    pace = follow_pace(pace, Signal(settled=210, oldest=0.2), 2, 20)
    assert pace is not None
    assert pace.value == pytest.approx(10)
    # nor do they in the interval in which work began to wait
    pace = follow_pace(pace, Signal(settled=220, oldest=9), 2, 30)
    assert pace is not None
    assert pace.value == pytest.approx(10)


def test_those_that_come_to_run_meanwhile_did_for_half_of_the_time() -> None:
    assert paced((0, 0, 5, 1), (10, 100, 5, 1), (20, 350, 5, 4)).value == pytest.approx(10)


@pytest.mark.parametrize("steps", [((0, 0, 5, 1), (4, 400, 5, 1)), ((0, 0, 5, 1), (60, 2, 5, 1))])
def test_a_short_look_or_few_messages_tell_no_pace(steps: tuple[tuple[float, int, float, int], ...]) -> None:
    assert paced(*steps).value is None


def test_nobody_s_pace_is_known_without_consumers() -> None:
    assert paced((0, 0, 5, 0), (10, 100, 5, 0)).value is None


def test_what_happens_while_nothing_is_known_is_nobody_s_pace() -> None:
    assert follow_pace(None, UNKNOWN, 1, 0) is None
    pace = paced((0, 0, 5, 1), (10, 100, 5, 1))
    unknown = follow_pace(pace, UNKNOWN, 1, 20)
    assert unknown is not None
    after = follow_pace(unknown, Signal(settled=9000, oldest=5), 1, 30)
    assert after is not None
    assert after.value == pytest.approx(10)
