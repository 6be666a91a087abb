"""Consumers that are killed with messages in hand: others handle these, soon, and none is lost."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from harness.ledger import Counts
from harness.load import Load

pytestmark = pytest.mark.chaos

Settle = Callable[..., Counts]

PROMISED = 30.0
"""How soon the messages of a killed consumer are begun again, in seconds."""


def kill(load: Load, *pods: str) -> float:
    """Deletes pods by force. Returns after how many seconds others have begun what these had."""
    consumers = load.processes(pods)
    since = load.now()
    load.kubectl("delete", "pod", *pods, "--force", "--grace-period=0")
    taken = load.taken_over(consumers)
    return max(taken.values(), default=since) - since


def test_one_pod_after_the_other_is_deleted_by_force(load: Load, settle: Settle) -> None:
    slowest = max(kill(load, pod) for pod in load.pods())
    counts = settle("consumer pods deleted by force, one by one", slowest, "others have begun their messages")
    assert not counts.lost
    assert slowest < PROMISED


@pytest.mark.ci
def test_all_pods_are_deleted_by_force(load: Load, settle: Settle) -> None:
    seconds = kill(load, *load.pods())
    counts = settle("all consumer pods deleted by force", seconds, "new ones have begun their messages")
    assert not counts.lost
    assert seconds < PROMISED


def test_all_processes_are_killed(load: Load, settle: Settle) -> None:
    consumers = load.processes(load.pods())
    since = load.now()
    for node in load.cluster.workers:
        load.cluster.on_node(node, "pkill", "-KILL", "-f", "python worker.py")
    taken = load.taken_over(consumers)
    assert taken, "they had something in hand"
    seconds = max(taken.values()) - since
    counts = settle(
        "all consumers killed (SIGKILL)", seconds, "the pods' next processes have begun their messages"
    )
    assert not counts.lost
    assert seconds < PROMISED
