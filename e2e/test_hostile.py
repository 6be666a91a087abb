"""A hostile tenant and a hostile agent do all that they can, beside others who notice nothing of it.

The tenant has rights to streams, groups and Deployments in a namespace of his own, the agent its password.
What others have is measured for a minute without them, then while they are at it: a load of numbered
messages, the quickstart, and a group that follows its backlog.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness.chart import Installation
from harness.crew import Crew
from harness.images import COUNTING
from harness.kubectl import Kubectl
from harness.ledger import Counts
from harness.load import Load
from harness.manifests import a_group, a_stream
from harness.shell import ROOT
from harness.tenant import DEPLOYMENTS, OURS, Tenant, as_somebody
from harness.waiting import until
from harness.watch import Watch

BEFORE, DURING = 60.0, 120.0
# The machine's two processors are shared by all: attackers, cluster, and those whose times are compared. What
# is to be seen is whether somebody waits for an attack, which would be seconds or for ever.
# So the median over spans of ten seconds is compared, and the longest wait has a bound of its own.
SLOWER, LATER = 4.0, 1.0
SPAN, LONGEST = 10, 60.0
QUICKSTART = ROOT / "examples" / "quickstart" / "k8s.yaml"
FOLLOWING = {"minReplicas": 0, "maxReplicas": 3, "targetBacklog": 50, "scaleDownAfter": "5s"}

Settle = Callable[..., Counts]


@pytest.fixture
def with_metrics(installation: Installation) -> Iterator[Installation]:
    """The installation, with a metrics server."""
    installation.install("metricsServer.enabled=true")
    yield installation
    installation.install()


@pytest.fixture
def quickstart(installation: Installation) -> Iterator[Kubectl]:
    """The quickstart, which has written its first report."""
    kubectl = installation.cluster.kubectl.within("quickstart")
    kubectl("apply", "--filename", str(QUICKSTART))
    until(lambda: "What is in" in report(kubectl), 180, despite_errors=True)
    yield kubectl
    kubectl("delete", "--filename", str(QUICKSTART), "--ignore-not-found", timeout=180)


@pytest.fixture
def crew(with_metrics: Installation, load: Load) -> Iterator[Crew]:
    """A group that follows its backlog, beside the load."""
    with Watch(load.kubectl) as watch:
        crew = Crew(load.kubectl, with_metrics.redis, load.ledger, watch, "crew", _next=1_000_000)
        crew.declare(autoscaling=FOLLOWING)
        yield crew


@dataclass(frozen=True)
class Others:
    """Those who are to notice nothing."""

    system: Installation
    quickstart: Kubectl
    load: Load
    crew: Crew


@pytest.fixture
def others(with_metrics: Installation, quickstart: Kubectl, load: Load, crew: Crew) -> Others:
    return Others(with_metrics, quickstart, load, crew)


@pytest.fixture
def hostile(make_namespace: Callable[[], Kubectl]) -> Kubectl:
    """The namespace of those who attack."""
    return make_namespace()


def report(kubectl: Kubectl) -> str:
    return kubectl("exec", "deployment/reporter-consumer", "--", "cat", "/output/report.md")


def an_attacker(installation: Installation) -> dict[str, object]:
    """A pod with nothing but an agent's Secret."""
    variables = {
        "AGENTSTREAM_BINDING": "/binding",
        "DURATION": f"{DURING:g}",
        "METRICS_HOST": f"agentstream-metrics-server.{installation.kubectl.namespace}.svc",
    }
    container = {
        "name": "agent",
        "image": COUNTING,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "hostile.py"],
        "env": [{"name": name, "value": value} for name, value in variables.items()],
        "volumeMounts": [{"name": "binding", "mountPath": "/binding", "readOnly": True}],
        # others keep a processor
        "resources": {"limits": {"cpu": "400m", "memory": "512Mi"}},
    }
    spec = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "containers": [container],
        "volumes": [{"name": "binding", "secret": {"secretName": "agentstream-mallory"}}],
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "mallory"}, "spec": spec}


def a_burst(crew: Crew) -> float:
    """Has the group wake up from nothing. Returns after how many seconds all its consumers were there."""
    crew.asleep(90)
    last = crew.send(300, 0.2)
    ready = crew.reached(3, since=crew.accepted[last])
    crew.drained(120)
    return ready - crew.accepted[last]


