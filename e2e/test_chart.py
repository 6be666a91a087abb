"""The chart in a live cluster: its own test, an upgrade in place, and an end that leaves nothing stuck."""

from __future__ import annotations

from harness.chart import Installation
from harness.images import NEXT_OPERATOR
from harness.kubectl import Kubectl
from harness.load import Load
from harness.manifests import a_consumer, a_group, a_stream
from harness.waiting import until


def test_the_chart_passes_its_own_test(installation: Installation) -> None:
    assert "Phase:          Succeeded" in installation.test()


def test_an_upgrade_in_place_is_not_noticed_by_those_who_send_and_consume(
    installation: Installation, load: Load
) -> None:
    pods, redis = load.pods(), installation.kubectl.get("pod", "agentstream-redis-0")["metadata"]["uid"]
    since = load.now()
    installation.install(f"image.tag={NEXT_OPERATOR.partition(':')[2]}")
    (operator,) = installation.operator_pods()
    image = installation.kubectl.get("pod", operator)["spec"]["containers"][0]["image"]
    assert image == NEXT_OPERATOR
    load.resumed(load.now())
    load.finish()
    counts = load.counts(since)
    assert not counts.lost
    assert not counts.refused
    assert not counts.twice
    assert counts.longest < 10, "nothing waits for the operator"
    assert load.pods() == pods, "no consumer is started again"
    assert installation.kubectl.get("pod", "agentstream-redis-0")["metadata"]["uid"] == redis
    installation.install()


def test_an_uninstall_leaves_resources_and_messages_and_nothing_stuck(
    installation: Installation, kubectl: Kubectl
) -> None:
    kubectl.apply(
        a_stream("tasks", deletionPolicy="Delete"),
        a_group("coder", "tasks", deletionPolicy="Delete", template=a_consumer("tasks")),
    )
    kubectl.ready("agentstream/tasks", "consumergroup/coder")
    key = f"{{{kubectl.namespace}.tasks}}"
    installation.redis("XADD", key, "*", "m", "{}")
    assert kubectl.get("agentstream", "tasks")["metadata"]["finalizers"]

    installation.uninstall()
    assert not installation.operator_pods()
    # the definitions stay, and the resources with them
    for what in (("agentstream", "tasks"), ("consumergroup", "coder")):
        assert "finalizers" not in kubectl.get(*what)["metadata"]
    kubectl("delete", "consumergroup/coder", "--timeout=20s")

    installation.install()
    kubectl.ready("agentstream/tasks")
    until(lambda: installation.redis("XLEN", key) == ["1"], despite_errors=True)
