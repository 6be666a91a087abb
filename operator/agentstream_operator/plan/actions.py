"""Changes to the server, as data: each action says which command carries it out; `Broker.apply` sends it.

Each action is idempotent: carried out twice, or again after a crash, it leaves the same state.
`str` of an action says in the infinitive what it does, for conditions and logs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from agentstream.protocol import commands
from agentstream.protocol.commands import Command
from agentstream.protocol.keys import StreamKeys


class _Action:
    """Describes itself by its words, which are formatted with the action."""

    __slots__ = ()
    words: ClassVar[str]

    def __str__(self) -> str:
        return self.words.format(self)


@dataclass(frozen=True, slots=True)
class CreateStream(_Action):
    """Creates an empty stream if there is no key, and records its owner."""

    words = "create the stream {0.key}"
    key: str
    owner: Mapping[str, str] = field(hash=False)

    @property
    def command(self) -> Command:
        """The command that carries it out."""
        return commands.create_stream(self.key, self.owner)


@dataclass(frozen=True, slots=True)
class RecordOwner(_Action):
    """Writes the owner's fields into the stream's meta hash."""

    words = "record the owner of {0.key}"
    key: str
    owner: Mapping[str, str] = field(hash=False)

    @property
    def command(self) -> Command:
        """The command that carries it out."""
        return ("HSET", StreamKeys(self.key).meta, *commands.flat(self.owner))


@dataclass(frozen=True, slots=True)
class SetContracts(_Action):
    """Replaces the contracts of a stream.

    `digest` changes with the contracts, and is empty if there are none; `schemas` are JSON Schemas by
    `<type>@<version>`.
    """

    words = "write the contracts of {0.key}"
    key: str
    digest: str
    schemas: Mapping[str, str] = field(hash=False)

    @property
    def command(self) -> Command:
        """The command that carries it out."""
        return commands.set_contracts(self.key, self.digest, self.schemas)


@dataclass(frozen=True, slots=True)
class CreateGroup(_Action):
    """Creates a group and its retry stream if they are missing. `start` is `0`, `$` or an entry id."""

    words = "create the group {0.group} on {0.key}"
    key: str
    group: str
    start: str

    @property
    def command(self) -> Command:
        """The command that carries it out."""
        return commands.create_group(self.key, self.group, self.start)


@dataclass(frozen=True, slots=True)
class ResetCounters(_Action):
    """Gives counters of a group a value again."""

    words = "reset counters of the group {0.group} on {0.key}"
    key: str
    group: str
    values: Mapping[str, int] = field(hash=False)

    @property
    def command(self) -> Command:
        """The command that carries it out."""
        values = {name: str(value) for name, value in self.values.items()}
        return ("HSET", StreamKeys(self.key).stats(self.group), *commands.flat(values))


@dataclass(frozen=True, slots=True)
class DestroyGroup(_Action):
    """Removes a group with its retries, delays and counters; dead letters stay."""

    words = "remove the group {0.group} from {0.key}"
    key: str
    group: str

    @property
    def command(self) -> Command:
        """The command that carries it out."""
        return commands.destroy_group(self.key, self.group)


@dataclass(frozen=True, slots=True)
class HealGroup(_Action):
    """Delivers again what a group was given since its checkpoint (`again`), or writes off what it lost."""

    words = "heal the group {0.group} of {0.key}"
    key: str
    group: str
    again: bool

    @property
    def command(self) -> Command:
        """The command that carries it out."""
        return commands.heal_group(self.key, self.group, again=self.again)


@dataclass(frozen=True, slots=True)
class HealIds(_Action):
    """Begins a stream anew whose ids are of the future; groups get what is unsettled as retries."""

    words = "heal the ids of {0.key}"
    key: str
    groups: tuple[str, ...]

    @property
    def command(self) -> Command:
        """The command that carries it out."""
        return commands.heal_ids(self.key, self.groups)


@dataclass(frozen=True, slots=True)
class DeleteStream(_Action):
    """Deletes a stream and all keys derived from it; `only_if_empty` keeps one with unsettled entries."""

    words = "delete the stream {0.key}"
    key: str
    groups: tuple[str, ...]
    only_if_empty: bool

    @property
    def command(self) -> Command:
        """The command that carries it out."""
        return commands.delete_stream(self.key, self.groups, only_if_empty=self.only_if_empty)


@dataclass(frozen=True, slots=True)
class Probe:
    """A command that a user must, or must not, be allowed to run."""

    command: tuple[str, ...]
    allowed: bool


@dataclass(frozen=True, slots=True)
class SetUser(_Action):
    """Sets an agent's ACL user to exactly these rules, atomically, and verifies the probes.

    `password_hashes` are SHA-256 in hex. `disconnect` also closes the user's connections: the server checks a
    password only when a connection is made. `plan.access.set_user` makes one.
    """

    words = "write the user {0.name}"
    name: str
    rules: tuple[str, ...]
    password_hashes: tuple[str, ...]
    probes: tuple[Probe, ...] = ()
    disconnect: bool = False


@dataclass(frozen=True, slots=True)
class DeleteUser(_Action):
    """Removes an agent's ACL user and closes its connections."""

    words = "remove the user {0.name}"
    name: str


@dataclass(frozen=True, slots=True)
class SetRoute(_Action):
    """Writes an agent's field of the namespace's routes hash."""

    words = "write the route of {0.agent}"
    routes_key: str
    agent: str
    route: bytes

    @property
    def command(self) -> Command:
        """The command that carries it out."""
        return ("HSET", self.routes_key, self.agent, self.route)


@dataclass(frozen=True, slots=True)
class DeleteRoute(_Action):
    """Removes an agent's field of the namespace's routes hash."""

    words = "remove the route of {0.agent}"
    routes_key: str
    agent: str

    @property
    def command(self) -> Command:
        """The command that carries it out."""
        return ("HDEL", self.routes_key, self.agent)


Action = (
    CreateStream
    | RecordOwner
    | SetContracts
    | CreateGroup
    | ResetCounters
    | DestroyGroup
    | HealGroup
    | HealIds
    | DeleteStream
    | SetUser
    | DeleteUser
    | SetRoute
    | DeleteRoute
)
