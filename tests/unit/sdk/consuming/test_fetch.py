"""How much one read asks for is a pure decision."""

from __future__ import annotations

import pytest

from agentstream.consuming.fetch import read_count


def test_a_read_asks_for_no_more_bytes_than_may_wait_for_a_handler() -> None:
    assert read_count(10_000, 1 << 20, 2 << 20) == 2
    assert read_count(10_000, 1 << 20, 0) == 1
    assert read_count(10_000, 1 << 20, 64 << 20) == 4


@pytest.mark.parametrize(
    ("free", "largest", "count"),
    [
        (1, 100, 1),
        (10, 100, 5),
        (10_000, 100, 500),
        (10_000, 0, 500),
        (10_000, 64 << 10, 64),
        (10_000, 1 << 20, 4),
        (10_000, 8 << 20, 1),
        (0, 8 << 20, 1),
    ],
)
def test_a_read_asks_for_no_more_than_there_is_room_for_nor_for_more_than_others_may_wait_for(
    free: int, largest: int, count: int
) -> None:
    assert read_count(free, largest) == count
