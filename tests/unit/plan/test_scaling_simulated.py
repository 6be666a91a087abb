"""What the decisions of minutes and hours come to: how many consumers, how soon drained, how steady.

bench/scaling.py draws the same scenarios.
"""

from __future__ import annotations

import pytest

from agentstream_operator.plan.scaling import ScalingRule
from support.scenarios import (
    A_DAY,
    ALL_STUCK,
    AWAY,
    BURST,
    CRASHING,
    DAY,
    NOISY_DAY,
    NOW_AND_THEN,
    QUICK,
    RAMP_BY_AGE,
    RAMP_BY_BACKLOG,
    SERIAL,
    SLOW_BY_AGE,
    SLOW_BY_BACKLOG,
    STUCK,
)
from support.traffic import PULSE, Scenario, simulate

SEEDS = range(1, 6)


@pytest.mark.parametrize(
    ("scenario", "seconds"),
    [
        # ten pods take 1 s, 50 s and 4 s for it; they are noticed and started within 4 s
        (BURST, 6),
        (SERIAL, 56),
        (QUICK, 9),
    ],
    ids=lambda given: given.name if isinstance(given, Scenario) else "",
)
def test_a_burst_has_all_consumers_at_once_until_it_is_drained_and_then_none(
    scenario: Scenario, seconds: float
) -> None:
    trace = simulate(scenario)
    (burst,) = scenario.bursts
    assert trace.changes[0] == 10
    assert {moment.wanted for moment in trace.between(burst + 1.1 * PULSE, trace.drained or 0)} == {10}
    assert trace.drained is not None
    assert trace.drained <= burst + seconds
    assert trace.left == 0
    assert trace.reversals == 1
    assert trace.moments[-1].wanted == 0


def test_consumers_keep_up_with_a_ramp_and_do_not_overshoot() -> None:
    trace = simulate(RAMP_BY_AGE)
    assert trace.longest < 10, "targetAge"
    assert trace.reversals == 0
    # 8,000 a second at 1,280 each
    assert {moment.wanted for moment in trace.between(750, 900)} <= {7, 8, 9}


def test_a_ramp_by_backlog_alone_is_kept_up_with() -> None:
    trace = simulate(RAMP_BY_BACKLOG)
    assert trace.longest < 4
    assert trace.reversals <= 5
    # there is nothing left but what runs
    assert {moment.waiting for moment in trace.between(700, 900)} == {0}


@pytest.mark.parametrize(
    ("scenario", "seed"),
    [(A_DAY, 1), *((NOISY_DAY, seed) for seed in SEEDS)],
    ids=lambda given: given.name if isinstance(given, Scenario) else str(given),
)
def test_consumers_follow_a_day_up_once_and_down_once(scenario: Scenario, seed: int) -> None:
    trace = simulate(scenario, seed)
    each = DAY.concurrency / DAY.handling
    ideal = sum(-(-scenario.rate(moment.at) // each) for moment in trace.moments) * PULSE
    assert trace.reversals == 1
    assert trace.longest < 10, "targetAge"
    assert trace.peak <= 8, "100 a second at 16 each take 7"
    assert ideal * 0.95 <= trace.pod_seconds <= ideal * 1.25


@pytest.mark.parametrize("seed", SEEDS)
def test_slow_handlers_have_about_as_many_consumers_as_they_take(seed: int) -> None:
    trace = simulate(SLOW_BY_BACKLOG, seed)
    # 0.3 a second take 18 at once, 4 each
    settled = [moment.wanted for moment in trace.between(300, 900)]
    assert 4 <= sum(settled) / len(settled) <= 8
    assert trace.longest < 30
    assert trace.reversals <= 9
    assert (trace.left, trace.moments[-1].wanted) == (0, 0)


@pytest.mark.parametrize("seed", SEEDS)
def test_slow_handlers_get_consumers_one_by_one_until_their_pace_shows(seed: int) -> None:
    trace = simulate(SLOW_BY_AGE, seed)
    assert trace.changes[:2] == (1, 1)
    # nobody knows how fast they are before a message has waited for targetAge
    assert trace.longest < 60
    # 0.3 a second take 4.5 of them, and come as they like
    wanted = [moment.wanted for moment in trace.between(300, 900)]
    assert 4 <= sum(wanted) / len(wanted) <= 8
    assert trace.reversals <= 7
    assert max(moment.oldest for moment in trace.between(600, 900)) < 30, "targetAge"
    assert (trace.left, trace.moments[-1].wanted) == (0, 0)


def test_messages_that_come_now_and_then_keep_their_consumer() -> None:
    assert simulate(NOW_AND_THEN).changes == (1,)


def test_what_is_never_settled_keeps_a_consumer_and_brings_no_more() -> None:
    trace = simulate(STUCK)
    assert trace.left == STUCK.consumers.stuck
    assert trace.changes == (1,)


def test_consumers_that_settle_nothing_stay_within_the_limit_and_never_all_go() -> None:
    trace = simulate(ALL_STUCK)
    assert trace.peak <= 10
    assert trace.reversals <= 1
    assert trace.moments[-1].wanted == 1


def test_nothing_is_added_to_what_crashes_and_all_at_once_when_it_runs() -> None:
    trace = simulate(CRASHING)
    start, end = CRASHING.consumers.crash
    held = trace.between(start + 20, end)
    assert len({moment.wanted for moment in held}) == 1
    assert {moment.rule for moment in trace.between(start + 60, end)} == {ScalingRule.FAILING}
    assert held[0].wanted == 1
    assert max(moment.wanted for moment in trace.between(end, end + 3 * PULSE)) == 10
    assert (trace.left, trace.moments[-1].wanted) == (0, 0)


@pytest.mark.parametrize("seed", SEEDS)
def test_while_nothing_is_known_the_last_decision_stays(seed: int) -> None:
    trace = simulate(AWAY, seed)
    ((start, end),) = AWAY.unknown
    before = trace.between(0, start)[-1].wanted
    unknown = trace.between(start, end)
    assert {(moment.wanted, moment.rule) for moment in unknown} == {(before, ScalingRule.UNKNOWN)}
    assert trace.reversals <= 1
    assert (trace.left, trace.moments[-1].wanted) == (0, 0)
