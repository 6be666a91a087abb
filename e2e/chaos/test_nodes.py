"""A node that falls silent with consumers on it: nobody can tell whether they still work."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
from harness.kind import Cluster
from harness.ledger import Counts
from harness.load import Load

pytestmark = pytest.mark.chaos


@pytest.mark.parametrize(
    ("case", "silence"),
    [("node paused", Cluster.paused), ("node cut off from the network", Cluster.cut_off)],
    ids=["paused", "cut off"],
)
def test_the_other_node_takes_over(
    load: Load,
    settle: Callable[..., Counts],
    case: str,
    silence: Callable[[Cluster, str], AbstractContextManager[None]],
) -> None:
    # the other one has the operator and the server
    node = load.cluster.workers[1]
    pods = load.kubectl.items("pods", "--field-selector", f"spec.nodeName={node}")
    consumers = load.processes(pod["metadata"]["name"] for pod in pods)
    assert consumers
    since = load.now()
    with silence(load.cluster, node):
        taken = load.taken_over(consumers)
    assert taken, "they had something in hand"
    seconds = max(taken.values()) - since
    counts = settle(case, seconds, "consumers elsewhere have begun its messages")
    assert not counts.lost
    assert seconds < 30
