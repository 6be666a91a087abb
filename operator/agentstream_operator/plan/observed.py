"""Observations of the server. Ids are entry ids; times are ms of the server's clock."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from agentstream.protocol.keys import parse_consumer


class GroupSeen(msgspec.Struct, frozen=True):
    """A group of a stream.

    Attributes:
        exists: whether the group exists.
        consumers: number of consumers.
        pending: entries delivered and not settled.
        last: last delivered entry.
        read: entries read since the stream began, if known.
        undelivered: entries not delivered yet.
        exact: whether `undelivered` is exact.
        oldest_undelivered: the first undelivered entry.
        oldest_pending: the oldest pending entry.
        retry_ready: whether the retry stream and its group exist.
        retry_length: entries on the retry stream, all unsettled.
        retry_pending: those of them that are delivered.
        delayed: retries not moved to the retry stream yet.
        due: those of them that are due.
        next_due: when the first of them is due.
        dead: dead letters.
        stats: counters of settling.
    """

    exists: bool
    consumers: int = 0
    pending: int = 0
    last: str | None = None
    read: int | None = None
    undelivered: int = 0
    exact: bool = True
    oldest_undelivered: str | None = None
    oldest_pending: str | None = None
    retry_ready: bool = False
    retry_length: int = 0
    retry_pending: int = 0
    delayed: int = 0
    due: int = 0
    next_due: int | None = None
    dead: int = 0
    stats: Mapping[str, str] = {}

    @property
    def backlog(self) -> int:
        """Unsettled entries: undelivered, pending, and on the retry stream."""
        return self.undelivered + self.pending + self.retry_length

    @property
    def settled(self) -> int:
        """Settled entries since the server began to count, retries included."""
        return int(self.stats.get("settled", 0)) + int(self.stats.get("resettled", 0))


class ConsumerSeen(msgspec.Struct, frozen=True):
    """A consumer of a group.

    Attributes:
        name: `<pod>.<start of its process>`.
        pending: its pending entries of the main stream.
        idle: ms since its last command.
    """

    name: str
    pending: int
    idle: int

    @property
    def pod(self) -> str:
        """The pod of the consumer."""
        return parse_consumer(self.name)[0]


class Gone(NamedTuple):
    """Processes that have ended.

    Attributes:
        pod: their pod.
        before: those started before that time (ms since 1970); None for all of the pod.
    """

    pod: str
    before: int | None = None

    def covers(self, consumer: str) -> bool:
        """Returns whether a consumer of this name was one of them."""
        pod, started = parse_consumer(consumer)
        return pod == self.pod and (self.before is None or started is None or started < self.before)


class StreamSeen(msgspec.Struct, frozen=True):
    """A stream key, and the keys derived from it.

    Attributes:
        type: the key's type; `none` if it does not exist.
        now: the server's clock.
        length: number of entries.
        added: entries added since the stream began.
        first: the first entry.
        last: the last generated id.
        gate: the length at which new entries are refused (backpressure).
        contracts: the digest of its contracts; None if it has none.
        meta: the operator's hash: owner and checkpoints.
        groups: every group on the stream and every declared one, by name.
        digest: changes with everything but the time.
    """

    type: str
    now: int = 0
    length: int = 0
    added: int = 0
    first: str | None = None
    last: str | None = None
    gate: str | None = None
    contracts: str | None = None
    meta: Mapping[str, str] = {}
    groups: Mapping[str, GroupSeen] = {}
    digest: str = ""

    def checkpoint(self, group: str) -> str | None:
        """Returns the position of a group at the last janitor pass: before its oldest pending entry."""
        return self.meta.get(f"checkpoint:{group}")


class JanitorReport(msgspec.Struct, frozen=True):
    """What one pass of the janitor did and saw; see `as1_janitor` in the function library.

    Attributes:
        type: the key's type.
        length: entries after trimming.
        trimmed: entries removed.
        overrun: entries removed that a group had not read (`TrimOldest` only).
        moved: delayed retries that became due.
        more: whether another pass would find more to do at once.
        expired: pending entries that became dead letters because the stream is full.
        forgotten: consumers removed because nothing had been heard of them for long, and they held nothing.
        unsettled: entries that the slowest declared group has not settled.
        shortened: history younger than `minAge` went because of the length limit.
        refusing: adding is refused just now.
        held_by: the group whose unsettled entries are older than `minAge` and stay for it.
        missing: a declared group that is not on the stream; nothing was trimmed.
        gate: the length at which adding is refused; None if it never is.
        bytes: memory that the stream takes, where `maxBytes` is set.
    """

    type: str
    length: int = 0
    trimmed: int = 0
    overrun: int = 0
    moved: int = 0
    more: bool = False
    expired: int = 0
    forgotten: int = 0
    unsettled: int = 0
    shortened: bool = False
    refusing: bool = False
    held_by: str | None = None
    missing: str | None = None
    gate: int | None = None
    bytes: int | None = None


class ServerSeen(msgspec.Struct, frozen=True):
    """The server process that answered.

    Attributes:
        run_id: changes when the process does.
        eviction_policy: what the server does when memory is full; all but `noeviction` may delete streams.
        trusts_lag: whether its own lag is right after unread entries were trimmed.
    """

    run_id: str
    eviction_policy: str
    trusts_lag: bool
