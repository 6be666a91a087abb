"""Whether the operator is alive, and whether it does its work. No input or output."""

from __future__ import annotations

from dataclasses import dataclass

from agentstream_operator.reconcile.report.health import OperatorHealth

STUCK = 300.0
"""Seconds after which a key that still waits shows that the queue does not move."""

MISSED = 3
"""Changes that the watches may miss in a row before they count as dead."""


@dataclass(frozen=True, slots=True)
class ProbeState:
    """The operator at one moment.

    Attributes:
        leads: whether it holds the Lease; a standby waits for it.
        health: the engine; None before there is one.
        missed: changes that the watches have missed lately.
        watching: whether the watches run.
    """

    leads: bool
    health: OperatorHealth | None = None
    missed: int = 0
    watching: bool = True


def live(state: ProbeState) -> str | None:
    """Why a restart would help; None if it would not."""
    if not state.watching:
        return "the watches have ended"
    if state.missed >= MISSED:
        return f"the watches missed {state.missed} changes"
    if state.health is not None and state.health.oldest > STUCK:
        return f"a resource has waited for {state.health.oldest:.0f} s to be looked at"
    return None


def ready(state: ProbeState) -> str | None:
    """Why it does not do its work; None if it does, or waits for the Lease."""
    if not state.leads:
        return None
    if state.health is None:
        return "starting"
    if not state.health.complete:
        return "listing what is there"
    if state.health.trouble is not None:
        return f"Redis or Valkey does not answer: {state.health.trouble}"
    return live(state)


def probe(why_not: str | None, well: str = "ok") -> tuple[int, str, bytes]:
    """The answer to a probe."""
    text = well if why_not is None else why_not
    return (200 if why_not is None else 503), "text/plain; charset=utf-8", f"{text}\n".encode()
