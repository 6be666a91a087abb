"""What dead letters say, whoever wrote them, and which of them belong together."""

from __future__ import annotations

import random
import string
import uuid
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentstream.printable import printable
from agentstream_operator.plan.letters import (
    LONGEST_ERROR,
    LONGEST_NORMALISED,
    LONGEST_REASON,
    MOST_GROUPS,
    UNREADABLE,
    Letter,
    LetterGroup,
    LetterGroups,
    normalised,
    read_letter,
)
from support.examples import trying

KEY = "{t.tasks}:dlq:coder"
_UUID = "7ec428e0-1b1c-4d8e-9f5e-0c5a3f2f4b6d"
_BODY = b'{"v": 1, "id": "%s", "payload": {"doc": 7}}' % _UUID.encode()


def fields(**named: bytes) -> list[bytes]:
    return [part for name, value in named.items() for part in (name.encode(), value)]


def letter(
    letter_id: str = "20-0", *, reason: str = "MaxDeliveries", error: str = "", body: bytes = _BODY
) -> Letter:
    buried = fields(
        m=body, origin=b"10-1", attempts=b"5", fence=b"7", reason=reason.encode(), error=error.encode()
    )
    return read_letter(KEY, letter_id, buried)


def test_a_letter_is_the_message_and_why_it_died() -> None:
    buried = fields(
        m=_BODY,
        s=b"sig",
        t=b"00-trace",
        origin=b"10-1",
        attempts=b"5",
        fence=b"7",
        reason=b"MaxDeliveries",
        error=b"E: no",
    )
    found = read_letter(KEY, "20-0", buried)
    assert (found.id, found.origin, found.attempts, found.fence) == ("20-0", "10-1", 5, 7)
    assert (found.reason, found.error, found.message) == ("MaxDeliveries", "E: no", _UUID)
    assert (found.entry.body, found.entry.signature, found.entry.trace) == (_BODY, b"sig", b"00-trace")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("origin", b"-"),
        ("origin", b""),
        ("origin", b"0-0"),
        ("origin", b"1-1" * 10_000_000),
        ("origin", b"\xff\xfe-1"),
        ("attempts", b"-1"),
        ("attempts", b"1e9"),
        ("attempts", b"9" * 5_000),
        ("attempts", "٣".encode()),
        ("fence", b"nan"),
        ("fence", b""),
    ],
)
def test_a_number_or_an_id_that_is_none_counts_as_missing(name: str, value: bytes) -> None:
    assert getattr(read_letter(KEY, "20-0", fields(**{"m": _BODY, name: value})), name) is None


def test_texts_of_others_are_one_short_line() -> None:
    found = read_letter(KEY, "20-0", fields(reason=b"\x1b[2Jx" * 1_000_000, error=b"a\nb\xff" * 5_000_000))
    assert found.reason.startswith(r"\x1b[2Jx\x1b")
    assert len(found.reason) == LONGEST_REASON
    assert found.error.startswith(r"a\nb")
    assert len(found.error) == LONGEST_ERROR


def test_a_letter_without_anything_is_one_nonetheless() -> None:
    found = read_letter(KEY, "20-0", fields(other=b""))
    assert found == Letter(found.entry, None, None, None, UNREADABLE, "")
    assert (found.entry.body, found.message) == (None, None)


def test_of_a_letter_that_is_too_large_only_the_size_is_known() -> None:
    found = read_letter(KEY, "20-0", 20_000_000)
    assert (found.entry.size, found.reason, found.message) == (20_000_000, UNREADABLE, None)


@trying(300)
@given(
    st.lists(
        st.tuples(st.sampled_from(["m", "origin", "attempts", "fence", "reason", "error", "x"]), st.binary())
    )
)
def test_whatever_agents_write_is_read(pairs: list[tuple[str, bytes]]) -> None:
    found = read_letter(KEY, "20-0", [part for name, value in pairs for part in (name.encode(), value)])
    assert found.reason == printable(found.reason, LONGEST_REASON)
    assert found.error == printable(found.error, LONGEST_ERROR)
    assert found.message is None or len(found.message) <= 64


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b"[" * 100_000, b'{"id": 7}', b'{"id": null}', b"\xff", b'{"id": ""}']
)
def test_a_message_without_a_readable_id_has_none(body: bytes) -> None:
    assert letter(body=body).message is None


def test_an_id_of_a_message_is_bounded() -> None:
    assert letter(body=b'{"id": "%s"}' % (b"\\u001b" + b"x" * 10_000_000)).message == r"\x1b" + "x" * 59 + "…"


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        ("", ""),
        ("ValueError", "ValueError"),
        (
            "openai.RateLimitError: 429 used 18204 of 30,000 tokens",
            "openai.RateLimitError: 429 used <n> of <n> tokens",
        ),
        ("Error code: 503 - {'error': {'message': 'down'}}", "Error code: 503 - {<text>: {<text>: <text>}}"),
        ("line 429 of 512", "line <n> of <n>"),
        (f"no message {_UUID}", "no message <id>"),
        ("no entry 1796040762366-0", "no entry <id>"),
        ("<Doc object at 0x7f3c2a1b>", "<Doc object at <id>>"),
        ("commit 9f1f4653ab is gone", "commit <id> is gone"),
        ("KeyError: 'doc'", "KeyError: <text>"),
        ('no "such" `file`', "no <text> <text>"),
        ("can't read what isn't there", "can't read what isn't there"),
        ("open('it isn't there')", "open(<text>)"),
        ("timed out after 1.5 s, 300ms or 1m12s", "timed out after <duration>, <duration> or <duration>"),
        ("since 2026-11-30T09:00:00.123Z", "since <time>"),
        ("10.0.0.1:6379 refused -5 of 1e-9", "<n> refused <n> of <n>"),
        ("gpt-4 and doc7", "gpt-<n> and doc<n>"),
        ("payload.doc: expected int", "payload.doc: expected int"),
        ("a\nb", r"a\nb"),
    ],
)
def test_values_are_left_out_of_an_error(error: str, shown: str) -> None:
    assert normalised(error) == shown


