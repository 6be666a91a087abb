"""Keeps pod deletion costs up to date where a HorizontalPodAutoscaler scales in."""

from __future__ import annotations

import asyncio
import logging

from agentstream_operator.broker.broker import Broker
from agentstream_operator.cluster.port import Cluster, ClusterUnavailable
from agentstream_operator.plan.scaling import may_lower
from agentstream_operator.reconcile.resources.consumers import set_deletion_costs, workload_signal
from agentstream_operator.reconcile.state.index import stream_of
from agentstream_operator.reconcile.state.state import State
from agentstream_operator.resources.consumergroup import ConsumerGroup
from agentstream_operator.resources.meta import ResourceKey

_log = logging.getLogger(__name__)


class DeletionCost:
    """Sets the deletion costs of groups in mode HPA that may be scaled in, whenever their streams changed.

    Args:
        state: the groups and their workloads.
        broker: knows how many messages each consumer holds.
        cluster: sets the costs.
    """

    def __init__(self, state: State, broker: Broker, cluster: Cluster) -> None:
        self._state = state
        self._broker = broker
        self._cluster = cluster
        self._changes = -1
        self._autoscaled: tuple[ConsumerGroup, ...] = ()
        self._digests: dict[ResourceKey, tuple[str, ...]] = {}

    async def watch(self) -> None:
        """Updates deletion costs until cancelled."""
        while True:
            await asyncio.sleep(self._state.options.loops.deletion_costs)
            # one group after the other: a burst of pod updates must not delay other writes
            for group in self._groups():
                if self._state.resources.groups.get(group.key) is group:
                    await self._update(group)
                # lets other tasks run in between
                await asyncio.sleep(0)

    def _groups(self) -> tuple[ConsumerGroup, ...]:
        """Returns the groups in mode HPA with a template."""
        resources = self._state.resources
        if self._changes != resources.changes:
            self._changes = resources.changes
            self._autoscaled = tuple(
                group
                for group in resources.groups.values()
                if group.leaves_replicas and group.spec.template is not None
            )
            keys = {group.key for group in self._autoscaled}
            self._digests = {key: digests for key, digests in self._digests.items() if key in keys}
        return self._autoscaled

    async def _update(self, group: ConsumerGroup) -> None:
        workload, scaling = self._state.memory.groups[group.key].workload, group.spec.autoscaling
        if workload is None or workload.autoscaler is None or scaling is None:
            return
        digests = self._stream_digests(group)
        signal = workload_signal(self._state, group)
        if not may_lower(workload.replicas, signal, scaling) or digests == self._digests.get(group.key):
            return
        try:
            await set_deletion_costs(self._state, self._broker, self._cluster, group)
        except ClusterUnavailable as error:
            _log.info("%s: could not set pod deletion costs yet: %s", group.key, error)
        else:
            self._digests[group.key] = digests

    def _stream_digests(self, group: ConsumerGroup) -> tuple[str, ...]:
        """Returns the digests of all streams that the group's pods consume."""
        state = self._state
        streams = (state.memory.streams[stream_of(g)] for g in state.resources.groups_of_agent(group))
        return tuple(memory.shown.digest for memory in streams if memory.shown is not None)
