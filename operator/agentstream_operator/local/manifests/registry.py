"""What an API server would remember of resources: their identity, age and generation; kept in a file.

The age decides who wins where two resources claim the same, so it must be the same after every start.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from pathlib import Path

import msgspec

from agentstream_operator.local.bindings.files import write_private
from agentstream_operator.local.failure import cannot
from agentstream_operator.resources.agentstream import AgentStream
from agentstream_operator.resources.consumergroup import ConsumerGroup
from agentstream_operator.resources.meta import ResourceKey


class Record(msgspec.Struct, frozen=True):
    """What is remembered of one resource.

    Attributes:
        kind: its kind.
        namespace: its namespace.
        name: its name.
        uid: its identity; another one after it was removed and declared again.
        created: when it was first seen; no two resources have the same time.
        generation: how often its spec changed, from 1 on.
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
        """Which resource it is about."""
        return ResourceKey(self.kind, self.namespace, self.name)


def read_records(path: Path) -> dict[ResourceKey, Record]:
    """What was remembered; nothing if the file is not there or not what we wrote.

    Raises:
        LocalError: the file cannot be read.
    """
    try:
        records = msgspec.json.decode(path.read_bytes(), type=list[Record])
    except (FileNotFoundError, msgspec.MsgspecError):
        return {}
    except OSError as error:
        raise cannot(f"read {path}", error) from error
    return {record.key: record for record in records}


def write_records(path: Path, records: Mapping[ResourceKey, Record]) -> None:
    """Remembers.

    Raises:
        LocalError: the file cannot be written.
    """
    try:
        write_private(path, msgspec.json.encode(list(records.values())).decode())
    except OSError as error:
        raise cannot(f"write to {path}", error) from error


def remember(
    known: Mapping[ResourceKey, Record], resources: Iterable[AgentStream | ConsumerGroup], now: datetime
) -> dict[ResourceKey, Record]:
    """What is known with these resources in it; a new one is younger than every other.

    Records of resources that are not among these stay: a run with other manifests must not make them younger.
    """
    latest = max((record.created for record in known.values()), default=now - timedelta(seconds=1))
    records = dict(known)
    for resource in resources:
        key = resource.key
        spec = msgspec.json.encode(resource.spec.as_manifest(), order="deterministic").decode()
        record = known.get(key)
        if record is None:
            latest = max(now, latest + timedelta(milliseconds=1))
            record = Record(*key, uid=str(uuid.uuid4()), created=latest, generation=1, spec=spec)
        elif record.spec != spec:
            record = msgspec.structs.replace(record, generation=record.generation + 1, spec=spec)
        records[key] = record
    return records


def stamped(resource: AgentStream | ConsumerGroup, record: Record) -> AgentStream | ConsumerGroup:
    """The resource with the metadata that is remembered of it."""
    metadata = resource.metadata.model_copy(
        update={
            "uid": record.uid,
            "generation": record.generation,
            "creation_timestamp": record.created,
            "deletion_timestamp": None,
            "finalizers": (),
            "resource_version": "",
        }
    )
    return resource.model_copy(update={"metadata": metadata})
