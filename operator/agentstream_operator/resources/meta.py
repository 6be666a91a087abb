"""Metadata of all resources, their keys, and the annotations that control the operator."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import cached_property
from typing import Final, NamedTuple

from pydantic import ConfigDict, Field

from .model import DnsLabel, Int, Model

GROUP: Final = "agentstream.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = "agentstream.dev/v1alpha1"

PAUSED_ANNOTATION = f"{GROUP}/paused"
"""`true`: the resource is read, but nothing is changed for it."""

FORCE_DELETE_ANNOTATION = f"{GROUP}/force-delete"
"""`true`: a deletion does not wait for the server."""

HEAL_ANNOTATION = f"{GROUP}/heal"
"""`ids` on a stream; `repeat` or `write-off` on a group: heals what other clients did to it."""

FINALIZER = f"{GROUP}/finalizer"
"""The finalizer of resources whose deletion removes something from the server."""

ADOPT_ANNOTATION = f"{GROUP}/adopt"
"""`true` on a namespace: its streams take over what a former namespace has left under their keys."""


class ResourceKey(NamedTuple):
    """Identifies a resource."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"


class NamespaceSeen(NamedTuple):
    """A namespace: its uid, which another one of that name does not have, and whether it takes over data."""

    uid: str  # empty where there are no namespaces
    adopts: bool = False


NO_NAMESPACE = NamespaceSeen("")
"""Where namespaces are only names, as in local mode."""


class ObjectMeta(Model):
    """The metadata that the operator reads; other fields are ignored."""

    model_config = ConfigDict(extra="ignore")

    name: DnsLabel
    namespace: DnsLabel = "default"
    uid: str = ""
    generation: Int = 0
    creation_timestamp: datetime | None = None
    deletion_timestamp: datetime | None = None
    annotations: Mapping[str, str] = Field(default_factory=dict)
    labels: Mapping[str, str] = Field(default_factory=dict)
    finalizers: tuple[str, ...] = ()
    resource_version: str = ""


class Resource(Model):
    """A resource of any kind."""

    api_version: str
    kind: str
    metadata: ObjectMeta

    @cached_property
    def key(self) -> ResourceKey:
        """Kind, namespace and name."""
        return ResourceKey(self.kind, self.metadata.namespace, self.metadata.name)

    @property
    def paused(self) -> bool:
        """Whether the operator may change nothing for the resource."""
        return self.metadata.annotations.get(PAUSED_ANNOTATION) == "true"

    @property
    def force_delete(self) -> bool:
        """Whether a deletion does not wait for an unreachable server."""
        return self.metadata.annotations.get(FORCE_DELETE_ANNOTATION) == "true"

    @property
    def heal(self) -> str | None:
        """What is to be healed."""
        return self.metadata.annotations.get(HEAL_ANNOTATION)

    @property
    def deleting(self) -> bool:
        """Whether the resource is being deleted."""
        return self.metadata.deletion_timestamp is not None
