"""`startFrom` becomes the id with which the group is created."""

from __future__ import annotations

from calendar import timegm
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentstream_operator.resources.consumergroup import start_id

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
