"""Observations of the server. Ids are entry ids; times are ms of the server's clock."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from agentstream.protocol.keys import parse_consumer

CROWD = 1_000
"""Consumers of a group from which on they are not listed at every turn, as the server lists all at once."""


class GroupSeen(msgspec.Struct, frozen=True):
    """A group of a stream."""

    exists: bool
    consumers: int = 0
    pending: int = 0  # delivered and not settled
    last: str | None = None  # the last delivered entry
    read: int | None = None  # since the stream began, if known
    undelivered: int = 0
    exact: bool = True  # whether `undelivered` is
    oldest_undelivered: str | None = None
    oldest_pending: str | None = None
    retry_ready: bool = False  # whether the retry stream and its group exist
    retry_length: int = 0  # all unsettled
    retry_pending: int = 0  # those of them that are delivered
    delayed: int = 0  # retries not on the retry stream yet
    due: int = 0  # those of them that are due
    next_due: int | None = None  # when the first of them is
    dead: int = 0  # dead letters
    stats: Mapping[
        str, int
    ] = {}  # counters of settling and replaying; `unreadable` counts what was dropped or begun anew
    misread: tuple[str, ...] = ()  # those of them that hold no number on the server
    unreadable: bool = False  # whether a key of the group is of another type than it should be

    @property
    def backlog(self) -> int:
        """Unsettled entries: undelivered, pending, and on the retry stream."""
        return self.undelivered + self.pending + self.retry_length

    @property
    def settled(self) -> int:
        """Settled entries since the server began to count, retries included."""
        return self.stats.get("settled", 0) + self.stats.get("resettled", 0)

    @property
    def crowded(self) -> bool:
        """Whether the group has more consumers than any workload has processes."""
        return self.consumers > CROWD


class UserSeen(NamedTuple):
    """An ACL user: a fingerprint of its rules and passwords, and the passwords (SHA-256 in hex)."""

    fingerprint: str
    passwords: frozenset[str] = frozenset()


class ConsumerSeen(msgspec.Struct, frozen=True):
    """A consumer of a group."""

    name: str  # `<pod>.<start of its process>-…`
    pending: int  # entries of the main stream
    idle: int  # ms since its last command

    @property
    def pod(self) -> str:
        """The pod of the consumer."""
        return parse_consumer(self.name)[0]


class HeldSeen(NamedTuple):
    """An entry that a consumer holds."""

    entry: str  # id on the stream, or on the retry stream
    idle: int  # ms since its lease was renewed
    deliveries: int  # how often the server gave it to a consumer


class Gone(NamedTuple):
    """Processes that have ended: all of a pod, or those that started before a time (ms since 1970)."""

    pod: str
    before: int | None = None

    def covers(self, consumer: str) -> bool:
        """Returns whether a consumer of this name was one of them."""
        pod, started = parse_consumer(consumer)
        return pod == self.pod and (self.before is None or started is None or started < self.before)


class StreamSeen(msgspec.Struct, frozen=True):
    """A stream key, and the keys derived from it."""

    type: str  # `none` if the key does not exist
    now: int = 0  # the server's clock
    length: int = 0
    added: int = 0  # entries since the stream began
    first: str | None = None
    last: str | None = None  # generated id
    gate: str | None = None  # the length at which new entries are refused (backpressure)
    contracts: str | None = None  # their digest, if there are any
    meta: Mapping[str, str] = {}  # the operator's hash: owner and checkpoints
    groups: Mapping[str, GroupSeen] = {}  # every group on the stream and every declared one
    digest: str = ""  # changes with everything but the time

    def checkpoint(self, group: str) -> str | None:
        """Returns the position of a group at the last janitor pass: before its oldest pending entry."""
        return self.meta.get(f"checkpoint:{group}")


class JanitorReport(msgspec.Struct, frozen=True):
    """What one pass of the janitor did and saw, in entries; see `as1_janitor` in the function library."""

    type: str
    length: int = 0  # after trimming
    trimmed: int = 0
    overrun: int = 0  # trimmed before a group had read them (`TrimOldest` only)
    moved: int = 0  # delayed retries that became due
    more: bool = False  # whether another pass would find more to do at once
    expired: int = 0  # pending entries that became dead letters because the stream is full
    forgotten: int = 0  # consumers removed after a long silence: they held nothing
    unsettled: int = 0  # not settled by the slowest declared group
    shortened: bool = False  # history younger than `minAge` went because of the length limit
    refusing: bool = False  # adding is refused just now
    held_by: str | None = None  # the group whose unsettled entries are older than `minAge` and stay for it
    missing: str | None = None  # a declared group that is not on the stream; nothing was trimmed
    gate: int | None = None  # the length at which adding is refused, if it ever is
    bytes: int | None = None  # memory that the stream takes, where `maxBytes` is set
    failed: Mapping[str, str] = {}  # declared groups that were left out, with the error: their keys stop it


class ServerSeen(msgspec.Struct, frozen=True):
    """The server process that answered."""

    run_id: str  # changes when the process does
    eviction_policy: str  # all but `noeviction` may delete streams
    trusts_lag: bool  # whether its own lag is right after unread entries were trimmed


class ServerInfo(msgspec.Struct, frozen=True):
    """What the server tells everybody who may ask: its program, its settings, its clock."""

    program: str  # `redis` or `valkey`
    version: str
    role: str  # `master` or `slave`
    used_memory: int  # bytes
    max_memory: int | None  # bytes; None without a limit
    eviction_policy: str
    append_only: bool  # whether accepted messages survive a crash of the process
    write_failed: bool  # whether the latest write of its data to the disk failed
    clock: int  # ms since 1970
    library: int | None = None  # revision of the function library; None if it is not loaded
