"""The chart, installed as its documents say."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from harness.kind import Cluster
from harness.kubectl import Kubectl
from harness.redis import Redis
from harness.shell import ROOT
from harness.waiting import until

CHART = ROOT / "charts" / "agentstream"
NAME = "agentstream"
NAMESPACE = "agentstream-system"


@dataclass(frozen=True)
class Installation:
    """The operator and its Redis, in a cluster.

    Attributes:
        cluster: where.
    """

    cluster: Cluster

    @property
    def kubectl(self) -> Kubectl:
        """kubectl for the installation's namespace."""
        return self.cluster.kubectl.within(NAMESPACE)

    @property
    def redis(self) -> Redis:
        """The server."""
        return Redis(self.kubectl, f"{NAME}-redis-0")

    @property
    def home(self) -> str:
        """The node for the operator and its server: what happens to the other leaves them alone."""
        return self.cluster.workers[0]

    def install(self, *settings: str) -> None:
        """Installs the chart, or upgrades it in place, and waits until it is ready.

        Args:
            settings: further values, as of `helm --set`.
        """
        where = f"kubernetes\\.io/hostname={self.home}"
        values = (
            "redis.embedded=true",
            "allNamespaces=true",
            f"nodeSelector.{where}",
            f"redis.nodeSelector.{where}",
            *settings,
        )
        self._helm(
            *("upgrade", "--install", NAME, str(CHART), "--create-namespace", "--wait", "--timeout", "3m"),
            *(word for value in values for word in ("--set", value)),
        )

    def ensure(self) -> None:
        """Installs the chart unless that is done."""
        found = json.loads(self._helm("list", "--filter", f"^{NAME}$", "--output", "json"))
        if [release["status"] for release in found] != ["deployed"]:
            self.install()

    def uninstall(self) -> None:
        """Uninstalls it, and waits until it is gone."""
        self._helm("uninstall", NAME, "--wait", "--timeout", "3m")

    def test(self) -> str:
        """Runs the chart's own test. Returns what it prints."""
        return self._helm("test", NAME, "--timeout", "2m")

    def operator_pods(self) -> list[str]:
        """Names of the operator's pods that are not being deleted."""
        return [p["metadata"]["name"] for p in self._operators() if "deletionTimestamp" not in p["metadata"]]

    def operator_runs(self) -> set[str]:
        """What names the operator's processes: those of another run have other names."""
        return {
            status["containerID"] for p in self._operators() for status in p["status"]["containerStatuses"]
        }

    def scale_operator(self, replicas: int) -> None:
        """Has so many operators run, and waits until they do."""
        self.kubectl("scale", f"deployment/{NAME}", f"--replicas={replicas}")
        if replicas:
            self.kubectl("rollout", "status", f"deployment/{NAME}", "--timeout=120s", timeout=130)
        else:
            until(lambda: not self.operator_pods())

    def _operators(self) -> list[Any]:
        labels = f"app.kubernetes.io/instance={NAME},app.kubernetes.io/component=operator"
        return self.kubectl.items("pods", "--selector", labels)

    def _helm(self, *arguments: str) -> str:
        return self.cluster.machine.run(
            "helm", *arguments, "--namespace", NAMESPACE, kubeconfig=self.cluster.kubeconfig, timeout=240
        )
