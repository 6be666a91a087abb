"""The numbers of streams and groups: what is not known is None, and never 0."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentstream_operator.plan.lag import Readings, drain, follow, group_lag, since, stream_lag
from agentstream_operator.plan.observed import GroupSeen, StreamSeen

NOW = 1_800_000_000_000


def seen(**group: Any) -> StreamSeen:
    found = GroupSeen(**{"exists": True, **group})
    return StreamSeen(
        "stream", now=NOW, length=10, added=20, first=f"{NOW - 5000}-0", groups={"coder": found}
    )


def test_a_group_is_counted_with_its_retries() -> None:
    counts = {"undelivered": 5, "pending": 2, "retry_length": 4, "retry_pending": 1, "delayed": 3, "due": 1}
    times = {
        "next_due": NOW + 500,
        "oldest_undelivered": f"{NOW - 2000}-0",
        "oldest_pending": f"{NOW - 3000}-0",
    }
    lag = group_lag(seen(**counts, **times, dead=7, exact=False), "coder")
    assert lag is not None
    assert (lag.undelivered, lag.pending, lag.retrying, lag.delayed, lag.dead) == (5, 3, 4, 2, 7)
    assert (lag.backlog, lag.exact, lag.oldest) == (12, False, 3.0)
    assert lag.next_due == datetime.fromtimestamp((NOW + 500) / 1000, UTC)


@pytest.mark.parametrize("group", [{"exists": False}, {"unreadable": True}])
def test_what_is_not_there_or_cannot_be_read_has_no_numbers(group: dict[str, Any]) -> None:
    assert group_lag(seen(**group), "coder") is None
    assert group_lag(seen(), "other") is None
    assert stream_lag(StreamSeen("none"), (), 10) is None


@pytest.mark.parametrize(
    ("undelivered", "pending", "seconds"),
    [
        (None, None, None),
        (29_999, 10, None),
        (30_000, None, 30),
        (None, 90_000, 90),
        (40_000, 31_000, 40),
        # of an agent's own making, or of a clock that was ahead
        (-(10**16), None, None),
        (-5, 60_000, 60),
    ],
)
def test_the_oldest_message_is_told_once_it_waits_long(
    undelivered: int | None, pending: int | None, seconds: int | None
) -> None:
    def entry(age: int | None) -> str | None:
        return None if age is None else f"{NOW - age}-1"

    group = GroupSeen(exists=True, oldest_undelivered=entry(undelivered), oldest_pending=entry(pending))
    expected = None if seconds is None else datetime.fromtimestamp(NOW // 1000 - seconds, UTC)
    # the same at every look
    assert since(group, NOW) == expected
    assert expected is None or since(group, NOW + 777) == expected


def test_nothing_unsettled_has_no_age() -> None:
    lag = group_lag(seen(), "coder")
    assert lag is not None
    assert (lag.backlog, lag.oldest, lag.next_due) == (0, None, None)


def test_a_stream_tells_its_slowest_group_and_how_far_it_reaches_back() -> None:
    lag = stream_lag(seen(undelivered=3, pending=4), ("coder", "gone"), 100)
    assert lag is not None
    assert (lag.length, lag.oldest, lag.history, lag.unsettled, lag.refuses) == (
        10,
        f"{NOW - 5000}-0",
        5.0,
        7,
        False,
    )


@pytest.mark.parametrize(
    ("gate", "unsettled", "refuses"),
    [
        (None, 7, False),
        ("11", 7, False),
        ("10", 7, True),
        ("10 coder=5", 7, True),
        ("10 coder=5", 6, False),
        ("x", 7, False),
        ("", 7, False),
    ],
)
def test_a_full_stream_refuses(gate: str | None, unsettled: int, *, refuses: bool) -> None:
    found = StreamSeen(
        "stream",
        now=NOW,
        length=10,
        gate=gate,
        groups={"coder": GroupSeen(exists=True, undelivered=unsettled)},
    )
    lag = stream_lag(found, ("coder",), 7)
    assert lag is not None
    assert lag.refuses is refuses


@pytest.mark.parametrize(
    ("backlog", "arrival", "service", "seconds"),
    [
        (0, None, None, 0.0),
        (10, None, 5.0, None),
        (10, 1.0, None, None),
        (10, 5.0, 5.0, None),
        (10, 1.0, 6.0, 2.0),
    ],
)
def test_a_backlog_drains_if_more_is_settled_than_comes(
    backlog: int, arrival: float | None, service: float | None, seconds: float | None
) -> None:
    assert drain(backlog, arrival, service) == seconds


def test_rates_are_unknown_before_the_second_reading() -> None:
    one = follow(Readings(), seen(stats={"settled": 5}), 0.0)
    assert one.added is not None
    assert one.added.value is None
    later = StreamSeen(
        "stream", now=NOW, added=40, groups={"coder": GroupSeen(exists=True, stats={"settled": 15})}
    )
    two = follow(one, later, 10.0)
    assert two.added is not None
    assert two.added.value == pytest.approx(2.0)
    assert two.settled["coder"].value == pytest.approx(1.0)


counts = st.integers(min_value=0, max_value=10**12)


names = ("undelivered", "pending", "retry_length", "retry_pending", "delayed", "due")


@given(st.fixed_dictionaries(dict.fromkeys(names, counts)))
def test_no_number_is_below_zero(group: dict[str, int]) -> None:
    lag = group_lag(seen(**group), "coder")
    assert lag is not None
    assert min(lag.undelivered, lag.pending, lag.retrying, lag.delayed, lag.backlog) >= 0
