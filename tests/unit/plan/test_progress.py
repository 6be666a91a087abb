"""Whether a group gets on with its messages."""

from __future__ import annotations

import pytest

from agentstream_operator.plan.observed import GroupSeen
from agentstream_operator.plan.signal import Progress, follow_progress, stalled


def group(backlog: int, settled: int = 0, resettled: int = 0) -> GroupSeen:
    return GroupSeen(
        exists=True, undelivered=backlog, stats={"settled": str(settled), "resettled": str(resettled)}
    )


def test_settling_is_progress() -> None:
    assert follow_progress(Progress(1, 100), group(5, settled=2), 200) == Progress(2, 200)
    assert follow_progress(Progress(1, 100), group(5, settled=1, resettled=1), 200) == Progress(2, 200)


def test_having_nothing_to_do_is_progress() -> None:
    assert follow_progress(Progress(1, 100), group(0, settled=1), 200) == Progress(1, 200)


def test_a_backlog_of_which_nothing_is_settled_is_none() -> None:
    assert follow_progress(Progress(1, 100), group(5, settled=1), 200) == Progress(1, 100)


def test_the_first_look_begins_the_time() -> None:
    assert follow_progress(None, group(5), 200) == Progress(0, 200)


@pytest.mark.parametrize(
    ("backlog", "lease", "waited", "expected"),
    [
        (1, 10_000, 60_000, False),
        (1, 10_000, 60_001, True),
        (0, 10_000, 60_001, False),
        (1, 30_000, 90_000, False),
        (1, 30_000, 90_001, True),
    ],
)
def test_a_stall_is_three_leases_or_a_minute(
    *, backlog: int, lease: int, waited: int, expected: bool
) -> None:
    assert stalled(Progress(0, 1000), group(backlog), lease, 1000 + waited) is expected
