"""Everything that reconciling may do to the server, as data. `broker/apply.py` does it.

Each action is idempotent: doing it twice, or again after a crash, leaves what doing it once leaves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class CreateStream:
    """Makes an empty stream, if there is no key, and records its owner."""

    key: str
    owner: Mapping[str, str] = field(hash=False)


@dataclass(frozen=True, slots=True)
class RecordOwner:
    """Writes the owner's fields into the stream's meta hash."""

    key: str
    owner: Mapping[str, str] = field(hash=False)


@dataclass(frozen=True, slots=True)
class SetContracts:
    """Writes the contracts of a stream in place of those before.

    `digest` changes whenever they do, and is empty if there are none; `schemas` are JSON Schemas by
    `<type>@<version>`.
    """

    key: str
    digest: str
    schemas: Mapping[str, str] = field(hash=False)


@dataclass(frozen=True, slots=True)
class CreateGroup:
    """Makes a group and its retry stream, where they are missing. `start` is `0`, `$` or an entry id."""

    key: str
    group: str
    start: str


@dataclass(frozen=True, slots=True)
class DestroyGroup:
    """Removes a group, its retries, delays, counters, and its dead letters only if there are none."""

    key: str
    group: str


@dataclass(frozen=True, slots=True)
class DeleteStream:
    """Deletes a stream and all keys derived from it for the given groups."""

    key: str
    groups: tuple[str, ...]
    only_if_empty: bool


@dataclass(frozen=True, slots=True)
class Probe:
    """A command that a user must, or must not, be allowed to run."""

    command: tuple[str, ...]
    allowed: bool


@dataclass(frozen=True, slots=True)
class SetUser:
    """Sets an agent's ACL user to exactly these rules, atomically, and verifies the probes.

    `password_hashes` are SHA-256 in hex. `plan.access.set_user` makes one.
    """

    name: str
    rules: tuple[str, ...]
    password_hashes: tuple[str, ...]
    probes: tuple[Probe, ...] = ()


@dataclass(frozen=True, slots=True)
class DeleteUser:
    """Removes an agent's ACL user and closes its connections."""

    name: str


@dataclass(frozen=True, slots=True)
class SetRoute:
    """Writes an agent's field of the namespace's routes hash."""

    routes_key: str
    agent: str
    route: bytes


@dataclass(frozen=True, slots=True)
class DeleteRoute:
    """Removes an agent's field of the namespace's routes hash."""

    routes_key: str
    agent: str


Action = (
    CreateStream
    | RecordOwner
    | SetContracts
    | CreateGroup
    | DestroyGroup
    | DeleteStream
    | SetUser
    | DeleteUser
    | SetRoute
    | DeleteRoute
)
