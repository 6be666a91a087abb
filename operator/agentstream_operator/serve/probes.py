"""Decides liveness and readiness of the operator. No input or output."""

from __future__ import annotations

from dataclasses import dataclass

from agentstream_operator.reconcile.report.metrics import OperatorHealth

STUCK = 300.0
"""Seconds that the oldest key may wait in the queue before the operator counts as stuck."""

MISSED = 3
"""Changes in a row without a watch event after which the watches count as dead."""


@dataclass(frozen=True, slots=True)
class ProbeState:
    """State of the operator that its probes look at.

    `missed` counts changes in a row without an event; `unwatched` says why nothing is watched at present.
    """

    leads: bool
    health: OperatorHealth | None = None
    missed: int = 0
    unwatched: str | None = None


def live(state: ProbeState) -> str | None:
    """Returns why the operator has to be restarted; None if it has not."""
    if state.missed >= MISSED:
        return f"watches missed {state.missed} changes in a row"
    if state.health is not None and state.health.oldest > STUCK:
        return f"a resource has waited {state.health.oldest:.0f} s to be reconciled"
    return state.health.standing if state.health is not None else None


def ready(state: ProbeState) -> str | None:
    """Returns why the operator does not reconcile; None if it does, or stands by for the Lease."""
    if not state.leads:
        return None
    if state.health is None:
        return "starting"
    if state.unwatched is not None:
        return f"cannot watch resources: {state.unwatched}"
    if not state.health.complete:
        return "listing resources"
    if state.health.outage is not None:
        return f"Redis or Valkey does not answer: {state.health.outage}"
    return live(state)
