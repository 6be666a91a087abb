"""What is decided where an autoscaler decides the rest."""

from __future__ import annotations

import pytest

from agentstream_operator.plan.autoscaler import between_none_and_some
from agentstream_operator.plan.scaling import Decision, Rule


@pytest.mark.parametrize(
    ("wanted", "current", "decided"),
    [(0, 7, 0), (3, 0, 3), (3, None, 3), (3, 7, 7), (9, 2, 2), (0, 0, 0)],
)
def test_only_the_step_from_none_and_the_step_to_none_are_decided(
    wanted: int, current: int | None, decided: int
) -> None:
    decision = Decision(wanted, Rule.BACKLOG, needs=((1.0, wanted),))
    left = between_none_and_some(decision, current)
    assert (left.replicas, left.needs) == (decided, decision.needs)
