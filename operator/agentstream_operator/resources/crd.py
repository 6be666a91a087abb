"""The CustomResourceDefinitions, built from the models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .agentstream import AgentStream
from .consumergroup import ConsumerGroup
from .meta import GROUP, VERSION, Resource
from .schema import structural_schema
from .streamreplay import StreamReplay


def column(name: str, kind: str, path: str, description: str) -> dict[str, Any]:
    """Builds a column of `kubectl get`."""
    return {"name": name, "type": kind, "description": description, "jsonPath": path}


@dataclass(frozen=True, slots=True)
class CrdKind:
    """The parts of a CRD besides its schema."""

    model: type[Resource]
    plural: str
    short_name: str
    columns: tuple[dict[str, Any], ...]  # the columns of `kubectl get`
    scale: dict[str, str] | None = None  # paths of the scale subresource, if it has one

    @property
    def name(self) -> str:
        """The CRD's name."""
        return f"{self.plural}.{GROUP}"


_READY = '.status.conditions[?(@.type=="Ready")]'
_REASON = column("Reason", "string", f"{_READY}.reason", "Reason of the condition Ready.")
_AGE = column("Age", "date", ".metadata.creationTimestamp", "Time since the creation.")
_COMMON_COLUMNS = (
    column("Ready", "string", f"{_READY}.status", "Status of the condition Ready."),
    _REASON,
    _AGE,
)

KINDS = (
    CrdKind(
        model=AgentStream,
        plural="agentstreams",
        short_name="astream",
        columns=(
            column("Key", "string", ".status.key", "Key of the stream on the server."),
            column("Length", "integer", ".status.length", "Approximate number of messages."),
            column("Groups", "integer", ".status.groups", "Number of groups."),
            *_COMMON_COLUMNS,
        ),
    ),
    CrdKind(
        model=ConsumerGroup,
        plural="consumergroups",
        short_name="cgroup",
        columns=(
            column("Stream", "string", ".spec.streamRef.name", "AgentStream that the group consumes."),
            column("Group", "string", ".status.group", "Name of the group on the server."),
            column("Backlog", "integer", ".status.backlog", "Approximate number of unsettled messages."),
            column("Pending", "integer", ".status.pending", "Approximate number of pending messages."),
            column("Oldest", "date", ".status.oldest", "Age of the oldest unsettled message, from 30 s on."),
            column("Dead", "integer", ".status.deadLetters", "Approximate number of dead letters."),
            column("Replicas", "integer", ".status.replicas", "Number of ready replicas."),
            *_COMMON_COLUMNS,
        ),
        scale={
            "specReplicasPath": ".spec.replicas",
            "statusReplicasPath": ".status.replicas",
            "labelSelectorPath": ".status.selector",
        },
    ),
    CrdKind(
        model=StreamReplay,
        plural="streamreplays",
        short_name="sreplay",
        columns=(
            column("Group", "string", ".spec.groupRef.name", "ConsumerGroup that gets the messages."),
            column("Source", "string", ".spec.from.source", "Where the messages are read."),
            column("Matched", "integer", ".status.matched", "Number of messages that match so far."),
            column("Moved", "integer", ".status.moved", "Number of messages delivered once more."),
            column("Handled", "integer", ".status.handled", "Number of them that were acknowledged."),
            column("Dead", "integer", ".status.dead", "Number of them that are dead letters again."),
            column("Phase", "string", ".status.phase", "How far the replay has come."),
            _AGE,
            # only with `-o wide`
            _REASON | {"priority": 1},
        ),
    ),
)


def crd(kind: CrdKind) -> dict[str, Any]:
    """Builds the CustomResourceDefinition (apiextensions.k8s.io/v1) of a kind."""
    name = kind.model.__name__
    subresources: dict[str, Any] = {"status": {}}
    if kind.scale is not None:
        subresources["scale"] = dict(kind.scale)
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": kind.name},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": name,
                "listKind": f"{name}List",
                "plural": kind.plural,
                "singular": name.lower(),
                "shortNames": [kind.short_name],
                # not the singular: `kubectl get agentstream NAME` would mean all kinds
                "categories": ["agentstream-all"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": subresources,
                    "additionalPrinterColumns": list(kind.columns),
                    "schema": {"openAPIV3Schema": _root_schema(kind.model)},
                }
            ],
        },
    }


def _root_schema(model: type[Resource]) -> dict[str, Any]:
    """Builds the schema of a resource; of the metadata, a CRD may only restrict the name."""
    schema = structural_schema(model)
    properties = schema["properties"]
    out: dict[str, Any] = {"description": schema["description"], "type": "object"}
    if "spec" in schema["required"]:
        out["required"] = ["spec"]
    out["properties"] = {
        "apiVersion": {"type": "string", "maxLength": 64},
        "kind": {"type": "string", "maxLength": 64},
        "metadata": {"type": "object", "properties": {"name": properties["metadata"]["properties"]["name"]}},
        "spec": properties["spec"],
        "status": properties["status"],
    }
    return out
