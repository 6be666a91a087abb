"""How many consumers a group should have, also where an autoscaler decides the rest."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from agentstream_operator.plan.scaling import (
    Decision,
    Growth,
    Limits,
    Replicas,
    ScalingInput,
    ScalingRule,
    decide,
    follow_replicas,
    hpa_or_zero,
    may_lower,
)
from agentstream_operator.plan.signal import UNKNOWN, Knowledge, Signal
from agentstream_operator.resources.consumergroup import Autoscaling

LIMITS = Limits(minimum=0, maximum=5, target_backlog=100, down_after=30)
AGED = replace(LIMITS, target_age=10)


def asked(backlog: int | None, current: int | None = 0, **changes: object) -> ScalingInput:
    """A question about so much that waits, and so many replicas that all run."""
    signal = UNKNOWN if backlog is None else Signal(undelivered=backlog)
    replicas = Replicas(current) if current is not None else None
    return replace(ScalingInput(now=1000, signal=signal, replicas=replicas, limits=LIMITS), **changes)


@pytest.mark.parametrize(
    ("backlog", "replicas", "rule"),
    [
        (0, 0, ScalingRule.IDLE),
        (1, 1, ScalingRule.BACKLOG),
        (99, 1, ScalingRule.BACKLOG),
        (100, 1, ScalingRule.BACKLOG),
        (101, 2, ScalingRule.BACKLOG),
        (500, 5, ScalingRule.BACKLOG),
        (501, 5, ScalingRule.MAXIMUM),
        (10**12, 5, ScalingRule.MAXIMUM),
    ],
)
def test_replicas_follow_the_backlog_within_the_limits(
    backlog: int, replicas: int, rule: ScalingRule
) -> None:
    decision = decide(asked(backlog))
    assert (decision.replicas, decision.rule) == (replicas, rule)


@pytest.mark.parametrize("signal", [Signal(undelivered=1), Signal(pending=1), Signal(due=1)])
def test_whatever_is_not_settled_needs_a_consumer(signal: Signal) -> None:
    assert decide(asked(0, signal=signal)).replicas == 1
    assert (
        decide(asked(0, 1, signal=signal, before=Decision(1, ScalingRule.BACKLOG, ((0, 1),)))).replicas == 1
    )


def test_an_estimate_counts_like_what_is_known() -> None:
    assert decide(asked(0, signal=Signal(undelivered=300, knowledge=Knowledge.BOUNDED))).replicas == 3


def test_the_minimum_is_kept_without_a_backlog() -> None:
    decision = decide(asked(0, limits=replace(LIMITS, minimum=2)))
    assert (decision.replicas, decision.rule) == (2, ScalingRule.MINIMUM)


def test_without_autoscaling_the_number_is_fixed() -> None:
    assert decide(asked(None, limits=None, fixed=3)) == Decision(3, ScalingRule.FIXED)


@pytest.mark.parametrize("limits", [None, LIMITS])
def test_a_suspended_group_has_none(limits: Limits | None) -> None:
    assert decide(asked(1000, 5, limits=limits, suspended=True)) == Decision(0, ScalingRule.SUSPENDED)


def test_an_unknown_backlog_holds_what_there_is() -> None:
    before = Decision(3, ScalingRule.BACKLOG, ((999, 3),), Growth(990, 2), 70)
    decision = decide(asked(None, 3, before=before))
    assert decision == replace(before, rule=ScalingRule.UNKNOWN)
    assert decision.held


def test_an_unknown_backlog_starts_at_the_minimum() -> None:
    assert decide(asked(None, None, limits=replace(LIMITS, minimum=1))).replicas == 1


def test_what_is_held_keeps_to_changed_limits() -> None:
    assert decide(asked(None, 9)).replicas == 5


def test_fewer_come_only_after_fewer_did_for_the_whole_time() -> None:
    before, replicas, current = None, {}, 0
    for second, backlog in enumerate([400] + [50] * 60):
        before = decide(asked(backlog, current, now=second, before=before))
        replicas[second] = current = before.replicas
        assert before.rule is (ScalingRule.LATER if 0 < second < 30 else ScalingRule.BACKLOG)
    assert {replicas[second] for second in range(30)} == {4}
    assert {replicas[second] for second in range(30, 60)} == {1}


def test_a_higher_need_in_between_begins_the_time_anew() -> None:
    first = decide(asked(400))
    second = decide(asked(180, 4, now=1029, before=first))
    third = decide(asked(0, 4, now=1031, before=second))
    assert (second.replicas, third.replicas) == (4, 2)
    assert decide(asked(0, 2, now=1060, before=third)).replicas == 0


def test_around_a_whole_number_of_replicas_their_number_stays() -> None:
    before, current, seen = None, 0, []
    for second in range(600):
        before = decide(asked(195 if second // 60 % 2 else 205, current, now=second, before=before))
        current = before.replicas
        seen.append(current)
    assert set(seen) == {3}


def test_what_ran_before_a_restart_counts_as_needed_now() -> None:
    decision = decide(asked(0, 4))
    assert decision.replicas == 4
    assert decide(asked(0, 4, now=1030, before=decision)).replicas == 0


def test_more_come_at_once_while_fewer_wait() -> None:
    decision = decide(asked(500, 2, before=Decision(2, ScalingRule.BACKLOG, ((999, 2),))))
    assert decision == Decision(5, ScalingRule.BACKLOG, ((1000, 5),), Growth(1000, 3), 0)


def test_a_group_whose_messages_are_settled_between_two_looks_keeps_a_consumer() -> None:
    before, current = None, 1
    for second in range(0, 300, 2):
        signal = Signal(settled=second)
        before = decide(asked(0, current, now=second, signal=signal, before=before))
        current = before.replicas
        assert current == 1
    for second in range(300, 332, 2):
        before = decide(asked(0, current, now=second, signal=Signal(settled=298), before=before))
        current = before.replicas
    assert current == 0


def test_what_others_settle_wakes_nobody() -> None:
    before = decide(asked(0, signal=Signal(settled=1)))
    after = Signal(settled=9, arrival=50)
    assert decide(asked(0, signal=after, before=before, pace=10, limits=AGED)).replicas == 0


@pytest.mark.parametrize(
    ("signal", "pace", "replicas"),
    [
        # 30 a second arrive, and 100 are to be gone in 10 s
        (Signal(undelivered=100, arrival=30), 10, 4),
        (Signal(undelivered=100, arrival=30), 50, 1),
        # what consumers have waits no longer
        (Signal(pending=100, arrival=30), 10, 3),
        # targetBacklog wants more
        (Signal(undelivered=450, arrival=1), 50, 5),
        # what is settled needs nobody
        (Signal(arrival=30), 10, 0),
    ],
)
def test_with_a_target_age_replicas_follow_what_they_can_do(
    signal: Signal, pace: float, replicas: int
) -> None:
    decision = decide(asked(0, signal=signal, pace=pace, limits=AGED))
    assert decision.replicas == replicas


def test_fewer_must_keep_up_with_what_arrives() -> None:
    signal = Signal(pending=50, arrival=30)
    before = Decision(5, ScalingRule.BACKLOG, ((900, 5),))
    decision = decide(asked(0, 5, signal=signal, pace=10, before=before))
    assert (decision.replicas, decision.rule) == (4, ScalingRule.ARRIVALS)
    few = decide(asked(0, 2, signal=signal, pace=10, before=before))
    assert few.replicas == 2, "without a targetAge, what arrives adds none"


def test_which_rule_wants_the_most_is_said() -> None:
    aged = decide(asked(0, signal=Signal(undelivered=100, arrival=30), pace=10, limits=AGED))
    assert aged.rule is ScalingRule.AGE
    assert decide(asked(450, pace=1000, limits=AGED)).rule is ScalingRule.BACKLOG


def test_while_nobody_knows_how_fast_they_are_there_is_one_more_at_a_time() -> None:
    late = Signal(undelivered=5, oldest=11)
    before, current, seen = None, 1, []
    for second in range(0, 25, 2):
        before = decide(asked(0, current, now=second, signal=late, limits=AGED, before=before))
        current = before.replicas
        seen.append(current)
    assert seen == [2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 4, 4, 4]
    assert before is not None
    assert before.rule is ScalingRule.STEP
    # those that were added last are to run first
    starting = Replicas(4, unready=1, unready_since=24)
    waits = decide(asked(0, now=60, signal=late, limits=AGED, before=before, replicas=starting))
    assert waits.replicas == 4
    assert decide(asked(5, limits=AGED)).rule is ScalingRule.BACKLOG, "nothing has waited for too long"


def test_a_group_that_never_had_consumers_begins_with_one() -> None:
    assert decide(asked(0, None, signal=Signal(undelivered=5, oldest=99), limits=AGED)).replicas == 1


@pytest.mark.parametrize(
    "failing",
    [Replicas(2, unready=1, unready_since=999, crashing=True), Replicas(2, unready=2, unready_since=940)],
    ids=["crashing", "never ready"],
)
def test_nothing_is_added_while_what_was_added_last_fails(failing: Replicas) -> None:
    before = Decision(2, ScalingRule.BACKLOG, ((990, 2),), Growth(930, 1))
    decision = decide(asked(500, replicas=failing, before=before))
    assert (decision.replicas, decision.rule) == (2, ScalingRule.FAILING)
    well = decide(asked(500, replicas=Replicas(2), now=1001, before=decision))
    assert (well.replicas, well.rule) == (5, ScalingRule.BACKLOG)


def test_what_fails_may_become_fewer() -> None:
    before = Decision(3, ScalingRule.BACKLOG, ((900, 3),), Growth(900, 1))
    assert decide(asked(0, replicas=Replicas(3, 3, 900, crashing=True), before=before)).replicas == 0


def test_a_few_that_fail_among_many_that_run_hold_up_nobody() -> None:
    before = Decision(3, ScalingRule.BACKLOG, ((990, 3),), Growth(930, 2))
    failing = Replicas(3, unready=1, unready_since=900, crashing=True)
    assert decide(asked(500, replicas=failing, before=before)).replicas == 5


def test_consumers_that_start_hold_up_nobody() -> None:
    starting = Replicas(1, unready=1, unready_since=999)
    assert decide(asked(500, replicas=starting)).replicas == 5


def test_replicas_are_late_since_the_last_of_them_became_ready() -> None:
    first = follow_replicas(None, 3, 0, 10, crashing=False)
    assert first == Replicas(3, 3, 10)
    assert follow_replicas(first, 3, 0, 20, crashing=True) == Replicas(3, 3, 10, crashing=True)
    assert follow_replicas(first, 3, 1, 20, crashing=False) == Replicas(3, 2, 20)
    assert follow_replicas(first, 5, 0, 20, crashing=False) == Replicas(5, 5, 20)
    assert follow_replicas(first, 3, 3, 20, crashing=False) == Replicas(3)
    assert follow_replicas(first, 0, 1, 20, crashing=False) == Replicas(0)


@given(st.lists(st.tuples(st.integers(0, 20), st.one_of(st.none(), st.integers(0, 1000))), max_size=40))
def test_a_backlog_always_has_a_consumer_and_limits_always_hold(steps: list[tuple[int, int | None]]) -> None:
    now, current, before = 0, 0, None
    for seconds, backlog in steps:
        now += seconds
        before = decide(asked(backlog, current, now=now, before=before))
        assert 0 <= before.replicas <= 5
        if backlog:
            assert before.replicas >= min(-(-backlog // 100), 5)
        assert len(before.needs) <= 6
        current = before.replicas


@pytest.mark.parametrize(
    ("wanted", "current", "decided"),
    [(0, 7, 0), (3, 0, 3), (3, None, 3), (3, 7, 7), (9, 2, 2), (0, 0, 0)],
)
def test_only_the_step_from_none_and_the_step_to_none_are_decided(
    wanted: int, current: int | None, decided: int
) -> None:
    decision = Decision(wanted, ScalingRule.BACKLOG, needs=((1.0, wanted),))
    left = hpa_or_zero(decision, current)
    assert (left.replicas, left.needs) == (decided, decision.needs)


SCALING = Autoscaling(target_backlog=10, min_replicas=2, max_replicas=6)


@pytest.mark.parametrize(
    ("replicas", "signal"),
    [(5, Signal(undelivered=30, pending=10)), (3, Signal()), (7, Signal(undelivered=1000))],
    ids=["fewer do", "above the minimum", "above the maximum"],
)
def test_an_autoscaler_may_lower_what_is_not_needed(replicas: int, signal: Signal) -> None:
    assert may_lower(replicas, signal, SCALING)


@pytest.mark.parametrize(
    ("replicas", "signal"),
    [
        (5, Signal(undelivered=30, pending=11)),
        (2, Signal()),
        (6, Signal(undelivered=1000)),
        (5, UNKNOWN),
        (1, Signal()),
        (0, Signal()),
    ],
    ids=["all are needed", "minimum", "maximum", "unknown", "one", "none"],
)
def test_an_autoscaler_leaves_what_is_needed_or_the_least(replicas: int, signal: Signal) -> None:
    assert not may_lower(replicas, signal, SCALING)
