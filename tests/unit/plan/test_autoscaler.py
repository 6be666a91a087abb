"""What is decided where an autoscaler decides the rest."""

from __future__ import annotations

import pytest

from agentstream_operator.plan.scaling import Decision, ScalingRule, hpa_or_zero, may_lower
from agentstream_operator.plan.signal import UNKNOWN, Signal
from agentstream_operator.resources.consumergroup import Autoscaling


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
