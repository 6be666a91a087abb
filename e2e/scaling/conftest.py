"""Groups whose consumers follow their backlog, and a ledger for them."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Iterator

import pytest
from harness.chart import Installation
from harness.crew import Crew
from harness.kind import Cluster
from harness.kubectl import Kubectl
from harness.ledger import Ledger, a_ledger
from harness.waiting import until
from harness.watch import Watch


@pytest.fixture(scope="module")
def place(cluster: Cluster) -> Iterator[Kubectl]:
    """A namespace, in a cluster with the chart in it."""
    Installation(cluster).ensure()
    name = f"e2e-{secrets.token_hex(3)}"
    cluster.kubectl("create", "namespace", name)
    yield cluster.kubectl.within(name)
    cluster.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture(scope="module")
def ledger(cluster: Cluster, place: Kubectl) -> Iterator[Ledger]:
    """A ledger that can be reached."""
    ledger = Ledger(cluster)
    try:
        place.apply(*a_ledger("python", "ledger.py"))
        place("rollout", "status", "deployment/load", "--timeout=90s", timeout=100)
        until(ledger.read, despite_errors=True)
        yield ledger
    finally:
        ledger.remove(place)


@pytest.fixture(scope="module")
def watch(place: Kubectl) -> Iterator[Watch]:
    """Sees how many consumers there are."""
    with Watch(place) as watch:
        yield watch


_numbers = itertools.count()


@pytest.fixture
def crew(installation: Installation, place: Kubectl, ledger: Ledger, watch: Watch) -> Iterator[Crew]:
    """A stream and a group, yet to be declared."""
    crew = Crew(place, installation.redis, ledger, watch, f"crew{next(_numbers)}")
    yield crew
    place("delete", f"consumergroup/{crew.name}", f"agentstream/{crew.name}", "--ignore-not-found")
    place("delete", "pods", "--selector", f"agentstream.dev/group={crew.name}", "--force", "--grace-period=0")
