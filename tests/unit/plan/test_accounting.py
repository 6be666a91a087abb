"""What became of a group's messages, and whether it gets on with them."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentstream_operator.plan.accounting import (
    BOUNDS,
    Account,
    GroupTotals,
    Latency,
    accumulate_account,
    counters,
)
from agentstream_operator.plan.observed import GroupSeen, StreamSeen
from agentstream_operator.plan.signal import Activity, Progress, follow_progress, work_of


def observed(added: int, group: GroupSeen) -> StreamSeen:
    return StreamSeen(now=0, type="stream", added=added, groups={"g": group})


def group(*, read: int | None = None, pending: int = 0, undelivered: int = 0, **stats: int) -> GroupSeen:
    return GroupSeen(
        exists=True,
        read=read,
        pending=pending,
        undelivered=undelivered,
        stats={name.replace("_", ":"): value for name, value in stats.items()},
    )


def account_of(*observations: tuple[int, GroupSeen]) -> Account:
    seen: list[GroupTotals] = []
    for added, g in observations:
        seen.append(counters(observed(added, g), g, seen[-1] if seen else None))
    account = Account()
    for before, after in pairwise(seen):
        account = accumulate_account(account, before, after)
    return account


def test_only_what_happened_since_the_first_observation_counts() -> None:
    account = account_of(
        (10, group(acked=5, skipped=1, retried=2, resettled=2, dead=1, le_5=5)),
        (15, group(acked=8, skipped=2, retried=3, resettled=3, dead=2, le_5=7, le_10=1)),
    )
    assert (account.sent, account.acknowledged, account.skipped, account.retried, account.dead) == (
        5,
        3,
        1,
        1,
        1,
    )
    assert account.latency.counts == {5.0: 2, 10.0: 1}
    assert account.lost == 0


def test_what_was_trimmed_before_it_was_settled_is_lost() -> None:
    assert account_of((10, group()), (10, group(trimmed=3))).lost == 3


def test_what_was_delivered_and_is_neither_settled_nor_pending_is_lost() -> None:
    account = account_of(
        (10, group(read=10, pending=5, base_read=0, settled=5)),
        (10, group(read=10, pending=2, base_read=0, settled=6)),
    )
    assert account.lost == 2


def test_what_was_read_before_the_group_was_followed_does_not_count_as_lost() -> None:
    followed = group(read=10, pending=2, base_read=4, base_settled=3, settled=7)
    assert account_of((10, followed), (10, followed)).lost == 0


def test_entries_that_were_overrun_count_once_whether_the_group_read_on_or_not() -> None:
    before = group(read=10, base_read=0, settled=10, undelivered=90)
    overrun = group(read=10, base_read=0, settled=10, overrun=50, undelivered=40)
    after = group(read=61, base_read=0, settled=11, overrun=50, undelivered=39)
    assert account_of((100, before), (100, overrun)).lost == 50
    assert account_of((100, before), (100, overrun), (100, after)).lost == 50


def taken(g: GroupSeen, *, trims_oldest: bool = False) -> int:
    return counters(observed(100, g), g, trims_oldest=trims_oldest).taken


def test_what_others_took_is_what_was_read_and_is_neither_settled_nor_pending() -> None:
    begun = {"base_read": 10, "base_settled": 7, "base_trimmed": 2, "base_overrun": 3, "base_gone": 1}
    rest = {"undelivered": 50, "pending": 5}
    assert taken(group(**rest, **begun, settled=42, trimmed=2, overrun=3, retried=1)) == 0
    assert taken(group(**rest, **begun, settled=40, trimmed=2, overrun=3, retried=1)) == 2
    assert taken(group(**rest, **begun, settled=40, trimmed=2, overrun=5, retried=1)) == 0, "trimmed by us"
    assert taken(group(**rest, **begun, settled=42, trimmed=6, overrun=3, retried=1)) == 4
    assert taken(group(**rest, **begun, settled=42, trimmed=6, overrun=3, retried=1), trims_oldest=True) == 0
    assert taken(group(**rest, **begun, settled=42, trimmed=2, overrun=3, retried=4)) == 3
    assert taken(group(**rest, **begun, settled=40, trimmed=2, overrun=3, base_unsure=1)) == 0
    assert taken(group(**rest, settled=0)) == 0, "it is not known where its account began"


def test_replays_are_retries_that_nobody_asked_the_group_for() -> None:
    before = GroupSeen(exists=True, retry_length=1, stats={"retried": 1, "acked": 9})
    during = GroupSeen(exists=True, retry_length=4, stats={"retried": 1, "replayed": 3, "acked": 9})
    after = GroupSeen(exists=True, stats={"retried": 1, "replayed": 3, "resettled": 3, "acked": 12})
    account = account_of((9, before), (9, during), (9, after))
    assert (account.acknowledged, account.replayed, account.lost) == (3, 3, 1)
    assert account_of((9, before), (9, during)).lost == 0


def test_retries_that_are_nowhere_are_lost() -> None:
    before = GroupSeen(exists=True, retry_length=2, delayed=1, stats={"retried": 4, "resettled": 1})
    after = GroupSeen(exists=True, retry_length=0, delayed=1, stats={"retried": 4, "resettled": 1})
    assert account_of((9, before), (9, after)).lost == 2


def test_a_stream_that_vanished_takes_with_it_what_was_unsettled() -> None:
    account = account_of(
        (10, group(acked=4, settled=4, undelivered=5, pending=1)),
        (0, GroupSeen(exists=False)),
        (3, group(acked=2, undelivered=1)),
    )
    assert account.lost == 6
    assert (account.sent, account.acknowledged) == (3, 2)


def test_a_failover_that_loses_the_last_writes_loses_no_more_than_was_added_meanwhile() -> None:
    """100 were added in all, 90 on the replica; it knows that 80 were settled, not that 95 were."""
    before = group(
        read=98, pending=3, undelivered=2, base_read=0, base_settled=0, settled=95, acked=95, le_5=95
    )
    after = group(
        read=82, pending=2, undelivered=8, base_read=0, base_settled=0, settled=80, acked=80, le_5=80
    )
    account = account_of((100, before), (90, after))
    assert (account.sent, account.acknowledged, account.lost) == (0, 0, 5)
    assert account.latency.counts == {}
    later = group(
        read=93, pending=0, undelivered=0, base_read=0, base_settled=0, settled=93, acked=93, le_5=93
    )
    account = account_of((100, before), (90, after), (93, later))
    assert (account.sent, account.acknowledged, account.lost) == (3, 13, 5)


def test_a_failover_that_loses_what_was_done_to_retries_counts_nothing_again() -> None:
    begun = {"read": 9, "base_read": 0, "base_settled": 0, "settled": 9, "retried": 5}
    account = account_of((9, group(**begun, acked=8, resettled=4)), (9, group(**begun, acked=7, resettled=3)))
    assert (account.acknowledged, account.retried, account.sent) == (0, 0, 0)


def test_a_group_that_is_gone_for_a_while_and_comes_back_as_it_was_is_no_failover() -> None:
    before = group(read=4, pending=1, undelivered=6, base_read=0, base_settled=0, settled=3)
    gone = GroupSeen(exists=False, stats=before.stats)
    anew = group(read=0, undelivered=2, base_read=0, base_settled=3, settled=3)
    assert account_of((10, before), (0, gone)).lost == 7
    account = account_of((10, before), (0, gone), (2, anew))
    assert (account.sent, account.lost) == (2, 7)


def test_what_is_delivered_again_at_the_checkpoint_is_no_longer_lost() -> None:
    dropped = group(read=10, pending=0, base_read=0, settled=5)
    restored = group(read=None, undelivered=5, settled=5)
    assert (
        account_of(
            (10, group(read=10, pending=5, base_read=0, settled=5)), (10, dropped), (10, restored)
        ).lost
        == 0
    )


def test_counters_that_a_deleted_group_took_with_it_begin_anew() -> None:
    account = account_of((10, group(acked=9, le_5=9)), (10, group()), (11, group(acked=1, le_5=1)))
    assert account.acknowledged == 1
    assert account.latency.counts == {5.0: 1}


@pytest.mark.parametrize(
    ("counts", "share", "expected"),
    [
        ({}, 0.5, None),
        ({5.0: 0}, 0.5, None),
        ({10.0: 4}, 0.5, 8.5),
        ({10.0: 4}, 1.0, 10.0),
        ({1.0: 50, 2.0: 50}, 0.5, 1.0),
        ({1.0: 50, 3.0: 50}, 0.75, 2.5),
        ({1.0: 95, math.inf: 5}, 0.95, 1.0),
        ({1.0: 90, math.inf: 10}, 0.95, math.inf),
        ({1.0: 0, 2.0: 10}, 0.0, 1.0),
    ],
)
def test_a_percentile_is_interpolated_within_its_bucket(
    counts: dict[float, int], share: float, expected: float | None
) -> None:
    assert Latency(counts).percentile(share) == expected


@given(
    waits=st.lists(st.integers(0, 5_000_000), min_size=1, max_size=50),
    share=st.floats(0, 1),
    is_known=st.booleans(),
)
def test_a_percentile_is_in_the_bucket_of_the_exact_one_and_nothing_that_was_not_seen(
    waits: list[int], share: float, *, is_known: bool
) -> None:
    def bucket(wait: float) -> float:
        return next((float(bound) for bound in BOUNDS if wait <= bound), math.inf)

    slowest = float(max(waits)) if is_known else math.inf
    found = Latency(Counter(map(bucket, waits)), slowest).percentile(share)
    assert found is not None
    exact = sorted(waits)[max(math.ceil(share * len(waits)) - 1, 0)]
    lower = max((bound for bound in (0, *BOUNDS) if bound < bucket(exact)), default=0)
    assert lower <= found <= bucket(exact)
    assert not is_known or found <= max(slowest, lower)


def test_a_single_slow_message_is_as_slow_as_it_was() -> None:
    found = Latency({120_000.0: 1}, 95_000.0)
    assert 90_000 <= (found.percentile(0.5) or 0) <= (found.percentile(0.95) or 0) <= 95_000


@pytest.mark.parametrize("written", [0, 3, 10**13])
def test_what_an_agent_wrote_for_the_slowest_one_makes_no_percentile_leave_its_bucket(written: int) -> None:
    assert 90_000 <= (Latency({120_000.0: 5}, float(written)).percentile(0.5) or 0) <= 120_000


def moved(backlog: int, settled: int = 0, resettled: int = 0) -> GroupSeen:
    return GroupSeen(exists=True, undelivered=backlog, stats={"settled": settled, "resettled": resettled})


def test_settling_is_progress() -> None:
    assert follow_progress(Progress(1, 100), moved(5, settled=2), 200) == Progress(2, 200)
    assert follow_progress(Progress(1, 100), moved(5, settled=1, resettled=1), 200) == Progress(2, 200)


def test_having_nothing_to_do_is_progress() -> None:
    assert follow_progress(Progress(1, 100), moved(0, settled=1), 200) == Progress(1, 200)


def test_a_backlog_of_which_nothing_is_settled_is_none() -> None:
    assert follow_progress(Progress(1, 100), moved(5, settled=1), 200) == Progress(1, 100)


def test_the_first_look_begins_the_time() -> None:
    assert follow_progress(None, moved(5), 200) == Progress(0, 200)


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
def test_work_stands_after_three_leases_or_a_minute_without_settlement_or_renewal(
    *, backlog: int, lease: int, waited: int, expected: bool
) -> None:
    now = 1000 + waited
    assert (work_of(Progress(0, 1000), moved(backlog), lease, now) is Activity.STANDING) is expected
    running = work_of(Progress(0, 1000, renewed=now - lease), moved(backlog), lease, now)
    assert running is (Activity.RUNNING if expected else Activity.SETTLING)
