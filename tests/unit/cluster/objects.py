"""Objects as the API server has them, for tests of what is made of them."""

from __future__ import annotations

import base64
from typing import Any

from agentstream_operator.cluster.labels import AGENT_LABEL, GROUP_LABEL, MANAGED_BY

Json = dict[str, Any]
API_VERSION = "agentstream.dev/v1alpha1"


def a_resource(kind: str = "AgentStream", name: str = "tasks", version: int = 1, **more: Any) -> Json:
    """A resource of ours in the namespace `team`; `more` has fields of its metadata, and its `spec`."""
    spec = more.pop("spec", {} if kind == "AgentStream" else {"streamRef": {"name": "tasks"}})
    metadata = {"name": name, "namespace": "team", "uid": f"{name}-1", "generation": 1, **more}
    return {
        "apiVersion": API_VERSION,
        "kind": kind,
        "metadata": {**metadata, "resourceVersion": str(version)},
        "spec": spec,
    }


def a_secret(
    version: int = 1, *, name: str = "agentstream-coder", labels: Json | None = None, **data: str
) -> Json:
    """The Secret of the agent `coder`, with these entries."""
    entries = {
        "username": "agentstream.team.coder",
        "password": "secret" * 6,
        "uri": "redis://r:6379",
        **data,
    }
    return {
        "kind": "Secret",
        "metadata": {
            "name": name,
            "namespace": "team",
            "resourceVersion": str(version),
            "labels": {MANAGED_BY: "agentstream", AGENT_LABEL: "coder"} if labels is None else labels,
        },
        "data": {key: base64.b64encode(value.encode()).decode() for key, value in entries.items()},
    }


def a_deployment(version: int = 1, *, group: str = "coder", replicas: int | None = 1, **more: Any) -> Json:
    """The Deployment of a group; `more` has fields of its metadata, and its `status`."""
    status = more.pop("status", {})
    metadata = {
        "name": f"{group}-consumer",
        "namespace": "team",
        "uid": f"{group}-1",
        "resourceVersion": str(version),
        "generation": 1,
        "labels": {MANAGED_BY: "agentstream", GROUP_LABEL: group},
    }
    spec = {} if replicas is None else {"replicas": replicas}
    return {"kind": "Deployment", "metadata": {**metadata, **more}, "spec": spec, "status": status}


def a_pod(version: int = 1, name: str = "a", *, group: str | None = "coder", **status: Any) -> Json:
    """A pod of a group with the container `agent` and one beside it."""
    labels = {MANAGED_BY: "agentstream"} | ({GROUP_LABEL: group} if group is not None else {})
    return {
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "team", "resourceVersion": str(version), "labels": labels},
        "spec": {"containers": [{"name": "agent"}, {"name": "a-side"}]},
        "status": {"phase": "Running", **status},
    }


def container(name: str = "agent", *, last: Json | None = None, **state: Json) -> Json:
    """The status of a container: what it does, and how it ended before."""
    return {"name": name, "state": state, "lastState": {"terminated": last} if last is not None else {}}


RUNNING = container(running={"startedAt": "2026-01-01T00:00:00Z"})
ENDED = container(terminated={"exitCode": 1, "reason": "Error"})
LOOPING = container(
    waiting={"reason": "CrashLoopBackOff", "message": "back-off 10s restarting failed container=agent"},
    last={"exitCode": 3, "reason": "Error"},
)
