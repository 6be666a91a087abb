"""How the engine is, for probes and metrics: before it runs, and of what it was told."""

from __future__ import annotations

from typing import Any

from agentstream_operator.reconcile.engine import Engine
from agentstream_operator.reconcile.report.metrics import OperatorHealth
from support.cluster import MemoryCluster
from support.resources import a_stream


class Silent:
    """A broker that nobody has asked yet."""

    round_trips = 7


def engine() -> Engine:
    broker: Any = Silent()
    return Engine(broker, MemoryCluster())


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
