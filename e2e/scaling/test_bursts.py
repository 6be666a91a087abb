"""Many messages at once: there are as many consumers as there may be at once, and none when all is done."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from harness.crew import Crew
from harness.watch import reversals

MOST = 10
FOLLOWING = {"minReplicas": 0, "maxReplicas": MOST, "targetBacklog": 100, "scaleDownAfter": "10s"}


@pytest.mark.parametrize(
    ("messages", "seconds", "handlers"),
    [
        pytest.param(10_000, 0.05, 1, id="slow"),
        pytest.param(100_000, 0.0, 32, id="quick", marks=pytest.mark.chaos),
    ],
)
def test_a_burst_is_worked_off(
    crew: Crew, tell: Callable[..., None], messages: int, seconds: float, handlers: int
) -> None:
    case = f"{messages:,} messages of {1000 * seconds:g} ms"
    crew.declare(handlers=handlers, autoscaling=FOLLOWING)
    crew.asleep()
    crew.send(messages, seconds)
    sent = crew.accepted[0]
    ready = crew.reached(MOST, timeout=60)
    drained = crew.drained(240)
    crew.asleep()
    none = next(change.at for change in crew.changes(drained) if not change.wanted)
    counts = crew.counts()
    changes = crew.changes()
    wanted = next(change.at for change in changes if change.wanted == MOST)
    tell(case, wanted - sent, f"{MOST} consumers are wanted")
    tell(case, ready - sent, f"{MOST} consumers are ready (5 s)")
    tell(case, drained - sent, "all are handled", counts)
    tell(case, none - drained, f"none are wanted any more; {reversals(changes)} reversals (at most 1)")
    assert not counts.lost
    assert reversals(changes) <= 1
    assert max(change.wanted for change in changes) == MOST
    assert ready - sent < 30
    assert crew.pending() == {}
