"""Measures every stream and the workload of every group, and queues those that changed."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Sequence

from agentstream.errors import AgentStreamError
from agentstream_operator.cluster.port import ClusterRefused, ClusterUnavailable
from agentstream_operator.plan.conditions import ConditionUpdate
from agentstream_operator.plan.groups import consuming
from agentstream_operator.plan.losses import ids_in_the_future, messages_lost
from agentstream_operator.plan.observed import StreamSeen
from agentstream_operator.reconcile.context import Context
from agentstream_operator.reconcile.loops.server import ServerWatch
from agentstream_operator.reconcile.observer import concerns_plans, is_same
from agentstream_operator.reconcile.queue import Priority
from agentstream_operator.reconcile.resources.consumers import (
    controls_replicas,
    decide_replicas,
    is_still_idle,
)
from agentstream_operator.reconcile.resources.groups import numbers_of_group
from agentstream_operator.reconcile.resources.streams import numbers_of_stream
from agentstream_operator.reconcile.state.index import stream_of
from agentstream_operator.reconcile.state.loop_failures import Loop
from agentstream_operator.reconcile.state.memory import GroupMemory, StatusMemory
from agentstream_operator.resources.agentstream import AgentStream
from agentstream_operator.resources.consumergroup import ConsumerGroup
from agentstream_operator.resources.meta import ResourceKey
from agentstream_operator.resources.status import ConditionType

_BATCH = 250
"""Streams or groups processed without a break: some ms, during which nothing else runs."""


class Monitor:
    """Measures streams and workloads."""

    def __init__(self, context: Context, server: ServerWatch) -> None:
        self._context = context
        self._state = context.state
        self._queue = context.queue
        self._server = server
        self._scaling: tuple[int, frozenset[ResourceKey]] = (-1, frozenset())

    async def watch(self) -> None:
        """Measures every stream until cancelled; less often those whose backlog scales no consumers."""
        loops, streams = self._state.options.loops, self._state.resources.streams
        parts = max(1, round(loops.measure_unscaled / loops.measure))
        for part in itertools.cycle(range(parts)):
            began = asyncio.get_running_loop().time()
            scaling = self._scaling_streams()
            due = [s for n, s in enumerate(streams.values()) if n % parts == part or s.key in scaling]
            await self._server.guard(Loop.MEASURE, self._measure(due))
            await asyncio.sleep(max(0.0, began + loops.measure - asyncio.get_running_loop().time()))

    async def measure_all(self) -> None:
        """Measures every stream once."""
        with contextlib.suppress(AgentStreamError):
            await self._measure(tuple(self._state.resources.streams.values()))

    async def _measure(self, streams: Sequence[AgentStream]) -> None:
        """Measures streams and all workloads in batches, so that other tasks run in between."""
        found: list[StreamSeen | AgentStreamError] = []
        for first in range(0, len(streams), _BATCH):
            found += await self._measure_streams(streams[first : first + _BATCH])
        groups = tuple(self._state.resources.groups.values())
        await self._context.observer.look_at_leases(groups)
        for first in range(0, len(groups), _BATCH):
            for group in groups[first : first + _BATCH]:
                # reconciling the group reports the error; the other groups must not wait for that
                try:
                    await self._check_group(group)
                except (ClusterRefused, ClusterUnavailable):
                    pass
                except Exception as error:  # noqa: BLE001 - the other groups go on
                    self._server.note_failure(Loop.MEASURE, group.key, error)
                else:
                    self._state.failures.fine(Loop.MEASURE, group.key)
            await asyncio.sleep(0)
        self._server.raise_if_all(found)

    async def _measure_streams(self, streams: Sequence[AgentStream]) -> list[StreamSeen | AgentStreamError]:
        before = [self._state.memory.streams[stream.key].seen for stream in streams]
        found = await self._context.observer.observe_all(streams)
        for stream, old, new in zip(streams, before, found, strict=True):
            if not isinstance(new, AgentStreamError):
                self._state.failures.fine(Loop.MEASURE, stream.key)
            elif self._server.note_failure(Loop.MEASURE, stream.key, new):
                # reconciling them reports the error
                self._queue.add_all(
                    (stream.key, *self._state.resources.readers_of(stream.key)), Priority.EVENT
                )
            if isinstance(new, AgentStreamError):
                continue
            if old is None or (not is_same(old, new) and concerns_plans(old, new)):
                readers = self._state.resources.readers_of(stream.key)
                self._queue.add_all((stream.key, *readers), Priority.RESYNC)
                if old is not None and new.added < old.added:
                    # what removed a stream may have removed users and routes, too
                    self._state.access.due.set()
            elif not is_same(old, new):
                self._check_numbers(stream, new)
        return found

    def _scaling_streams(self) -> frozenset[ResourceKey]:
        """Returns the streams whose backlog scales consumers."""
        resources = self._state.resources
        changes, found = self._scaling
        if changes != resources.changes:
            scaled = (group for group in resources.groups.values() if group.spec.autoscaling is not None)
            found = frozenset(stream_of(o) for group in scaled for o in resources.groups_of_agent(group))
            self._scaling = resources.changes, found
        return found

    async def _check_group(self, group: ConsumerGroup) -> None:
        """Queues a group whose work, or workload, changed, or that has to be scaled."""
        memory = self._state.memory.groups[group.key]
        if not self._tells_work(group, memory):
            self._queue.add(group.key, Priority.RESYNC)
        if group.has_workload:
            decision = memory.decision if is_still_idle(self._state, group) else None
            decision = decision or decide_replicas(self._state, group)
            workload = await self._context.cluster.workload(group)
            controlled = workload is not None and controls_replicas(self._state, group)
            moved = controlled and workload is not None and workload.replicas != decision.replicas
            if workload != memory.workload or moved:
                from_zero = moved and workload is not None and workload.replicas == 0
                self._queue.add(group.key, Priority.WAKE if from_zero else Priority.RESYNC)

    def _tells_work(self, group: ConsumerGroup, memory: GroupMemory) -> bool:
        """Returns whether the status, if there is one, says what is known of the work."""
        said = next(
            (each for each in memory.reported.conditions if each.kind is ConditionType.CONSUMING), None
        )
        stream = self._state.memory.streams.get(stream_of(group))
        seen = stream.seen.groups.get(group.group_name) if stream is not None and stream.seen else None
        if said is None or seen is None:
            return True
        crashing = memory.workload.crashing if memory.workload is not None else None
        return said[:3] == consuming(group, seen, memory.work, crashing)[:3]

    def _check_numbers(self, stream: AgentStream, seen: StreamSeen) -> None:
        """Queues the resources whose status is due to show new numbers."""
        context, state = self._context, self._state
        memory = state.memory.streams[stream.key]
        if memory.added is not None:
            memory.added = seen.added
        if not _is_reported(memory.reported, ids_in_the_future(seen)):
            self._queue.add(stream.key, Priority.RESYNC)
        if context.status.is_due(memory.reported, numbers_of_stream(state, stream, seen)):
            self._queue.add(stream.key, Priority.RESYNC)
        for key in state.resources.readers_of(stream.key):
            reader = state.memory.groups[key]
            group = state.resources.groups[key]
            numbers = numbers_of_group(group, reader, seen)
            found = seen.groups.get(group.group_name)
            if found is not None and not _is_reported(
                reader.reported, messages_lost(seen, found, reader.counters)
            ):
                self._queue.add(key, Priority.RESYNC)
            if context.status.is_due(reader.reported, numbers):
                self._queue.add(key, Priority.RESYNC)


def _is_reported(reported: StatusMemory, update: ConditionUpdate) -> bool:
    """Returns whether a status says what is known; the numbers in its message may change."""
    return any(update[:3] == other[:3] for other in reported.conditions)
