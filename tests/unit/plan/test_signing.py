"""When a stream gets a new key."""

from __future__ import annotations

import pytest

from agentstream.protocol.signatures import Keys, key_that_signs
from agentstream_operator.plan.signing import LIVE, SPREAD, due_in, with_key

NOW = 1_800_000_000.0
FIRST: Keys = with_key((), "a", "s" * 43, 0, NOW)
SECOND: Keys = with_key(FIRST, "b", "t" * 43, 1, NOW)


def test_the_first_key_signs_at_once() -> None:
    assert [(key.id, key.signs_from) for key in FIRST] == [("a", NOW)]


def test_a_further_key_signs_when_it_is_everywhere() -> None:
    assert [key.id for key in SECOND] == ["b", "a"]
    assert key_that_signs(SECOND, NOW + SPREAD - 1).id == "a"
    assert key_that_signs(SECOND, NOW + SPREAD).id == "b"


def test_two_keys_are_live() -> None:
    assert [key.id for key in with_key(SECOND, "c", "u" * 43, 2, NOW + 500)] == ["c", "b"]
    assert len(SECOND) == LIVE


@pytest.mark.parametrize(
    ("keys", "rotation", "since", "due"),
    [
        ((), 0, 0, 0),
        ((), 5, 0, 0),
        (FIRST, 0, 0, None),
        (FIRST, 1, 0, 0),
        (SECOND, 1, 0, None),
        (SECOND, 0, 0, None),
        (SECOND, 2, 0, 2 * SPREAD),
        (SECOND, 2, SPREAD, SPREAD),
        (SECOND, 7, 2 * SPREAD, 0),
        (SECOND, 7, 9 * SPREAD, 0),
    ],
)
def test_a_key_goes_only_when_nobody_signs_with_it_any_more(
    keys: Keys, rotation: int, since: float, due: float | None
) -> None:
    assert due_in(keys, rotation, NOW + since) == due
