"""What a failed test leaves to be read: every object, event and log of the cluster."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from harness.kind import Cluster
from harness.shell import ROOT, CommandFailed

ARTIFACTS = ROOT / "e2e" / "artifacts"

_OURS = "agentstreams,consumergroups,streamreplays"
_KINDS = f"nodes,pods,deployments,statefulsets,jobs,services,persistentvolumeclaims,secrets,{_OURS}"


def collect(cluster: Cluster, test: str) -> Path:
    """Writes down everything. Returns the directory."""
    directory = ARTIFACTS / re.sub(r"[^A-Za-z0-9_.-]+", "-", test)
    directory.mkdir(parents=True, exist_ok=True)
    for name, arguments in _questions(cluster):
        try:
            answer = cluster.kubectl(*arguments)
        except CommandFailed as error:
            answer = str(error)
        (directory / name).write_text(answer)
    return directory


def _questions(cluster: Cluster) -> Iterator[tuple[str, tuple[str, ...]]]:
    everywhere = ("--all-namespaces",)
    yield "objects.txt", ("get", _KINDS, *everywhere, "--output", "wide")
    yield "resources.yaml", ("get", _OURS, *everywhere, "--output", "yaml")
    yield "deployments.yaml", ("get", "deployments", *everywhere, "--output", "yaml")
    yield "pods.txt", ("describe", "pods", *everywhere)
    yield "events.txt", ("get", "events", *everywhere, "--sort-by", ".lastTimestamp")
    try:
        pods = cluster.kubectl.items("pods", *everywhere)
    except CommandFailed:
        return
    for pod in pods:
        namespace, name = pod["metadata"]["namespace"], pod["metadata"]["name"]
        for status in pod["status"].get("containerStatuses", []):
            container = status["name"]
            log = ("logs", name, "--namespace", namespace, "--container", container, "--timestamps")
            yield f"{namespace}.{name}.{container}.log", log
            if status["restartCount"]:
                yield f"{namespace}.{name}.{container}.previous.log", (*log, "--previous")