_MARKS = st.sampled_from(
    ["'", '"', "`", "\\", "<", ">", "-", ".", ":", "…", "\x1b", "\n", " ", "n", "m", "s", "0x", "Error: "]
)
_TEXTS = st.lists(st.one_of(st.text(max_size=8), _MARKS, st.integers().map(str)), max_size=200).map("".join)


@trying(1_000)
@given(_TEXTS)
def test_a_normalised_error_is_short_and_stays_as_it_is(error: str) -> None:
    shown = normalised(error)
    assert normalised(shown) == shown
    assert printable(shown) == shown
    assert len(shown) <= LONGEST_NORMALISED


def _hexadecimal(seed: random.Random) -> str:
    return f"a1{seed.getrandbits(seed.choice((24, 32, 64))):06x}"


_RANDOM = {
    "number": lambda seed: str(
        seed.choice((seed.randrange(10**9), seed.uniform(0.1, 1e6), -seed.randrange(1, 99)))
    ),
    "id": lambda seed: str(uuid.UUID(int=seed.getrandbits(128))),
    "hex": _hexadecimal,
    "quoted": lambda seed: repr(
        "".join(seed.choices(string.ascii_letters + string.digits + " .-", k=seed.randrange(9)))
    ),
    "duration": lambda seed: f"{seed.randrange(10**5) / 10} {seed.choice(('ms', 's', 'minutes'))}",
}


@trying(300)
@given(
    st.lists(
        st.one_of(
            st.text(string.ascii_lowercase, min_size=1, max_size=6),
            st.sampled_from(sorted(_RANDOM)).map(str.upper),
        ),
        max_size=12,
    ),
    st.randoms(use_true_random=False),
    st.randoms(use_true_random=False),
)
def test_errors_that_differ_in_values_only_are_the_same(
    words: list[str], one: random.Random, other: random.Random
) -> None:
    def filled(seed: random.Random) -> str:
        return " ".join(_RANDOM[word.lower()](seed) if word.isupper() else word for word in words)

    assert normalised(filled(one)) == normalised(filled(other))


@given(
    st.text(string.ascii_letters + " ,;()", max_size=100),
    st.text(string.ascii_letters + " ,;()", max_size=100),
)
def test_errors_without_values_are_told_apart(one: str, other: str) -> None:
    assert (normalised(one) == normalised(other)) == (one == other)


@pytest.mark.parametrize(
    "part", ["'", "'a ", " 'a'a", '"`', "1", "1.", "1m", "a1", "1-", "-1", "a'1'", "f0-", "é", "0x"]
)
def test_no_error_takes_long(part: str) -> None:
    assert len(normalised(part * 1_000_000)) <= LONGEST_NORMALISED


def test_letters_that_died_of_the_same_are_one_group() -> None:
    groups = LetterGroups()
    for added in (
        letter("30-0", error="429 used 7 of 9"),
        letter("10-0", error="429 used 6 of 9", body=b""),
        letter("20-0", reason="InvalidPayload", error="payload.doc: expected int"),
        letter("9-0", error="429 used 99 of 9"),
    ):
        groups.add(added)
    assert groups.largest_first() == [
        LetterGroup("MaxDeliveries", "<n> used <n> of <n>", 3, "9-0", "30-0", _UUID),
        LetterGroup("InvalidPayload", "payload.doc: expected int", 1, "20-0", "20-0", _UUID),
    ]
    assert groups.others == 0


@given(
    st.lists(
        st.tuples(st.integers(1, 50), st.sampled_from("AB"), st.sampled_from(["x 1", "x 2", "y"])),
        max_size=30,
        unique_by=lambda dead: dead[0],
    )
)
def test_the_order_in_which_letters_are_read_does_not_matter(dead: list[tuple[int, str, str]]) -> None:
    letters = [letter(f"{at}-0", reason=reason, error=error) for at, reason, error in dead]
    forward, backward = LetterGroups(), LetterGroups()
    for added in letters:
        forward.add(added)
    for added in reversed(letters):
        backward.add(added)
    assert forward.largest_first() == backward.largest_first()
    counted = Counter((found.reason, normalised(found.error)) for found in letters)
    assert {(group.reason, group.error): group.count for group in forward.largest_first()} == counted


def test_errors_that_are_all_different_take_bounded_memory() -> None:
    groups = LetterGroups()
    for number in range(MOST_GROUPS + 50):
        name = "".join(chr(ord("k") + int(digit)) for digit in str(number))
        groups.add(letter(f"{number + 1}-0", error=name))
    assert len(groups.largest_first()) == MOST_GROUPS
    assert groups.others == 50
