"""Which entry of a stream a group met first: what is remembered, for how long, and what that costs."""

from __future__ import annotations

import hashlib

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentstream.protocol.keys import StreamKeys
from agentstream.protocol.signatures import SKEW, WINDOW

KEY = "{t.tasks}"
KEYS = StreamKeys(KEY)
APART = 450_000
MOST = 100_000
SIGNED_APART = int((WINDOW + 2 * SKEW + 1) * 1000)


def digest(name: object) -> bytes:
    return hashlib.sha256(str(name).encode()).digest()[:16]


def originals(stream: redis.Redis, *entries: tuple[str, object]) -> list[str]:
    """Asks for entries, by id and name of the message."""
    met = [part for entry, name in entries for part in (entry, digest(name))]
    return list(stream.fcall("as1_originals", 1, KEY, KEYS.seen("g"), KEYS.earlier("g"), *met))


def test_the_first_entry_of_a_message_is_the_original_whoever_asks_and_however_often(
    admin: redis.Redis,
) -> None:
    assert originals(admin, ("5-0", "a"), ("5-1", "a"), ("5-2", "b")) == ["5-0", "5-0", "5-2"]
    assert originals(admin, ("5-1", "a"), ("5-0", "a")) == ["5-0", "5-0"]


def test_what_the_time_that_is_signed_lets_through_is_remembered_however_long_nothing_comes() -> None:
    assert APART > SIGNED_APART


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(st.integers(0, 2 * APART), min_size=1, max_size=30),
    copies=st.lists(st.tuples(st.integers(0, 29), st.integers(1, SIGNED_APART)), max_size=30),
)
def test_no_copy_within_reach_of_its_message_is_taken_for_one(
    admin: redis.Redis, steps: list[int], copies: list[tuple[int, int]]
) -> None:
    """Ids only grow: a copy comes when the stream has not gone further than its own id."""
    admin.delete(KEYS.seen("g"), KEYS.earlier("g"))
    now, added, due = 1_700_000_000_000, {}, []
    for number, step in enumerate(steps):
        for at, message in sorted(each for each in due if each[0] <= now + step):
            assert originals(admin, (f"{at}-1", message)) == [added[message]]
        due = [each for each in due if each[0] > now + step]
        now += step
        added[number] = f"{now}-{number + 2}"
        assert originals(admin, (added[number], number)) == [added[number]]
        due += [(now + later, number) for of, later in copies if of == number]
    assert admin.hlen(KEYS.seen("g")) + admin.hlen(KEYS.earlier("g")) <= len(steps) + 2


def test_what_is_out_of_reach_is_forgotten(admin: redis.Redis) -> None:
    for n in range(20):
        originals(admin, (f"{1_000_000 + n * APART}-0", n))
    assert admin.hlen(KEYS.seen("g")) + admin.hlen(KEYS.earlier("g")) <= 6


def test_no_more_than_so_many_are_remembered_and_a_call_is_fast(admin: redis.Redis) -> None:
    for first in range(0, 3 * MOST, 500):
        originals(admin, *((f"{1_000_000 + n // 1000}-{n}", n) for n in range(first, first + 500)))
    known = admin.hlen(KEYS.seen("g")), admin.hlen(KEYS.earlier("g"))
    assert max(known) <= MOST + 2
    assert originals(admin, ("999999999-0", 3 * MOST - 1)) != ["999999999-0"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("5-0",),
        ("5-0", b"short"),
        ("x", digest(1)),
        ("5", digest(1)),
        ("99999999999999999999999-0", digest(1)),
        ("5-0", digest(1), "5-1"),
        ("5-0", digest(1)) * 501,
    ],
)
def test_what_is_no_id_and_digest_is_refused_with_a_constant_text(
    admin: redis.Redis, arguments: tuple[str | bytes, ...]
) -> None:
    with pytest.raises(
        redis.ResponseError,
        match=r"^(a digest has 16|an argument must be the id|wrong number of arguments)",
    ):
        admin.fcall("as1_originals", 1, KEY, KEYS.seen("g"), KEYS.earlier("g"), *arguments)


def test_what_somebody_wrote_beside_it_is_no_reason_to_fail(admin: redis.Redis) -> None:
    for garbage in ("", "x", "-1", "nan", "1e400", "9" * 40, "inf"):
        admin.hset(KEYS.seen("g"), "from", garbage)
        assert originals(admin, ("5-0", garbage)) == ["5-0"]
        assert originals(admin, ("5-1", garbage)) == ["5-0"]