def a_usual_minute(quickstart: Kubectl, crew: Crew) -> float:
    """Has the quickstart write another report, and a group wake up. Returns how long the group took."""
    first = report(quickstart)
    quickstart("rollout", "restart", "deployment/orchestrator-consumer")
    seconds = a_burst(crew)
    until(lambda: report(quickstart).splitlines()[2] != first.splitlines()[2], 120, despite_errors=True)
    return seconds


def waits(load: Load, since: float, until: float) -> list[float]:
    """How long messages waited that were accepted in a span of time, from then until a handler began."""
    begun: dict[int, float] = {}
    for note in load.read():
        if note.what == "begun":
            begun.setdefault(note.number, note.at)
    accepted = [n for n in load.notes if n.what == "accepted" and since <= n.at < until]
    return [max(begun.get(n.number, until) - n.at, 0.0) for n in accepted]


def p95(load: Load, since: float, until: float) -> list[float]:
    """The waits that one of twenty messages exceeded, for each ten seconds of a span of time."""
    spans = (waits(load, at, at + SPAN) for at in range(round(since), round(until) - SPAN + 1, SPAN))
    return [statistics.quantiles(span, n=20)[-1] for span in spans if len(span) > 1]


def processes(kubectl: Kubectl) -> dict[str, str]:
    """What names each process in a namespace, by pod and container: that of another run has another name."""
    return {
        f"{pod['metadata']['name']}/{status['name']}": status.get("containerID", "")
        for pod in kubectl.items("pods")
        for status in pod["status"].get("containerStatuses", ())
    }


def test_others_notice_nothing_of_a_hostile_tenant_and_a_hostile_agent(
    others: Others, hostile: Kubectl, settle: Settle, tell: Callable[..., None], tmp_path: Path
) -> None:
    system, quickstart, load, crew = others.system, others.quickstart, others.load, others.crew
    tenant = Tenant(
        as_somebody(hostile, tmp_path, "tenant", OURS, DEPLOYMENTS),
        as_somebody(hostile, tmp_path, "intern", OURS),
        victim=load.namespace,
    )
    tenant.kubectl.apply(
        a_stream("tasks", producers=["mallory"], broadcast=False),
        a_group("mallory", "tasks", startFrom="Beginning"),
    )
    tenant.kubectl.ready("agentstream/tasks", "consumergroup/mallory")
    began = load.now()
    scaling = a_usual_minute(quickstart, crew)
    until(lambda: load.now() > began + BEFORE, BEFORE + 30)
    running = processes(system.kubectl)

    attacked = load.now()
    hostile.apply(an_attacker(system))
    with ThreadPoolExecutor() as beside:
        attacking = beside.submit(tenant.attack, time.monotonic() + DURING)
        scaling_then = a_usual_minute(quickstart, crew)
        attacking.result()
    hostile.wait("pod/mallory", condition="jsonpath={.status.phase}=Succeeded", timeout=DURING)
    over = load.now()

    # nobody of the system was ended and started again
    assert processes(system.kubectl) == running
    spans = p95(load, attacked, over)
    before, during = statistics.median(p95(load, began, attacked)), statistics.median(spans)
    counts = settle(
        "hostile tenant and agent", over - attacked, f"attacked; p95 {during:.2f} s, before {before:.2f} s"
    )
    tell("hostile tenant and agent", scaling_then, f"a group has all its consumers, before {scaling:.1f} s")
    assert not counts.lost
    assert not counts.refused
    assert not crew.counts().lost
    assert during < max(SLOWER * before, before + LATER), f"by ten seconds: {spans}"
    assert counts.longest < LONGEST
    assert scaling_then < max(SLOWER * scaling, scaling + 10 * LATER)

    # each attack was carried out, and not refused each time
    said = json.loads(hostile("logs", "pod/mallory").splitlines()[-1])
    assert not [name for name in said if ":" not in name and said[name] <= said[f"{name}: refused"]]
    assert len(said) > 20
    assert min(tenant.said[name] for name in ("deep", "large", "names", "pods", "storm")) > 0
    # nobody has the operator run pods that he may not run himself
    assert tenant.said["pods: refused"] == tenant.said["pods"]

    # with all of it there still, an operator starts, and new resources take effect
    system.kubectl("rollout", "restart", "deployment/agentstream")
    system.kubectl("rollout", "status", "deployment/agentstream", "--timeout=90s", timeout=100)
    load.kubectl.apply(a_stream("later", producers=["sender"]))
    load.kubectl.ready("agentstream/later")
