"""How the engine is, for probes and metrics: before it runs, and of what it was told."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from agentstream_operator.reconcile.engine import Engine
from agentstream_operator.reconcile.report.metrics import OperatorHealth
from agentstream_operator.resources.status import (
    AgentStreamStatus,
    Condition,
    ConditionReason,
    ConditionType,
    ConsumerGroupStatus,
)
from support.cluster import MemoryCluster
from support.resources import a_group, a_stream


class Silent:
    """A broker that nobody has asked yet."""

    round_trips = 7


def engine() -> Engine:
    broker: Any = Silent()
    return Engine(broker, MemoryCluster())


def condition(kind: ConditionType, status: str, reason: ConditionReason) -> Condition:
    born = datetime(2026, 1, 1, tzinfo=UTC)
    return Condition(
        type=kind, status=status, reason=reason, message="", observed_generation=1, last_transition_time=born
    )


READY = condition(ConditionType.READY, "True", ConditionReason.READY)
WRONG = condition(ConditionType.READY, "False", ConditionReason.WRONG_TYPE)
REACHABLE = condition(ConditionType.BACKEND_REACHABLE, "True", ConditionReason.REACHABLE)


async def test_an_engine_that_has_not_begun_says_so() -> None:
    found = engine().health
    assert found == OperatorHealth(
        None,
        complete=False,
        waiting=0,
        oldest=0.0,
        round_trips=7,
        janitor=found.janitor,
        failures=found.failures,
    )
    assert {*found.janitor.values(), *found.failures.values()} == {0}


async def test_what_waits_is_counted_and_how_long_it_has() -> None:
    waiting = engine()
    waiting.server_down("refused")
    waiting.put(a_stream(producers=["planner"]))
    waiting.listed()
    found = waiting.health
    # the stream, and its producer
    assert (found.outage, found.complete, found.waiting) == ("refused", True, 2)
    assert 0 < found.oldest < 60


async def test_resources_are_counted_by_what_their_conditions_say() -> None:
    counting = engine()
    for name, conditions in (("a", (READY, REACHABLE)), ("b", (READY,)), ("c", (WRONG,))):
        status = AgentStreamStatus(observed_generation=1, conditions=conditions)
        counting.put(a_stream(name).model_copy(update={"status": status}))
    status = ConsumerGroupStatus(observed_generation=1, conditions=(READY,))
    counting.put(a_group().model_copy(update={"status": status}))
    counting.put(a_group("new"))
    assert counting.conditions == {
        ("AgentStream", "Ready", "True"): 2,
        ("AgentStream", "Ready", "False"): 1,
        ("AgentStream", "BackendReachable", "True"): 1,
        ("ConsumerGroup", "Ready", "True"): 1,
    }
