"""Where a message is in a group: in one of its places at a time, whatever else is there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import redis

from agentstream.protocol.commands import DONE, GroupCalls
from agentstream.protocol.keys import StreamKeys
from agentstream.protocol.routes import Consumes
from agentstream.protocol.whereabouts import (
    RetryHeader,
    Whereabouts,
    parse_whereabouts,
    whereabouts,
)
from support.entries import KEY, Pending, now

CALLS = GroupCalls(Consumes("tasks", KEY, "g", broadcast=True), "c")
KEYS = StreamKeys(KEY)
LARGEST = 17 << 20


@pytest.fixture
def raw(stream: redis.Redis) -> Iterator[redis.Redis]:
    """The administrator of a stream with the group `g`, who gets replies as bytes."""
    options = {**stream.connection_pool.connection_kwargs, "decode_responses": False}
    with redis.Redis(connection_pool=redis.ConnectionPool(**options)) as client:
        yield client


def where(raw: redis.Redis, entry: str, group: str = "g") -> Whereabouts:
    """Where an entry is, after all calls that this takes."""
    found = parse_whereabouts(raw.execute_command(*whereabouts(KEY, group, entry)))
    while not found.is_complete and found.retry is None:
        command = whereabouts(KEY, group, entry, found.rank, found.before)
        found = parse_whereabouts(raw.execute_command(*command))
    return found


def add(raw: redis.Redis, count: int = 1) -> list[str]:
    return [raw.xadd(KEY, {"m": "{}"}).decode() for _ in range(count)]


def held(raw: redis.Redis, count: int = 1) -> list[str]:
    """Entries that the consumer `c` holds."""
    ids = add(raw, count)
    raw.xreadgroup("g", "c", {KEY: ">"})
    return ids


def fail(raw: redis.Redis, entry: str, delay: int) -> None:
    assert raw.execute_command(*CALLS.retry(Pending(entry), delay, 3, "Failed", "boom")) == DONE


def test_what_no_consumer_has_is_ahead_of_the_group(raw: redis.Redis) -> None:
    (first,) = held(raw)
    (second,) = add(raw)
    found = where(raw, second)
    assert (found.last, found.is_there, found.holder, found.retry) == (first, True, None, None)


def test_what_is_held_says_by_whom(raw: redis.Redis) -> None:
    (entry,) = held(raw)
    holder = where(raw, entry).holder
    assert holder is not None
    assert (holder.consumer, holder.deliveries) == ("c", 1)


def test_a_trimmed_entry_that_is_held_is_both(raw: redis.Redis) -> None:
    (entry,) = held(raw)
    raw.xdel(KEY, entry)
    found = where(raw, entry)
    assert found.holder is not None
    assert not found.is_there


def test_a_delayed_retry_says_when_it_is_due_and_why(raw: redis.Redis) -> None:
    (entry,) = held(raw)
    fail(raw, entry, 60_000)
    found = where(raw, entry)
    assert found.retry is not None
    assert found.retry.header == RetryHeader(3, "Failed", "boom")
    assert found.retry.due is not None
    assert 0 < found.retry.due - now(raw) <= 60_000
    assert (found.noted, found.retry.id, found.holder) == ("retrying", None, None)


def test_a_due_retry_is_on_the_retry_stream_and_may_be_held(raw: redis.Redis) -> None:
    (entry,) = held(raw)
    fail(raw, entry, 0)
    ((retry, _),) = raw.xrange(KEYS.retry("g"))
    found = where(raw, entry).retry
    assert found is not None
    assert (found.id, found.due, found.holder, found.header.error) == (retry.decode(), None, None, "boom")
    raw.xreadgroup("g", "other", {KEYS.retry("g"): ">"})
    found = where(raw, entry).retry
    assert found is not None
    assert found.holder is not None
    assert found.holder.consumer == "other"


def test_what_is_settled_is_nowhere(raw: redis.Redis) -> None:
    settled, dead = held(raw, 2)
    assert raw.execute_command(*CALLS.settle(CALLS.main, "acked", [Pending(settled)])) == [DONE]
    assert raw.execute_command(*CALLS.dead_letter(Pending(dead), 5, "Failed", "boom")) == DONE
    for entry, noted in ((settled, ""), (dead, "dead")):
        found = where(raw, entry)
        assert (found.last, found.holder, found.retry, found.noted) == (dead, None, None, noted)


def test_one_among_thousands_is_found(raw: redis.Redis) -> None:
    ids = held(raw, 6_000)
    for number, entry in enumerate(ids):
        fail(raw, entry, 60_000 + number if number % 2 else 0)
    for wanted in (0, 1, 2_999, 3_000, 5_998, 5_999):
        found = where(raw, ids[wanted]).retry
        assert found is not None, wanted
        assert (found.due is None) == (wanted % 2 == 0)
    assert where(raw, "1-1").retry is None


def test_moves_change_with_each_retry(raw: redis.Redis) -> None:
    seen = set()
    entries = held(raw, 3)
    for entry, delay in zip(entries, (0, 60_000, 0), strict=True):
        seen.add(where(raw, "1-1").moves)
        fail(raw, entry, delay)
    seen.add(where(raw, "1-1").moves)
    assert len(seen) == 4


@pytest.mark.parametrize("entry", ["", "-", "1", "1-1-1", "(1-1", "1-99999999999999999999"])
def test_what_is_no_id_is_refused(raw: redis.Redis, entry: str) -> None:
    with pytest.raises(redis.exceptions.ResponseError, match="must be the id of an entry"):
        where(raw, entry)


def test_without_a_group_or_a_stream_nothing_is_known(raw: redis.Redis) -> None:
    (entry,) = add(raw)
    assert where(raw, entry, "other") == Whereabouts(None, True, "", None, None, None, None, "0 0 0 0 0 0")
    raw.delete(KEY)
    assert where(raw, entry) == Whereabouts(None, False, "", None, None, None, None, "0 0 0 0 0 0")


@pytest.mark.parametrize("key", [KEYS.delay("g"), KEYS.retry("g"), KEYS.parked("g"), KEYS.stats("g")])
def test_a_key_of_another_type_is_an_error_that_says_nothing_else(raw: redis.Redis, key: str) -> None:
    (entry,) = add(raw)
    raw.delete(key)
    raw.set(key, "x")
    with pytest.raises(redis.exceptions.ResponseError, match=r"WRONGTYPE|cannot read"):
        where(raw, entry)


MADE_UP: tuple[Any, ...] = (
    b"",
    b"\x94",
    b"1-1",
    b"\x94\xa31-1" + b"\xc0" * 3,
    b"\x94\xa31-1\x01\x90\x01",
    b"\x94\xa31-1\x01\x92\xa1x\xa2{}\x01",
    b"\x94\xa31-1\x01\x92\xa1x" + b"\xdb\x00\x01\x00\x00" + b"[" * 0x10000 + b"\x01",
    b"1-1" + b"x" * LARGEST,
)


def test_delayed_retries_that_somebody_made_up_stop_nothing(raw: redis.Redis) -> None:
    for score, member in enumerate(MADE_UP):
        raw.zadd(KEYS.delay("g"), {member: score})
    raw.zadd(KEYS.delay("g"), {b"never": float("inf"), b"before": float("-inf"), b"in part": 0.5})
    assert where(raw, "1-1").retry is None


def test_headers_that_somebody_made_up_are_as_good_as_none(raw: redis.Redis) -> None:
    for x in (
        '{"origin": "1-1", "error": "%s"}' % ("x" * 100_000),
        '{"origin": "1-1", "attempts": {}',
        "1-1",
        '"1-1"',
    ):
        raw.xadd(KEYS.retry("g"), {"x": x})
    found = where(raw, "1-1").retry
    assert found is not None
    assert found.header == RetryHeader()
