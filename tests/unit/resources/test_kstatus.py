"""What kstatus, and so `helm --wait`, makes of our resources in every state that the operator reports."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentstream_operator.plan.conditions import ConditionUpdate, unreachable, with_ready
from agentstream_operator.reconcile.state.memory import StatusMemory
from agentstream_operator.reconcile.state.state import StatusIntervals
from agentstream_operator.reconcile.status import StatusWriter
from agentstream_operator.resources.reasons import ConditionReason, ConditionType
from support.cluster import MemoryCluster
from support.kstatus import KStatus, kstatus
from support.resources import BORN, a_group, a_replay, a_stream
from unit.resources import manifests
from unit.resources.api_server import refusals, stored

KINDS: list[Callable[..., Any]] = [a_stream, a_group, a_replay]
SUMMARIES = {ConditionType.READY, ConditionType.STALLED}
REQUIRED = {
    ConditionType.BACKEND_REACHABLE: "True",
    ConditionType.CONFLICT: "False",
    ConditionType.STREAM_READY: "True",
    ConditionType.SYNCED: "True",
    ConditionType.CREDENTIALS_SYNCED: "True",
    ConditionType.FAILED: "False",
}
FOR_GOOD = {ConditionReason.KEY_NOT_ALLOWED, ConditionReason.CONTRACT_INVALID, ConditionReason.INVALID}


@st.composite
def reports(draw: st.DrawFn) -> tuple[ConditionUpdate, ...]:
    """Conditions of any kind but the summaries, with any status and reason."""
    kinds = draw(st.sets(st.sampled_from([kind for kind in ConditionType if kind not in SUMMARIES])))
    statuses = st.sampled_from(["True", "False", "Unknown"])
    return tuple(
        ConditionUpdate(kind, draw(statuses), draw(st.sampled_from(list(ConditionReason))), "why")
        for kind in sorted(kinds)
    )


def written(make: Callable[..., Any], *states: tuple[int, tuple[ConditionUpdate, ...]]) -> dict[str, Any]:
    """The resource after the operator has reported these conditions, of these generations."""
    cluster, reported = MemoryCluster(), StatusMemory()
    writer = StatusWriter(cluster, lambda: BORN, StatusIntervals(numbers=0, transient=0))
    for generation, conditions in states:
        resource = make(meta={"generation": generation})
        asyncio.run(writer.write(resource, reported, conditions, {}))
    status = cluster.statuses[resource.key]
    found = resource.model_copy(update={"status": status}).as_manifest()
    assert refusals(found) == []
    return stored(found)


def expected(conditions: tuple[ConditionUpdate, ...]) -> KStatus:
    """What follows from the first required condition that is not met."""
    by_kind = {update.kind: update for update in conditions}
    for kind, required in REQUIRED.items():
        update = by_kind.get(kind)
        if update is not None and update.status != required:
            for_good = kind is ConditionType.FAILED or update.reason in FOR_GOOD
            return "Failed" if for_good else "InProgress"
    return "Current"


@pytest.mark.parametrize("make", KINDS)
@given(reports())
def test_a_resource_is_done_when_it_is_in_effect_and_failed_when_only_a_change_helps(
    make: Callable[..., Any], conditions: tuple[ConditionUpdate, ...]
) -> None:
    assert kstatus(written(make, (1, with_ready(conditions)))) == expected(conditions)


@pytest.mark.parametrize("make", KINDS)
@given(reports(), reports())
def test_what_was_said_of_an_earlier_generation_does_not_count(
    make: Callable[..., Any],
    before: tuple[ConditionUpdate, ...],
    after: tuple[ConditionUpdate, ...],
) -> None:
    assert kstatus(written(make, (1, with_ready(before)), (2, with_ready(after)))) == expected(after)
    # while the server is away, the other conditions stay
    assert kstatus(written(make, (1, with_ready(before)), (2, unreachable("refused")))) == "InProgress"


@pytest.mark.parametrize(
    "reason",
    [
        ConditionReason.NO_PROGRESS,
        ConditionReason.CRASH_LOOP,
        ConditionReason.NO_CONSUMERS,
        ConditionReason.SUSPENDED,
    ],
)
def test_messages_that_wait_are_no_failure_of_an_upgrade(reason: ConditionReason) -> None:
    waiting = ConditionUpdate(ConditionType.CONSUMING, "False", reason)
    assert kstatus(written(a_group, (1, with_ready((waiting,))))) == "Current"


@pytest.mark.parametrize(
    "manifest", [manifests.a_stream(), manifests.a_group(), manifests.a_replay()], ids=lambda m: m["kind"]
)
def test_a_resource_that_no_operator_has_seen_is_in_progress(manifest: dict[str, Any]) -> None:
    found = stored(manifest)
    found["metadata"]["generation"] = 1
    assert kstatus(found) == "InProgress"
    assert found["status"] == {"observedGeneration": -1}


def test_a_new_generation_is_in_progress_and_a_deleted_resource_ends() -> None:
    found = written(a_stream, (1, with_ready(())))
    found["metadata"]["generation"] = 2
    assert kstatus(found) == "InProgress"
    found["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert kstatus(found) == "Terminating"
