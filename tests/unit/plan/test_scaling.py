"""How many consumers a group should have."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentstream_operator.plan.scaling import Decision, Limits, ScalingInput, decide

LIMITS = Limits(minimum=0, maximum=5, target_backlog=100, down_after=30)


def asked(backlog: int | None, **changes: object) -> ScalingInput:
    given_ = ScalingInput(now=1000, backlog=backlog, current=0, limits=LIMITS)
    return replace(given_, **changes)


@pytest.mark.parametrize(
    ("backlog", "replicas"),
    [(0, 0), (1, 1), (99, 1), (100, 1), (101, 2), (500, 5), (501, 5), (10**12, 5)],
)
def test_replicas_follow_the_backlog_within_the_limits(backlog: int, replicas: int) -> None:
    assert decide(asked(backlog)).replicas == replicas


def test_the_minimum_is_kept_without_a_backlog() -> None:
    assert decide(asked(0, limits=replace(LIMITS, minimum=2))).replicas == 2


def test_without_autoscaling_the_number_is_fixed() -> None:
    assert decide(asked(None, limits=None, fixed=3)) == Decision(3)


@pytest.mark.parametrize("limits", [None, LIMITS])
def test_a_suspended_group_has_none(limits: Limits | None) -> None:
    assert decide(asked(1000, limits=limits, suspended=True, current=5)) == Decision(0)


def test_an_unknown_backlog_holds_what_there_is() -> None:
    assert decide(asked(None, current=3, needs=((999, 3),))) == Decision(3, ((999, 3),), held=True)


def test_an_unknown_backlog_starts_at_the_minimum() -> None:
    assert decide(asked(None, current=None, limits=replace(LIMITS, minimum=1))).replicas == 1


def test_what_is_held_keeps_to_changed_limits() -> None:
    assert decide(asked(None, current=9)).replicas == 5


def test_fewer_come_only_after_fewer_did_for_the_whole_time() -> None:
    needs, replicas = (), {}
    current = 0
    for second, backlog in enumerate([400] + [50] * 60):
        decision = decide(ScalingInput(second, backlog, current, LIMITS, needs=needs))
        needs, current = decision.needs, decision.replicas
        replicas[second] = current
    assert {replicas[second] for second in range(30)} == {4}
    assert {replicas[second] for second in range(30, 60)} == {1}


def test_a_higher_need_in_between_begins_the_time_anew() -> None:
    first = decide(asked(400))
    second = decide(asked(200, now=1029, needs=first.needs, current=4))
    third = decide(asked(0, now=1031, needs=second.needs, current=4))
    assert (second.replicas, third.replicas) == (4, 2)
    assert decide(asked(0, now=1060, needs=third.needs, current=2)).replicas == 0


def test_what_ran_before_a_restart_counts_as_needed_now() -> None:
    decision = decide(asked(0, current=4))
    assert decision.replicas == 4
    assert decide(asked(0, now=1030, current=4, needs=decision.needs)).replicas == 0


def test_more_come_at_once_while_fewer_wait() -> None:
    decision = decide(asked(500, needs=((999, 2),), current=2))
    assert decision == Decision(5, ((1000, 5),))


@given(st.lists(st.tuples(st.integers(0, 20), st.one_of(st.none(), st.integers(0, 1000))), max_size=40))
def test_a_backlog_always_has_a_consumer_and_limits_always_hold(steps: list[tuple[int, int | None]]) -> None:
    now, current, needs = 0, 0, ()
    for seconds, backlog in steps:
        now += seconds
        decision = decide(ScalingInput(now, backlog, current, LIMITS, needs=needs))
        assert 0 <= decision.replicas <= 5
        if backlog:
            assert decision.replicas >= min(-(-backlog // 100), 5)
        assert len(decision.needs) <= 6
        current, needs = decision.replicas, decision.needs
