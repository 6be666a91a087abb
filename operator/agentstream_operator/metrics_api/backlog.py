"""Measures the backlog of groups: at most once a second for each stream, and in one batch for all."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from agentstream.errors import AgentStreamError
from agentstream_operator.broker.broker import Broker
from agentstream_operator.broker.observe import Look
from agentstream_operator.plan.groups import may_change
from agentstream_operator.plan.observed import StreamSeen
from agentstream_operator.plan.signal import Signal, combine, read_signal
from agentstream_operator.reconcile.state.index import ResourceIndex, stream_of
from agentstream_operator.resources.agentstream import AgentStream
from agentstream_operator.resources.consumergroup import ConsumerGroup
from agentstream_operator.resources.meta import ResourceKey

FRESH = 1.0
"""Seconds for which a sample is reused."""

Observed = StreamSeen | AgentStreamError


class BacklogUnknownError(Exception):
    """The backlog of a group is unknown; the message says why."""


@dataclass(frozen=True, slots=True)
class Backlog:
    """Number of messages undelivered, pending or due for a retry, at the time of the measurement."""

    messages: int
    at: datetime


@dataclass(slots=True)
class Sample:
    """A measurement of a stream and of these groups, finished or running.

    `requested` is in seconds on the loop's clock, `at` the time of the reply.
    """

    groups: tuple[str, ...]
    requested: float
    observed: asyncio.Future[Observed]
    at: datetime | None = None


@dataclass(slots=True, eq=False)
class Backlogs:
    """Measures the backlog of groups."""

    store: ResourceIndex
    broker: Broker
    _samples: dict[ResourceKey, Sample] = field(init=False, default_factory=dict)
    _known: dict[ResourceKey, StreamSeen] = field(init=False, default_factory=dict)
    _store_version: int = field(init=False, default=0)
    _batch: list[tuple[AgentStream, Sample]] = field(init=False, default_factory=list)
    _tasks: set[asyncio.Task[None]] = field(init=False, default_factory=set)

    async def of(self, group: ConsumerGroup) -> Backlog:
        """Measures the backlog for a group's consumers, who also serve groups of their agent without any.

        Raises:
            BacklogUnknownError: the group has no stream, or the server did not answer.
        """
        signals: list[Signal] = []
        oldest = datetime.now(UTC)
        for served in self.store.served_by(group):
            stream = self._stream(served)
            if stream is None:
                if served is group:
                    raise BacklogUnknownError(
                        f"{group.key} has no stream, or another resource claimed its place"
                    )
                continue
            sample = self._sample(stream)
            observed = await asyncio.shield(sample.observed)
            if isinstance(observed, AgentStreamError):
                raise BacklogUnknownError(f"Redis or Valkey does not answer: {observed}") from observed
            signal = read_signal(observed, served.group_name, None)
            if not signal.known and served is not group and not may_change(served, stream):
                # its consumer group does not exist and will not be created: there is no work
                continue
            signals.append(signal)
            oldest = min(oldest, sample.at or oldest)
        total = combine(signals)
        if not total.known:
            raise BacklogUnknownError(f"the consumer group of {group.key} does not exist on its stream yet")
        return Backlog(total.backlog, oldest)

    async def close(self) -> None:
        """Cancels the running measurements."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _stream(self, group: ConsumerGroup) -> AgentStream | None:
        """Returns the stream of a group, if no older resource claims the key or the group's name."""
        stream = self.store.streams.get(stream_of(group))
        claimed = (
            stream is not None
            and self.store.winner(stream) is stream
            and self.store.group_winner(group) is group
        )
        return stream if claimed else None

    def _sample(self, stream: AgentStream) -> Sample:
        loop = asyncio.get_running_loop()
        groups = tuple(declared.name for declared in self.store.declared(stream.key))
        known = self._samples.get(stream.key)
        fresh = known is not None and (not known.observed.done() or loop.time() - known.requested < FRESH)
        if known is not None and fresh and known.groups == groups:
            return known
        sample = self._samples[stream.key] = Sample(groups, loop.time(), loop.create_future())
        if not self._batch:
            # streams requested in the same turn of the loop share one batch
            loop.call_soon(self._flush)
        self._batch.append((stream, sample))
        return sample

    def _flush(self) -> None:
        batch, self._batch = self._batch, []
        self._forget()
        task = asyncio.create_task(self._measure(batch), name="measure")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _measure(self, batch: Sequence[tuple[AgentStream, Sample]]) -> None:
        looks = [Look(s.stream_key, g.groups, self._known.get(s.key)) for s, g in batch]
        found: Sequence[Observed]
        try:
            found = await self.broker.measure(looks)
        except AgentStreamError as error:
            found = [error] * len(batch)
        except asyncio.CancelledError:
            for _, sample in batch:
                sample.observed.cancel()
            raise
        now = datetime.now(UTC)
        for (stream, sample), observed in zip(batch, found, strict=True):
            sample.at = now
            sample.observed.set_result(observed)
            if isinstance(observed, AgentStreamError):
                self._known.pop(stream.key, None)
            else:
                self._known[stream.key] = observed

    def _forget(self) -> None:
        """Forgets deleted streams."""
        if self._store_version == self.store.changes:
            return
        self._store_version = self.store.changes
        for key in self._samples.keys() - self.store.streams.keys():
            self._samples.pop(key)
            self._known.pop(key, None)
