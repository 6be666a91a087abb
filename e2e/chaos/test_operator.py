"""The operator killed or away: messages flow without it, and it goes on where it was."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from harness.chart import Installation
from harness.kubectl import Kubectl, in_effect
from harness.ledger import Counts
from harness.load import Load
from harness.manifests import a_group, a_stream
from harness.waiting import until

pytestmark = pytest.mark.chaos

Settle = Callable[..., Counts]

UNNOTICED = 10.0
"""The longest that a message waits while only the operator is away, in seconds: some handlers take four."""

PAIRS = 100


def pairs(count: int) -> list[dict[str, object]]:
    """Streams, each with a group."""
    numbers = range(count)
    return [*(a_stream(f"s{n}") for n in numbers), *(a_group(f"g{n}", f"s{n}") for n in numbers)]


def ready(kubectl: Kubectl) -> int:
    return sum(in_effect(item) for item in kubectl.items("agentstreams,consumergroups"))


@pytest.mark.ci
def test_the_operator_is_killed_in_mid_work(
    installation: Installation, make_namespace: Callable[[], Kubectl], load: Load, settle: Settle
) -> None:
    kubectl = make_namespace()
    killed = installation.operator_runs()
    with ThreadPoolExecutor() as beside:
        applying = beside.submit(kubectl.apply, *pairs(PAIRS))
        until(lambda: ready(kubectl) >= PAIRS // 4, 60)
        since = load.now()
        installation.cluster.on_node(installation.home, "pkill", "-KILL", "-f", "agentstream operator")
        assert not applying.done(), "there was nothing left to do"
        applying.result()
    until(lambda: ready(kubectl) == 2 * PAIRS, 120)
    seconds = load.now() - since
    assert installation.operator_runs() != killed
    counts = settle("operator killed in mid-work", seconds, f"all of {2 * PAIRS} new resources are ready")
    assert not counts.lost
    assert counts.longest < UNNOTICED
    assert seconds < 60


def test_resources_change_while_the_operator_is_down(
    installation: Installation, make_namespace: Callable[[], Kubectl], load: Load, settle: Settle
) -> None:
    kubectl = make_namespace()
    gone, edited, kept = (f"{{{kubectl.namespace}.{name}}}" for name in ("gone", "edited", "kept"))
    kubectl.apply(
        a_stream("gone", deletionPolicy="Delete"),
        a_stream("edited", deletionPolicy="Delete"),
        a_stream("kept"),
    )
    kubectl.ready("agentstreams", "--all")
    installation.scale_operator(0)
    kubectl("delete", "agentstream/gone", "agentstream/edited", "--wait=false")
    # a resource may be edited while it is being deleted
    kubectl.patch("agentstream/edited", {"spec": {"retention": {"maxLength": 7}}})
    kubectl.patch("agentstream/kept", {"spec": {"retention": {"maxLength": 7}}})
    kubectl.apply(a_stream("new"), a_group("new", "new"))
    pods = load.pods()
    load.kubectl("delete", "pod", pods[0], "--force", "--grace-period=0")
    since = load.now()
    installation.scale_operator(1)

    def in_order() -> bool:
        names = {item["metadata"]["name"] for item in kubectl.items("agentstreams")}
        return names == {"kept", "new"} and ready(kubectl) == 3

    until(in_order, 90)
    seconds = load.now() - since
    counts = settle("resources changed while the operator was down", seconds, "all changes are in effect")
    assert not installation.redis.exists(gone)
    assert not installation.redis.exists(edited)
    assert installation.redis("GET", f"{kept}:gate") == ["7"]
    assert not counts.lost
    assert seconds < 30
