"""The numbers of streams and groups."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from agentstream_operator.queue_api.documents.common import Answer, Count, Seconds


class ServerNumbers(Answer):
    """Redis or Valkey; numbers are null while it does not answer."""

    reachable: bool
    """Whether it answers."""

    role: str | None = None
    """`master` or `slave`."""

    used_memory: Count | None = None
    """Bytes in use."""

    max_memory: Count | None = None
    """Bytes that it may use; null if that is not limited, or unknown."""

    program: Literal["redis", "valkey"] | None = None
    """Which program it is."""

    version: str | None = None
    """The version of the program."""

    eviction_policy: str | None = None
    """Its `maxmemory-policy`; all but `noeviction` may delete streams."""

    append_only: bool | None = None
    """Whether it writes all changes to its disk (`appendonly`)."""

    write_failed: bool | None = None
    """Whether the latest write of its data to the disk failed."""

    clock: datetime | None = None
    """Its time, when it was asked."""

    library: Count | None = None
    """Revision of the function library that the operator loads; null if it is not loaded, or unknown."""


class ConditionItem(Answer):
    """A condition of a resource, as `kubectl describe` shows it."""

    type: str
    """What it tells."""

    status: Literal["True", "False", "Unknown"]
    """Whether that is so."""

    reason: str
    """Why, in a word of docs/reference/conditions.md."""

    message: str
    """Why, in a sentence."""

    since: datetime
    """Since when its status is this one."""


class StreamNumbers(Answer):
    """An AgentStream."""

    namespace: str
    """Its namespace."""

    name: str
    """Its name."""

    key: str
    """Its key on the server."""

    known: bool
    """Whether the numbers are known; if not, they are null."""

    length: Count | None = None
    """Messages on the stream."""

    oldest: str | None = None
    """Entry id of the oldest message; its first part is a time in ms since 1970."""

    rate: Seconds | None = None
    """Messages added per second, lately."""

    admission: Literal["Open", "Closed"] | None = None
    """Closed: the stream is full, and adding is refused."""

    unsettled: Count | None = None
    """Messages that the slowest group has not settled."""

    limit: Count | None = None
    """Number of unsettled messages from which on adding is refused; null without a limit."""

    history_seconds: Seconds | None = None
    """Age of the oldest message: how far back a replay can reach."""

    ready: bool
    """Whether the resource is in effect: its condition `Ready`."""

    reason: str
    """Reason of the condition `Ready`."""

    conditions: tuple[ConditionItem, ...] = ()
    """All conditions of the resource."""


class ConsumerCount(Answer):
    """The consumers of a group; null where they are not scaled or unknown."""

    wanted: Count | None = None
    """Replicas that are wanted."""

    running: Count | None = None
    """Replicas that are ready."""


class Delivered(Answer):
    """What became of the messages that groups were given: `added` is the sum of the others."""

    added: Count
    """All of them since the groups began; what is replayed counts anew."""

    acknowledged: Count
    """Handled."""

    skipped: Count
    """Settled without handling, as they were addressed to other agents."""

    dead: Count
    """Became dead letters."""

    discarded: Count
    """Settled otherwise."""

    lost: Count
    """Neither settled nor on the server any more."""

    waiting: Count
    """Not settled yet."""

    ratio: Seconds | None
    """Share of acknowledged and skipped ones in all but those that wait, from 0 to 1; null without one."""


class GroupNumbers(Answer):
    """A ConsumerGroup."""

    namespace: str
    """Its namespace."""

    name: str
    """Its name."""

    stream: str
    """Name of its AgentStream."""

    known: bool
    """Whether the numbers are known; if not, they are null."""

    undelivered: Count | None = None
    """Messages of the stream that no consumer has yet."""

    pending: Count | None = None
    """Messages that a consumer holds."""

    retrying: Count | None = None
    """Messages that are due for another attempt and that no consumer has yet."""

    delayed: Count | None = None
    """Messages that wait for the time of their next attempt."""

    next_due: datetime | None = None
    """When the first of these is due."""

    dead: Count | None = None
    """Dead letters."""

    backlog: Count | None = None
    """Messages that are not settled: undelivered, pending and retrying."""

    exact: bool | None = None
    """Whether `undelivered` and `backlog` are exact; otherwise they are estimates."""

    oldest_seconds: Seconds | None = None
    """Age of the oldest message that is not settled; null without one."""

    arrival_rate: Seconds | None = None
    """Messages added to its stream per second, lately."""

    service_rate: Seconds | None = None
    """Messages settled per second, lately."""

    drain_seconds: Seconds | None = None
    """Time until the backlog is gone at these rates; null if it does not shrink."""

    delivered: Delivered | None = None
    """What became of its messages; null if that is not known."""

    consumers: ConsumerCount = ConsumerCount()
    """Its consumers."""

    ready: bool
    """Whether the resource is in effect: its condition `Ready`."""

    reason: str
    """Reason of the condition `Ready`."""

    conditions: tuple[ConditionItem, ...] = ()
    """All conditions of the resource."""


class LagAnswer(Answer):
    """The numbers of all streams and groups that the caller may see."""

    at: datetime
    """When they were measured."""

    server: ServerNumbers
    """The server."""

    streams: tuple[StreamNumbers, ...]
    """The streams, by namespace and name."""

    groups: tuple[GroupNumbers, ...]
    """The groups, by namespace and name."""

    delivered: Delivered | None = None
    """What became of the messages of all these groups; null if that is not known of one of them."""


class GroupLagAnswer(GroupNumbers):
    """The numbers of one group, all of them known: for the scaler `metrics-api` of KEDA, among others."""

    at: datetime
    """When they were measured."""
