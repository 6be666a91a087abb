"""Measures the numbers of streams and groups: at most once a second, for all callers together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

import msgspec

from agentstream.errors import AgentStreamError
from agentstream_operator.broker.broker import Broker
from agentstream_operator.broker.observe import Look
from agentstream_operator.plan.lag import Readings, drain, follow, group_lag, stream_lag
from agentstream_operator.plan.ledger import Ledger, ledger_of, total
from agentstream_operator.plan.observed import ServerInfo, StreamSeen
from agentstream_operator.plan.signal import Rate
from agentstream_operator.queue_api.documents import (
    ConditionItem,
    ConsumerCount,
    Delivered,
    GroupNumbers,
    LagAnswer,
    ServerNumbers,
    StreamNumbers,
)
from agentstream_operator.reconcile.state.index import ResourceIndex, stream_of
from agentstream_operator.resources.agentstream import AgentStream
from agentstream_operator.resources.consumergroup import ConsumerGroup
from agentstream_operator.resources.meta import ResourceKey
from agentstream_operator.resources.parse import AnyResource
from agentstream_operator.resources.status import (
    AnyStatus,
    ConditionReason,
    ConditionType,
    ConsumerGroupStatus,
    find_condition,
)

FRESH: Final = 1.0
"""Seconds for which a measurement is reused."""

_DECIMALS = 3


@dataclass(frozen=True, slots=True)
class Measured:
    """A measurement: of streams by key, and of the server; what is not there did not answer."""

    at: datetime
    streams: dict[ResourceKey, StreamSeen] = field(default_factory=dict)
    server: ServerInfo | None = None


@dataclass(slots=True, eq=False)
class LagReader:
    """Measures streams and groups.

    `status` returns the latest status of a resource, which may be newer than the one that it carries.
    """

    index: ResourceIndex
    broker: Broker
    status: Callable[[AnyResource], AnyStatus | None] = lambda resource: resource.status
    _latest: asyncio.Task[Measured] | None = field(init=False, default=None)
    _requested: float = field(init=False, default=float("-inf"))
    _seen: dict[ResourceKey, StreamSeen] = field(init=False, default_factory=dict)
    _readings: dict[ResourceKey, Readings] = field(init=False, default_factory=dict)

    async def lag(self, streams: Sequence[AgentStream], groups: Sequence[ConsumerGroup]) -> LagAnswer:
        """Returns the numbers of these, at most a second old; those that are unknown are null."""
        measured = await self._measured()
        return LagAnswer(
            at=measured.at,
            server=_server(measured.server),
            streams=tuple(self._stream(stream, measured) for stream in streams),
            groups=tuple(self._group(group, measured) for group in groups),
            delivered=_delivered(total(self._ledger(group, measured) for group in groups)),
        )

    async def close(self) -> None:
        """Cancels the measurement that runs."""
        if self._latest is not None:
            self._latest.cancel()
            await asyncio.gather(self._latest, return_exceptions=True)

    async def _measured(self) -> Measured:
        clock = asyncio.get_running_loop().time
        if self._latest is None or (self._latest.done() and clock() - self._requested >= FRESH):
            self._requested = clock()
            self._latest = asyncio.create_task(self._measure(), name="measure")
        # whoever goes leaves the measurement to the others
        return await asyncio.shield(self._latest)

    async def _measure(self) -> Measured:
        streams = [stream for stream in self.index.streams.values() if self.index.winner(stream) is stream]
        for gone in self._seen.keys() - {stream.key for stream in streams}:
            self._seen.pop(gone)
            self._readings.pop(gone, None)
        try:
            server = await self.broker.info()
            found = await self.broker.measure([self._look(stream) for stream in streams])
        except AgentStreamError:
            return Measured(datetime.now(UTC))
        now = asyncio.get_running_loop().time()
        seen: dict[ResourceKey, StreamSeen] = {}
        for stream, each in zip(streams, found, strict=True):
            if isinstance(each, AgentStreamError):
                self._seen.pop(stream.key, None)
                continue
            seen[stream.key] = self._seen[stream.key] = each
            before = self._readings.get(stream.key, Readings())
            self._readings[stream.key] = follow(before, each, now)
        return Measured(datetime.now(UTC), seen, server)

    def _look(self, stream: AgentStream) -> Look:
        groups = tuple(declared.name for declared in self.index.declared(stream.key))
        return Look(stream.stream_key, groups, self._seen.get(stream.key))

    def _stream(self, stream: AgentStream, measured: Measured) -> StreamNumbers:
        seen = measured.streams.get(stream.key)
        names = [declared.name for declared in self.index.declared(stream.key)]
        limit = stream.spec.retention.max_length
        lag = stream_lag(seen, names, limit) if seen is not None else None
        ready, reason = self._ready(stream)
        numbers = {} if lag is None else {
            "length": lag.length,
            "oldest": lag.oldest,
            "rate": _rate(self._readings[stream.key].added),
            "admission": "Closed" if lag.refuses else "Open",
            "unsettled": lag.unsettled,
            "limit": limit if seen is not None and seen.gate is not None else None,
            "history_seconds": lag.history,
        }  # fmt: skip
        return StreamNumbers(
            namespace=stream.metadata.namespace,
            name=stream.metadata.name,
            key=stream.stream_key,
            known=lag is not None,
            ready=ready,
            reason=reason,
            conditions=self._conditions(stream),
            **numbers,
        )

    def _group(self, group: ConsumerGroup, measured: Measured) -> GroupNumbers:
        key = stream_of(group)
        seen = measured.streams.get(key)
        claimed = self.index.group_winner(group) is group
        lag = group_lag(seen, group.group_name) if seen is not None and claimed else None
        ready, reason = self._ready(group)
        numbers = {}
        if lag is not None:
            readings = self._readings[key]
            arrival, service = _rate(readings.added), _rate(readings.settled.get(group.group_name))
            numbers = {
                "undelivered": lag.undelivered,
                "pending": lag.pending,
                "retrying": lag.retrying,
                "delayed": lag.delayed,
                "next_due": lag.next_due,
                "dead": lag.dead,
                "backlog": lag.backlog,
                "exact": lag.exact,
                "oldest_seconds": lag.oldest,
                "arrival_rate": arrival,
                "service_rate": service,
                "drain_seconds": drain(lag.backlog, arrival, service),
            }
        return GroupNumbers(
            namespace=group.metadata.namespace,
            name=group.metadata.name,
            stream=group.spec.stream_ref.name,
            known=lag is not None,
            delivered=_delivered(self._ledger(group, measured)),
            consumers=self._consumers(group),
            ready=ready,
            reason=reason,
            conditions=self._conditions(group),
            **numbers,
        )

    def _ledger(self, group: ConsumerGroup, measured: Measured) -> Ledger | None:
        seen = measured.streams.get(stream_of(group))
        if seen is None or self.index.group_winner(group) is not group:
            return None
        return ledger_of(seen, group.group_name)

    def _consumers(self, group: ConsumerGroup) -> ConsumerCount:
        status = self.status(group)
        if not isinstance(status, ConsumerGroupStatus) or not group.has_workload:
            return ConsumerCount()
        return ConsumerCount(wanted=status.desired_replicas, running=status.replicas)

    def _conditions(self, resource: AgentStream | ConsumerGroup) -> tuple[ConditionItem, ...]:
        status = self.status(resource)
        return tuple(
            ConditionItem(
                type=each.type,
                status=each.status,
                reason=each.reason,
                message=each.message,
                since=each.last_transition_time,
            )
            for each in (status.conditions if status is not None else ())
        )

    def _ready(self, resource: AgentStream | ConsumerGroup) -> tuple[bool, str]:
        status = self.status(resource)
        found = find_condition(status.conditions, ConditionType.READY) if status is not None else None
        if found is None:
            return False, ConditionReason.RECONCILING
        return found.status == "True", found.reason


def _server(info: ServerInfo | None) -> ServerNumbers:
    if info is None:
        return ServerNumbers(reachable=False)
    fields = msgspec.structs.asdict(info)
    return ServerNumbers(reachable=True, **fields | {"clock": datetime.fromtimestamp(info.clock / 1000, UTC)})


def _delivered(ledger: Ledger | None) -> Delivered | None:
    if ledger is None:
        return None
    return Delivered(added=ledger.added, ratio=ledger.ratio, **msgspec.structs.asdict(ledger))


def _rate(rate: Rate | None) -> float | None:
    value = rate.value if rate is not None else None
    return round(value, _DECIMALS) if value is not None else None
