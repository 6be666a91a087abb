"""What the probes say of the operator: whether a restart would help, and whether it does its work."""

from __future__ import annotations

import pytest

from agentstream_operator.reconcile.report.metrics import OperatorHealth
from agentstream_operator.serve.http import probe_reply
from agentstream_operator.serve.probes import MISSED, STUCK, ProbeState, live, ready


def health(
    *, outage: str | None = None, complete: bool = True, oldest: float = 0.0, waiting: int = 0
) -> OperatorHealth:
    """A healthy engine, but for this."""
    return OperatorHealth(outage, complete, waiting, oldest, round_trips=7)


WELL = ProbeState(leads=True, health=health())
STANDBY = ProbeState(leads=False)
UNREACHABLE = ProbeState(leads=True, health=health(outage="refused"))
STARTING = ProbeState(leads=True)
LISTING = ProbeState(leads=True, health=health(complete=False))
BUSY = ProbeState(leads=True, health=health(waiting=10_000, oldest=STUCK))
STUCK_FAST = ProbeState(leads=True, health=health(waiting=1, oldest=STUCK + 1))
NEARLY_DEAF = ProbeState(leads=True, health=health(), missed=MISSED - 1)
DEAF = ProbeState(leads=True, health=health(), missed=MISSED)
BLIND = ProbeState(leads=True, health=health(), watching=False)


@pytest.mark.parametrize("state", [WELL, STANDBY, STARTING, LISTING, BUSY, NEARLY_DEAF, UNREACHABLE])
def test_a_restart_would_not_help_one_that_works_or_waits(state: ProbeState) -> None:
    assert live(state) is None


@pytest.mark.parametrize(
    ("state", "why"),
    [
        (STUCK_FAST, "a resource has waited 301 s to be reconciled"),
        (DEAF, "watches missed 3 changes in a row"),
        (BLIND, "watches have ended"),
    ],
)
def test_one_that_hangs_or_hears_nothing_is_not_alive_and_does_no_work(state: ProbeState, why: str) -> None:
    assert live(state) == why
    assert ready(state) == why


@pytest.mark.parametrize("state", [WELL, STANDBY, BUSY, NEARLY_DEAF])
def test_one_that_works_or_waits_for_the_lease_is_ready(state: ProbeState) -> None:
    assert ready(state) is None


@pytest.mark.parametrize(
    ("state", "why"),
    [
        (STARTING, "starting"),
        (LISTING, "listing resources"),
        (UNREACHABLE, "Redis or Valkey does not answer: refused"),
    ],
)
def test_one_that_cannot_work_yet_says_what_it_waits_for(state: ProbeState, why: str) -> None:
    assert ready(state) == why


def test_what_comes_first_is_told_first() -> None:
    both = ProbeState(leads=True, health=health(outage="refused", complete=False))
    assert ready(both) == "listing resources"


def test_a_probe_is_answered_with_a_code_and_a_text() -> None:
    assert probe_reply(None) == (200, "text/plain; charset=utf-8", b"ok\n")
    assert probe_reply(None, "leads") == (200, "text/plain; charset=utf-8", b"leads\n")
    assert probe_reply("störrisch") == (503, "text/plain; charset=utf-8", "störrisch\n".encode())
