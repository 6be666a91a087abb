"""The API server killed: messages flow without it, and the operator goes on when it is back."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from harness.chart import Installation
from harness.kubectl import Kubectl, in_effect
from harness.ledger import Counts
from harness.load import Load
from harness.manifests import a_group, a_stream
from harness.waiting import until

pytestmark = pytest.mark.chaos


def test_the_api_server_is_killed(
    installation: Installation,
    make_namespace: Callable[[], Kubectl],
    load: Load,
    settle: Callable[..., Counts],
) -> None:
    kubectl = make_namespace()
    since = load.now()
    installation.cluster.restart_api_server()
    until(lambda: kubectl.apply(a_stream("tasks"), a_group("coder", "tasks")), 90, despite_errors=True)

    def ready() -> bool:
        return all(map(in_effect, kubectl.items("agentstreams,consumergroups")))

    until(ready, 60, despite_errors=True)
    seconds = load.now() - since
    counts = settle("API server killed", seconds, "a new stream and group are ready")
    assert not counts.lost
    assert counts.longest < 10, "nothing waits for the API server"
    assert seconds < 60
