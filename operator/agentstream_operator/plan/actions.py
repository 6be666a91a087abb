"""Changes to the server, as data: each action says which command carries it out; `Broker.apply` sends it.

Each action is idempotent: carried out twice, or again after a crash, it leaves the same state.
`str` of an action says in the infinitive what it does, for conditions and logs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from agentstream.protocol import commands
from agentstream.protocol.commands import Command
from agentstream.protocol.keys import StreamKeys


@dataclass(frozen=True, slots=True)
class CreateStream:
    """Creates an empty stream if there is no key, and records its owner."""

    key: str
    owner: Mapping[str, str] = field(hash=False)

    @property
    def command(self) -> Command:
        """The command that carries it out."""
        return commands.create_stream(self.key, self.owner)

    def __str__(self) -> str:
        return f"create the stream {self.key}"


@dataclass(frozen=True, slots=True)
class RecordOwner:
    """Writes the owner's fields into the stream's meta hash."""

    key: str
    owner: Mapping[str, str] = field(hash=False)

    @property
    def command(self) -> Command:
        """The command that carries it out."""
        return ("HSET", StreamKeys(self.key).meta, *commands.flat(self.owner))

    def __str__(self) -> str:
        return f"record the owner of {self.key}"


@dataclass(frozen=True, slots=True)
class SetContracts:
    """Replaces the contracts of a stream.

    `digest` changes with the contracts, and is empty if there are none; `schemas` are JSON Schemas by
    `<type>@<version>`.
    """

    key: str
    digest: str
    schemas: Mapping[str, str] = field(hash=False)

    @property
    def command(self) -> Command:
        """The command that carries it out."""
        return commands.set_contracts(self.key, self.digest, self.schemas)

    def __str__(self) -> str:
        return f"write the contracts of {self.key}"


@dataclass(frozen=True, slots=True)
class CreateGroup:
    """Creates a group and its retry stream if they are missing. `start` is `0`, `$` or an entry id."""

    key: str
    group: str
    start: str

    @property
    def command(self) -> Command:
        """The command that carries it out."""
        return commands.create_group(self.key, self.group, self.start)

    def __str__(self) -> str:
        return f"create the group {self.group} on {self.key}"


@dataclass(frozen=True, slots=True)
class DestroyGroup:
    """Removes a group with its retries, delays and counters; dead letters stay."""

    key: str
    group: str

    @property
    def command(self) -> Command:
        """The command that carries it out."""
        return commands.destroy_group(self.key, self.group)

    def __str__(self) -> str:
        return f"remove the group {self.group} from {self.key}"


@dataclass(frozen=True, slots=True)
class DeleteStream:
    """Deletes a stream and all keys derived from it; `only_if_empty` keeps one with unsettled entries."""

    key: str
    groups: tuple[str, ...]
    only_if_empty: bool

    @property
    def command(self) -> Command:
        """The command that carries it out."""
        return commands.delete_stream(self.key, self.groups, only_if_empty=self.only_if_empty)

    def __str__(self) -> str:
        return f"delete the stream {self.key}"


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

    def __str__(self) -> str:
        return f"write the user {self.name}"


@dataclass(frozen=True, slots=True)
class DeleteUser:
    """Removes an agent's ACL user and closes its connections."""

    name: str

    def __str__(self) -> str:
        return f"remove the user {self.name}"


@dataclass(frozen=True, slots=True)
class SetRoute:
    """Writes an agent's field of the namespace's routes hash."""

    routes_key: str
    agent: str
    route: bytes

    @property
    def command(self) -> Command:
        """The command that carries it out."""
        return ("HSET", self.routes_key, self.agent, self.route)

    def __str__(self) -> str:
        return f"write the route of {self.agent}"


@dataclass(frozen=True, slots=True)
class DeleteRoute:
    """Removes an agent's field of the namespace's routes hash."""

    routes_key: str
    agent: str

    @property
    def command(self) -> Command:
        """The command that carries it out."""
        return ("HDEL", self.routes_key, self.agent)

    def __str__(self) -> str:
        return f"remove the route of {self.agent}"


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
