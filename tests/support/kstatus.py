"""The rules of kstatus, by which Helm 4, Flux and others tell whether a custom resource is done.

As https://pkg.go.dev/sigs.k8s.io/cli-utils/pkg/kstatus describes them for kinds that it does not know.
"""

from __future__ import annotations

from typing import Any, Literal

KStatus = Literal["Current", "InProgress", "Failed", "Terminating"]


def kstatus(found: dict[str, Any]) -> KStatus:
    """The state of an object as the API server returns it."""
    metadata, status = found["metadata"], found.get("status", {})
    if metadata.get("deletionTimestamp"):
        return "Terminating"
    if status.get("observedGeneration", metadata.get("generation")) != metadata.get("generation"):
        return "InProgress"
    conditions = status.get("conditions", ())
    for condition in conditions:
        if condition["type"] == "Reconciling" and condition["status"] == "True":
            return "InProgress"
        if condition["type"] == "Stalled" and condition["status"] == "True":
            return "Failed"
    for condition in conditions:
        if condition["type"] == "Ready" and condition["status"] != "True":
            return "InProgress"
    # also without any condition that it knows
    return "Current"
