"""Keeps metadata that an API server would assign (uid, creation time, generation) in a file.

Of two resources that claim the same, the older one wins: ages must survive a restart.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from pathlib import Path

import msgspec

from agentstream_operator.local.bindings import write_private
from agentstream_operator.local.screen.output import cannot
from agentstream_operator.resources.agentstream import AgentStream
from agentstream_operator.resources.consumergroup import ConsumerGroup
from agentstream_operator.resources.meta import ResourceKey


class StoredMetadata(msgspec.Struct, frozen=True):
    """Assigned metadata of a resource.

    Attributes:
        uid: changes when the resource is removed and declared again.
        created: time of its first declaration, different for all resources.
        generation: version of its spec, from 1 on.
        spec: its spec as JSON.
    """

    kind: str
    namespace: str
    name: str
    uid: str
    created: datetime
    generation: int
    spec: str

    @property
    def key(self) -> ResourceKey:
        """The key of the resource."""
        return ResourceKey(self.kind, self.namespace, self.name)


def read_metadata(path: Path) -> dict[ResourceKey, StoredMetadata]:
    """Reads the stored metadata; none if the file is missing or damaged.

    Raises:
        LocalError: the file cannot be read.
    """
    try:
        found = msgspec.json.decode(path.read_bytes(), type=list[StoredMetadata])
    except (FileNotFoundError, msgspec.MsgspecError):
        return {}
    except OSError as error:
        raise cannot(f"read {path}", error) from error
    return {metadata.key: metadata for metadata in found}


def write_metadata(path: Path, stored: Mapping[ResourceKey, StoredMetadata]) -> None:
    """Writes the metadata atomically.

    Raises:
        LocalError: the file cannot be written.
    """
    try:
        write_private(path, msgspec.json.encode(list(stored.values())).decode())
    except OSError as error:
        raise cannot(f"write to {path}", error) from error


def assign_metadata(
    known: Mapping[ResourceKey, StoredMetadata],
    resources: Iterable[AgentStream | ConsumerGroup],
    now: datetime,
) -> dict[ResourceKey, StoredMetadata]:
    """Adds or updates the metadata of these resources; a new one is younger than all others.

    Metadata of other resources is kept: a run with other manifests must not make them younger.
    """
    latest = max((stored.created for stored in known.values()), default=now - timedelta(seconds=1))
    assigned = dict(known)
    for resource in resources:
        key = resource.key
        spec = msgspec.json.encode(resource.spec.as_manifest(), order="deterministic").decode()
        stored = known.get(key)
        if stored is None:
            latest = max(now, latest + timedelta(milliseconds=1))
            stored = StoredMetadata(*key, uid=str(uuid.uuid4()), created=latest, generation=1, spec=spec)
        elif stored.spec != spec:
            stored = msgspec.structs.replace(stored, generation=stored.generation + 1, spec=spec)
        assigned[key] = stored
    return assigned


def with_metadata(
    resource: AgentStream | ConsumerGroup, stored: StoredMetadata
) -> AgentStream | ConsumerGroup:
    """Returns the resource with its stored metadata."""
    metadata = resource.metadata.model_copy(
        update={
            "uid": stored.uid,
            "generation": stored.generation,
            "creation_timestamp": stored.created,
            "deletion_timestamp": None,
            "finalizers": (),
            "resource_version": "",
        }
    )
    return resource.model_copy(update={"metadata": metadata})
