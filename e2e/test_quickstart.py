"""The quickstart as a newcomer runs it on a cluster: three commands to a report."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from harness.chart import Installation
from harness.kubectl import Kubectl
from harness.shell import ROOT
from harness.waiting import until

EXAMPLE = ROOT / "examples" / "quickstart"


def the_command_that_prints_the_report() -> str:
    """The third of the commands in the example's description."""
    lines = (EXAMPLE / "README.md").read_text().splitlines()
    (command,) = {line.removeprefix("$ ") for line in lines if line.startswith("$ until kubectl")}
    return command


@pytest.fixture
def quickstart(installation: Installation) -> Iterator[Kubectl]:
    kubectl = installation.cluster.kubectl.within("quickstart")
    kubectl("apply", "--filename", str(EXAMPLE / "k8s.yaml"))
    yield kubectl
    kubectl("delete", "--filename", str(EXAMPLE / "k8s.yaml"), "--ignore-not-found", timeout=180)


def report(kubectl: Kubectl) -> str:
    command = the_command_that_prints_the_report()
    return kubectl.machine.run("bash", "-c", command, kubeconfig=kubectl.kubeconfig, timeout=180)


def test_three_commands_lead_to_the_report(quickstart: Kubectl) -> None:
    text = report(quickstart)
    assert text.startswith("# What is in `/srv`")
    wanted = {path.name for path in EXAMPLE.glob("*.py")}
    assert not [name for name in wanted if f"`examples/quickstart/{name}`" not in text]
    quickstart.ready("agentstreams,consumergroups", "--all")


def test_restarting_the_orchestrator_starts_another_run(quickstart: Kubectl) -> None:
    first = report(quickstart)
    quickstart("rollout", "restart", "deployment/orchestrator-consumer")
    until(lambda: report(quickstart).splitlines()[2] != first.splitlines()[2])
    quickstart("rollout", "status", "deployment/orchestrator-consumer", "--timeout=60s", timeout=70)


def test_the_report_survives_its_agents(quickstart: Kubectl) -> None:
    before = report(quickstart)
    quickstart("delete", "pods", "--all", "--force", "--grace-period=0")
    until(lambda: report(quickstart).splitlines()[2] != before.splitlines()[2], despite_errors=True)
    wanted = [line for line in before.splitlines() if "examples/quickstart" in line]
    assert wanted
    quickstart.ready("agentstreams,consumergroups", "--all")


def test_analysts_go_when_there_is_nothing_to_do(quickstart: Kubectl) -> None:
    report(quickstart)
    until(lambda: not quickstart.pods("analyst"))
    assert quickstart.pods("reporter")


def test_the_pods_keep_to_the_restricted_standard(quickstart: Kubectl) -> None:
    report(quickstart)
    standard = "pod-security.kubernetes.io/enforce=restricted"
    # the API server says which running pods a standard would not have let in
    said = quickstart("label", "namespace", "quickstart", standard, "--dry-run=server", "--overwrite")
    assert "violate" not in said
