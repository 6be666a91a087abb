"""Labels and names of the objects that the operator creates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from agentstream_operator.cluster.port import Owner
from agentstream_operator.resources.consumergroup import ConsumerGroup
from agentstream_operator.resources.meta import API_VERSION, GROUP

FIELD_MANAGER: Final = "agentstream"
"""The field manager (https://kubernetes.io/docs/reference/using-api/server-side-apply/)."""

SCALE_MANAGER: Final = "agentstream-scale"
"""The field manager of replicas that an autoscaler changes: without one they would fall to 1."""

MANAGED_BY: Final = "app.kubernetes.io/managed-by"
MANAGER: Final = "agentstream"
OURS: Final = f"{MANAGED_BY}={MANAGER}"
"""Selects the objects that the operator created."""

GROUP_LABEL: Final = f"{GROUP}/group"
"""Names the ConsumerGroup that a Deployment or pod belongs to."""

STREAM_LABEL: Final = f"{GROUP}/stream"
"""Names the AgentStream that a Secret with signing keys belongs to."""

AGENT_LABEL: Final = f"{GROUP}/agent"
"""Names the agent that a Secret, Deployment or pod belongs to."""


def deployment_name(group: str) -> str:
    """Returns the name of a group's Deployment."""
    return f"{group}-consumer"


def secret_name(agent: str) -> str:
    """Returns the name of an agent's Secret."""
    return f"agentstream-{agent}"


def signing_secret_name(stream: str) -> str:
    """Returns the name of a stream's signing Secret; with a dot, so that it is never an agent's."""
    return f"agentstream-signing.{stream}"


def is_ours(metadata: Mapping[str, Any]) -> bool:
    """Returns whether the operator created an object with this metadata."""
    return (metadata.get("labels") or {}).get(MANAGED_BY) == MANAGER


def owner_references(owners: Iterable[Owner]) -> list[dict[str, Any]]:
    """Returns the references that delete an object with the last of its owners."""
    return [
        {"apiVersion": API_VERSION, "kind": owner.key.kind, "name": owner.key.name, "uid": owner.uid}
        for owner in owners
    ]


def consumer_labels(group: ConsumerGroup) -> dict[str, str]:
    """Returns the labels of the objects of a group."""
    return {MANAGED_BY: MANAGER, GROUP_LABEL: group.metadata.name, AGENT_LABEL: group.agent_name}


def consumer_metadata(group: ConsumerGroup) -> dict[str, Any]:
    """Returns the metadata of the Deployment or autoscaler of a group."""
    owner = owner_references([Owner(group.key, group.metadata.uid)])[0]
    return {
        "name": deployment_name(group.metadata.name),
        "namespace": group.metadata.namespace,
        "labels": consumer_labels(group),
        "ownerReferences": [{**owner, "controller": True}],
    }
