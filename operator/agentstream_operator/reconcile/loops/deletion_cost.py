"""Keeps up to date what deleting pods costs, where an autoscaler has fewer at a time of its own."""

from __future__ import annotations

import asyncio
import logging

from agentstream_operator.cluster.port import ClusterUnavailable
from agentstream_operator.plan.autoscaler import may_lower
from agentstream_operator.reconcile.context import Context
from agentstream_operator.reconcile.resources.consumers import work_of
from agentstream_operator.reconcile.resources.scalein import set_deletion_costs
from agentstream_operator.reconcile.state.index import stream_of
from agentstream_operator.resources.consumergroup import ConsumerGroup
from agentstream_operator.resources.meta import ResourceKey

_log = logging.getLogger(__name__)


class DeletionCost:
    """Ranks the pods of groups in mode HPA that may come to be fewer, while what they hold changes.

    Args:
        context: who is ranked.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._changes = -1
        self._autoscaled: tuple[ConsumerGroup, ...] = ()
        self._ranked: dict[ResourceKey, tuple[str, ...]] = {}

    async def watch(self) -> None:
        """Looks, again and again."""
        while True:
            await asyncio.sleep(self._context.rhythm.ranking)
            # one after the other: that many pods change at once must not hinder what else is to be written
            for group in self._groups():
                if self._context.store.groups.get(group.key) is group:
                    await self._rank(group)
                # of thousands, others get their turns in between
                await asyncio.sleep(0)

    def _groups(self) -> tuple[ConsumerGroup, ...]:
        """The groups in mode HPA whose pods are known."""
        store = self._context.store
        if self._changes != store.changes:
            self._changes = store.changes
            self._autoscaled = tuple(
                group
                for group in store.groups.values()
                if group.leaves_replicas and group.spec.template is not None
            )
            keys = {group.key for group in self._autoscaled}
            self._ranked = {key: seen for key, seen in self._ranked.items() if key in keys}
        return self._autoscaled

    async def _rank(self, group: ConsumerGroup) -> None:
        workload = self._context.memory.groups[group.key].workload
        if workload is None or workload.autoscaler is None or group.spec.autoscaling is None:
            return
        if not may_lower(workload.replicas, work_of(self._context, group), group.spec.autoscaling):
            return
        seen = self._seen(group)
        if seen == self._ranked.get(group.key):
            return
        try:
            await set_deletion_costs(self._context, group)
        except ClusterUnavailable as error:
            _log.info("%s: what its pods hold is said later: %s", group.key, error)
        else:
            self._ranked[group.key] = seen

    def _seen(self, group: ConsumerGroup) -> tuple[str, ...]:
        """Stands for all that the group's pods may hold something of."""
        streams = (
            self._context.memory.streams[stream_of(g)] for g in self._context.store.groups_of_agent(group)
        )
        return tuple(memory.shown.digest for memory in streams if memory.shown is not None)
