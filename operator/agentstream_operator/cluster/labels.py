"""Labels and names of the objects that the operator makes for a resource, and how they are found again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from agentstream_operator.cluster.port import Owner
from agentstream_operator.resources.meta import API_VERSION, GROUP

FIELD_MANAGER: Final = "agentstream"
"""Who writes, as the API server notes it (https://kubernetes.io/docs/reference/using-api/server-side-apply/)."""

SCALE_MANAGER: Final = "agentstream-scale"
"""Who holds the number of replicas while an autoscaler decides it: without a holder it would fall to 1."""

MANAGED_BY: Final = "app.kubernetes.io/managed-by"
MANAGER: Final = "agentstream"
OURS: Final = f"{MANAGED_BY}={MANAGER}"
"""Selects what the operator made."""

GROUP_LABEL: Final = f"{GROUP}/group"
"""Names the ConsumerGroup that a Deployment or pod belongs to."""

STREAM_LABEL: Final = f"{GROUP}/stream"
"""Names the AgentStream that a Secret with signing keys belongs to."""

AGENT_LABEL: Final = f"{GROUP}/agent"
"""Names the agent that a Secret, Deployment or pod belongs to."""


def deployment_name(group: str) -> str:
    """Name of the Deployment of a group."""
    return f"{group}-consumer"


def secret_name(agent: str) -> str:
    """Name of the Secret of an agent."""
    return f"agentstream-{agent}"


def signing_secret_name(stream: str) -> str:
    """Name of the Secret with the keys of a stream: no agent's name has a dot, so it is never an agent's."""
    return f"agentstream-signing.{stream}"


def is_ours(metadata: Mapping[str, Any]) -> bool:
    """Whether the operator made an object with this metadata."""
    return (metadata.get("labels") or {}).get(MANAGED_BY) == MANAGER


def owner_references(owners: Iterable[Owner]) -> list[dict[str, Any]]:
    """The references that let an object go with the last of its owners."""
    return [
        {"apiVersion": API_VERSION, "kind": owner.key.kind, "name": owner.key.name, "uid": owner.uid}
        for owner in owners
    ]
