"""A cluster with the chart in it, and what a test needs there; evidence where a test fails."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import images
from harness.chart import Installation
from harness.evidence import ARTIFACTS, collect
from harness.kind import Cluster
from harness.kubectl import Kubectl
from harness.ledger import Counts, Ledger, a_ledger
from harness.load import Load
from harness.machine import Machine, prepare
from harness.recovery import Recoveries, Recovery
from harness.waiting import until

_recoveries = pytest.StashKey[Recoveries]()
_cluster = pytest.StashKey[Cluster]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "chaos: destroys something, or takes long.")
    config.addinivalue_line("markers", "ci: of these, the quick ones that every run of CI has.")
    config.stash[_recoveries] = Recoveries()


@pytest.fixture(scope="session")
def machine() -> Machine:
    """This machine, with its programs."""
    return prepare()


@pytest.fixture(scope="session")
def cluster(
    machine: Machine, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Cluster]:
    """A cluster of its own with the images in it; E2E_CLUSTER names one that was kept with KEEP_CLUSTER=1."""
    directory = tmp_path_factory.mktemp("cluster")
    kept = os.environ.get("E2E_CLUSTER")
    cluster = Cluster(machine, kept or f"agentstream-e2e-{secrets.token_hex(3)}", directory / "kubeconfig")
    request.config.stash[_cluster] = cluster
    archive = images.build(machine, directory)
    try:
        if kept:
            machine.run("kind", "export", "kubeconfig", "--name", kept, kubeconfig=cluster.kubeconfig)
        else:
            cluster.create(directory)
        cluster.load(archive)
        archive.unlink()
        if kept:
            # new pods, of the new images
            Installation(cluster).install(f"podAnnotations.run=r{secrets.token_hex(3)}")
        yield cluster
    finally:
        if not kept and not os.environ.get("KEEP_CLUSTER"):
            cluster.delete()


@pytest.fixture
def installation(cluster: Cluster) -> Installation:
    """The chart, installed."""
    installation = Installation(cluster)
    installation.ensure()
    return installation


@pytest.fixture
def kubectl(installation: Installation, make_namespace: Callable[[], Kubectl]) -> Kubectl:
    """kubectl for a namespace of the test's own, in a cluster with the chart in it."""
    return make_namespace()


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


@pytest.fixture
def make_namespace(cluster: Cluster) -> Iterator[Callable[[], Kubectl]]:
    """Makes namespaces that go with the test."""
    made: list[str] = []

    def make() -> Kubectl:
        name = f"e2e-{secrets.token_hex(3)}"
        cluster.kubectl("create", "namespace", name)
        made.append(name)
        return cluster.kubectl.within(name)

    yield make
    for name in made:
        cluster.kubectl("delete", "namespace", name, "--ignore-not-found", "--wait=false")


@pytest.fixture
def load(cluster: Cluster, kubectl: Kubectl) -> Iterator[Load]:
    """A continuous load, of which nothing may be lost."""
    load = Load(cluster, kubectl.namespace)
    load.start()
    yield load
    load.close()


@pytest.fixture
def settle(load: Load, tell: Callable[..., None]) -> Callable[..., Counts]:
    """Ends a case: nothing more is sent, everything is counted, and the case stands in the table."""

    def end(case: str, seconds: float, meaning: str, since: float = 0.0) -> Counts:
        load.finish()
        counts = load.counts(since)
        tell(case, seconds, meaning, counts)
        return counts

    return end


@pytest.fixture
def tell(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Adds a row to the table: a case, how long it took, what that is, and what became of its messages."""

    def add(case: str, seconds: float, meaning: str, counts: Counts | None = None) -> None:
        request.config.stash[_recoveries].rows.append(Recovery(case, seconds, meaning, counts))

    return add


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    cluster = item.config.stash.get(_cluster, None)
    if report.failed and cluster is not None and cluster.kubeconfig.exists():
        directory = collect(cluster, f"{item.name}.{report.when}")
        report.sections.append(("evidence", f"objects, events and logs are in {directory}"))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    recoveries = config.stash[_recoveries]
    if recoveries.rows:
        table = recoveries.table()
        terminalreporter.section("times")
        terminalreporter.write(table)
        ARTIFACTS.mkdir(exist_ok=True)
        Path(ARTIFACTS, "times.md").write_text(table)
    if os.environ.get("KEEP_CLUSTER") and (cluster := config.stash.get(_cluster, None)):
        terminalreporter.write_line(
            f"kept: the cluster {cluster.name}. Use it again with E2E_CLUSTER={cluster.name}, "
            f"delete it with: kind delete cluster --name {cluster.name}"
        )
