"""Durations are Go's, in whole milliseconds; `startFrom` becomes the id to begin with."""

from __future__ import annotations

from calendar import timegm
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentstream_operator.resources.consumergroup import start_id
from agentstream_operator.resources.duration import (
    Duration,
    at_least,
    at_most,
    format_duration,
    parse_duration,
)

LONGEST_MS = 87_600 * 3_600_000


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        ("0s", 0),
        ("500ms", 500),
        ("10s", 10_000),
        ("1h30m", 5_400_000),
        ("30m1h", 5_400_000),
        ("1m1m", 120_000),
        ("24h", 86_400_000),
        ("87600h", LONGEST_MS),
    ],
)
def test_units_are_added_up(text, milliseconds):
    assert parse_duration(text) == Duration(milliseconds)


@pytest.mark.parametrize(
    "text", ["", "12", "12x", "1.5h", "-1s", "1 h", "1h\n", "h", "1d", "1H", "0" * 31 + "1s"]
)
def test_what_is_no_duration_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match=r"is not a duration \(write e\.g\. 24h, 1h30m\)$"):
        parse_duration(text)


def test_what_is_no_text_is_refused_alike():
    with pytest.raises(ValueError, match=r"^5 is not a duration"):
        parse_duration(5)


def test_ten_years_are_the_limit():
    with pytest.raises(ValueError, match=r"^must be at most 87600h$"):
        parse_duration("87600h1ms")
    for milliseconds in (-1, LONGEST_MS + 1):
        with pytest.raises(ValueError, match=r"^a duration must be between 0s and 87600h$"):
            Duration(milliseconds)


@given(st.integers(0, LONGEST_MS))
def test_what_is_written_reads_the_same(milliseconds):
    duration = Duration(milliseconds)
    assert parse_duration(format_duration(duration)) == duration
    assert str(duration) == format_duration(duration)


@pytest.mark.parametrize("text", ["0s", "1s500ms", "1h30m", "24h", "5m", "999ms"])
def test_the_shortest_form_has_the_largest_units_first(text):
    assert str(parse_duration(text)) == text


def test_seconds_are_the_whole_length():
    assert parse_duration("24h1s500ms").seconds == 86_401.5


def test_durations_are_ordered_by_length():
    assert parse_duration("59s") < parse_duration("1m") < parse_duration("1h")


def test_limits_include_their_ends():
    assert at_least("1s").holds(parse_duration("1s"))
    assert not at_least("1s").holds(parse_duration("999ms"))
    assert at_most("1h").holds(parse_duration("1h"))
    assert not at_most("1h").holds(parse_duration("1h1ms"))


LAST = 2**64 - 1


@pytest.mark.parametrize(
    ("start_from", "expected"),
    [
        ("Beginning", "0"),
        ("End", "$"),
        ("1700000000000-7", "1700000000000-7"),
        ("1970-01-01T00:00:00Z", "0"),
        ("1970-01-01T00:00:00.001Z", f"0-{LAST}"),
        ("1970-01-01T01:00:00+01:00", "0"),
        ("2026-11-22T10:00:00Z", f"1795341599999-{LAST}"),
        ("2026-11-22T10:00:00.123999999Z", f"1795341600122-{LAST}"),
        ("2026-11-22T11:00:00+01:00", f"1795341599999-{LAST}"),
    ],
)
def test_every_form(start_from, expected):
    assert start_id(start_from) == expected


@given(st.datetimes(min_value=datetime(1971, 1, 1)))  # noqa: DTZ001 (hypothesis wants bounds without a zone)
def test_entries_of_that_millisecond_are_included_and_earlier_ones_are_not(time):
    text = f"{time.isoformat(timespec='milliseconds')}Z"
    ms, sequence = map(int, start_id(text).split("-"))
    assert ms + 1 == timegm(time.timetuple()) * 1_000 + time.microsecond // 1_000
    assert sequence == LAST


@pytest.mark.parametrize("text", ["2023-02-29T00:00:00Z", "soon"])
def test_a_time_that_does_not_exist_is_refused(text):
    with pytest.raises(ValueError, match=rf"^'{text}' is not an existing time$"):
        start_id(text)


def test_a_time_before_the_epoch_is_refused():
    with pytest.raises(ValueError, match=r"^'1970-01-01T00:00:00\+01:00' is before 1970$"):
        start_id("1970-01-01T00:00:00+01:00")
