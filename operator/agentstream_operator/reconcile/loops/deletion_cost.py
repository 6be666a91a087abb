"""Keeps pod deletion costs up to date where a HorizontalPodAutoscaler scales in."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field

from agentstream_operator.broker.broker import Broker
from agentstream_operator.cluster.port import Cluster, ClusterUnavailable
from agentstream_operator.plan.scaling import may_lower
from agentstream_operator.reconcile.resources.consumers import set_deletion_costs, workload_signal
from agentstream_operator.reconcile.state.index import stream_of
from agentstream_operator.reconcile.state.loop_failures import Loop
from agentstream_operator.reconcile.state.state import State
from agentstream_operator.resources.consumergroup import ConsumerGroup
from agentstream_operator.resources.meta import ResourceKey

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class DeletionCost:
    """Sets the deletion costs of groups in mode HPA that may be scaled in, whenever their streams changed."""

    state: State
    broker: Broker
    cluster: Cluster
    _changes: int = field(default=-1, init=False)
    _autoscaled: tuple[ConsumerGroup, ...] = field(default=(), init=False)
    _digests: dict[ResourceKey, tuple[str, ...]] = field(default_factory=dict, init=False)

    async def watch(self) -> None:
        """Updates deletion costs until cancelled."""
        while True:
            await asyncio.sleep(self.state.options.loops.deletion_costs)
            # one group after the other: a burst of pod updates must not delay other writes
            for group in self._groups():
                if self.state.resources.groups.get(group.key) is group:
                    try:
                        await self._update(group)
                    except Exception as error:  # noqa: BLE001 - the other groups go on
                        self.state.failures.failed(Loop.COSTS, group.key, error)
                    else:
                        self.state.failures.fine(Loop.COSTS, group.key)
                # lets other tasks run in between
                await asyncio.sleep(0)

    def _groups(self) -> tuple[ConsumerGroup, ...]:
        """Returns the groups in mode HPA with a template."""
        resources = self.state.resources
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
        workload, scaling = self.state.memory.groups[group.key].workload, group.spec.autoscaling
        if workload is None or workload.autoscaler is None or scaling is None:
            return
        digests = self._stream_digests(group)
        signal = workload_signal(self.state, group)
        if not may_lower(workload.replicas, signal, scaling) or digests == self._digests.get(group.key):
            return
        try:
            await set_deletion_costs(self.state, self.broker, self.cluster, group)
        except ClusterUnavailable as error:
            _log.info("%s: could not set pod deletion costs yet: %s", group.key, error)
        else:
            self._digests[group.key] = digests

    def _stream_digests(self, group: ConsumerGroup) -> tuple[str, ...]:
        """Returns the digests of all streams that the group's pods consume."""
        state = self.state
        streams = (state.memory.streams[stream_of(g)] for g in state.resources.groups_of_agent(group))
        return tuple(memory.shown.digest for memory in streams if memory.shown is not None)
