"""A stream that is read page by page is what a range of it is, in either order."""

from __future__ import annotations

from typing import Literal

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from agentstream.protocol.commands import PAGE
from agentstream.protocol.replaying import FIRST, LAST, PageEntry, after, page, parse_page
from support.entries import KEY
from support.examples import examples

Order = Literal["forward", "backward"]
ORDERS = st.sampled_from(("forward", "backward"))
HIGHEST = f"{2**64 - 1}-{2**64 - 1}"
IDS = st.builds("{}-{}".format, st.integers(1, 9), st.integers(0, 3))


def read(raw: redis.Redis, start: str, end: str, count: int, order: Order) -> list[PageEntry]:
    found: list[PageEntry] = []
    for _ in range(1000):
        got = parse_page(raw.execute_command(*page(KEY, start, end, count, order)))
        assert len(got.entries) <= min(max(count, 1), PAGE)
        found += got.entries
        if got.next is None:
            return found
        if order == "forward":
            start = got.next
        else:
            end = got.next
    pytest.fail("it finds no end")


def test_pages_together_are_the_range(stream: redis.Redis, raw: redis.Redis) -> None:
    bounds = st.one_of(IDS, IDS.map(after))

    @settings(max_examples=examples(100))
    @given(
        st.sets(IDS, max_size=12),
        bounds | st.just(FIRST),
        bounds | st.just(LAST),
        st.integers(0, 10),
        ORDERS,
    )
    def check(ids: set[str], start: str, end: str, count: int, order: Order) -> None:
        raw.delete(KEY)
        for entry in sorted(ids):
            raw.xadd(KEY, {"m": entry}, id=entry)
        expected = [entry.decode() for entry, _ in raw.xrange(KEY, start, end)]
        if order == "backward":
            expected.reverse()
        found = read(raw, start, end, count, order)
        assert [entry.id for entry in found] == expected
        assert all(entry.fields == [b"m", entry.id.encode()] for entry in found)

    check()


@pytest.mark.parametrize("order", ["forward", "backward"])
def test_the_last_id_of_all_ends_it(stream: redis.Redis, raw: redis.Redis, order: Order) -> None:
    raw.xadd(KEY, {"m": "x"}, id="1-1")
    raw.xadd(KEY, {"m": "x"}, id=HIGHEST)
    expected = ["1-1", HIGHEST]
    found = [entry.id for entry in read(raw, FIRST, LAST, 1, order)]
    assert found == (expected if order == "forward" else expected[::-1])


def test_a_page_ends_by_bytes_and_withholds_what_is_too_large(stream: redis.Redis, raw: redis.Redis) -> None:
    for _ in range(5):
        raw.xadd(KEY, {"m": b"x" * (400 << 10)})
    raw.xadd(KEY, {"m": b"x" * (18 << 20)})
    raw.xadd(KEY, {"m": "last"})
    first = parse_page(raw.execute_command(*page(KEY, FIRST, LAST, 100)))
    assert len(first.entries) == 3
    found = read(raw, FIRST, LAST, 100, "forward")
    assert [entry.withheld for entry in found] == [0] * 5 + [(18 << 20) + 1, 0]
    assert found[5].fields == []
    assert found[6].fields == [b"m", b"last"]


def test_without_the_key_nothing_is_found(raw: redis.Redis) -> None:
    assert parse_page(raw.execute_command(*page("{t.none}", FIRST, LAST, 10))) == ((), None)


@pytest.mark.parametrize(
    "arguments",
    [
        ("x", "+", 1, "forward"),
        ("-", "((1-1", 1, "forward"),
        ("(-", "+", 1, "forward"),
        ("1", "+", 1, "forward"),
        ("-", "+", "x", "forward"),
        ("-", "+", -1, "forward"),
        ("-", "+", 1, "sideways"),
        ("-", "+", 1),
    ],
)
def test_other_arguments_are_refused(stream: redis.Redis, arguments: tuple[object, ...]) -> None:
    with pytest.raises(redis.ResponseError, match=r"^(an argument|unknown order|wrong number)"):
        stream.execute_command("FCALL_RO", "as1_page", 1, KEY, *arguments)
