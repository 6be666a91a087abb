"""A HorizontalPodAutoscaler of the cluster decides, on what the metrics server tells it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from harness.chart import Installation
from harness.crew import Crew
from harness.evidence import ARTIFACTS
from harness.kind import Cluster
from harness.kubectl import Kubectl, condition
from harness.waiting import until
from harness.watch import reversals

pytestmark = pytest.mark.chaos

MOST = 10
FOLLOWING = {
    "mode": "HPA",
    "minReplicas": 0,
    "maxReplicas": MOST,
    "targetBacklog": 100,
    "scaleDownAfter": "10s",
}


@pytest.fixture(scope="module")
def metrics_server(place: Kubectl, cluster: Cluster) -> Iterator[None]:
    installation = Installation(cluster)
    installation.install("metricsServer.enabled=true")
    yield
    installation.install()


def metric(crew: Crew) -> int:
    """The backlog, as the cluster's autoscalers ask for it."""
    labels = quote(f"group={crew.name},stream={crew.name}")
    path = f"/apis/external.metrics.k8s.io/v1beta1/namespaces/{crew.kubectl.namespace}/agentstream-backlog"
    (item,) = json.loads(crew.kubectl("get", "--raw", f"{path}?labelSelector={labels}"))["items"]
    # as Kubernetes writes quantities: 10000 is 10k
    return int(item["value"].replace("k", "000"))


def looked(crew: Crew) -> Any:
    """The autoscaler, once it goes by what it was told."""
    hpa = crew.kubectl.get("hpa", crew.deployment)
    works = condition(hpa, "ScalingActive").get("status") == "True"
    return hpa if works and hpa["status"].get("currentMetrics") else None


def test_an_autoscaler_works_a_burst_off(metrics_server: None, crew: Crew, tell: Callable[..., None]) -> None:
    crew.declare(autoscaling=FOLLOWING)
    crew.asleep()
    until(lambda: metric(crew) == 0, despite_errors=True)
    # from none to some it is the operator that decides; the rest is left to the autoscaler
    crew.send(1, 20)
    crew.reached(1)
    first = crew.send(10_000, 0.05) - 9_999
    sent = crew.accepted[first]
    # an answer serves for a second
    until(lambda: metric(crew) > 9_000, 5)
    ready = crew.reached(MOST, timeout=90)
    hpa = until(lambda: looked(crew), 30)
    described = crew.kubectl("describe", "hpa", crew.deployment)
    drained = crew.drained(240)
    crew.asleep(120)
    changes = crew.changes()
    none = next(change.at for change in crew.changes(drained) if not change.wanted)
    case = "10,000 messages of 50 ms, mode HPA"
    wanted = next(change.at for change in changes if change.wanted == MOST)
    tell(case, wanted - sent, f"{MOST} consumers are wanted; the autoscaler looks every 15 s")
    tell(case, ready - sent, f"{MOST} consumers are ready")
    tell(case, drained - sent, "all are handled", crew.counts())
    tell(case, none - drained, f"none are wanted any more; {reversals(changes)} reversals (at most 1)")
    Path(ARTIFACTS, "hpa.txt").write_text(described)
    assert not crew.counts().lost
    assert condition(hpa, "AbleToScale")["status"] == "True"
    (current,) = hpa["status"]["currentMetrics"]
    assert current["external"]["current"]["averageValue"] != "0"
    assert "New size: 10" in described
    assert reversals(changes) <= 1
