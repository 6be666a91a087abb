"""Releases the messages of pods that are gone, so that other consumers recover them at once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field

from agentstream.errors import AgentStreamError
from agentstream.protocol.keys import Nudge
from agentstream_operator.broker.broker import Broker
from agentstream_operator.cluster.port import Cluster
from agentstream_operator.plan.observed import Gone
from agentstream_operator.reconcile.state.index import stream_of
from agentstream_operator.reconcile.state.loop_failures import Loop
from agentstream_operator.reconcile.state.state import State
from agentstream_operator.resources.agentstream import AgentStream
from agentstream_operator.resources.consumergroup import ConsumerGroup
from agentstream_operator.resources.meta import ResourceKey

_log = logging.getLogger(__name__)

_LEASES = 3
"""Leases of silence after which a consumer without a known pod counts as gone."""


_LONGEST_INTERVAL = 16
"""Longest interval, in rounds, between two releases for a deleted pod; then they end."""

_TOGETHER, _NO_LONGER = 0.25, 1.0
"""Seconds between deletions of pods that are released together, and the longest delay of the first."""


@dataclass
class _Deleted:
    """Pods of a workload deleted in short succession, and whether another one was since."""

    pods: set[Gone]
    another: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(slots=True)
class PodCleanup:
    """Releases the messages of ended processes, and removes their consumers once these hold none."""

    state: State
    broker: Broker
    cluster: Cluster
    _holding: set[tuple[ResourceKey, Gone]] = field(default_factory=set, init=False)
    _to_release_again: dict[tuple[ResourceKey, Gone], tuple[float, float]] = field(
        default_factory=dict, init=False
    )
    _deleted: dict[ResourceKey, _Deleted] = field(default_factory=dict, init=False)

    async def pod_gone(self, workload: ResourceKey, gone: Gone, *, for_good: bool = False) -> None:
        """Releases the messages of processes that ended, together with those of pods deleted just before.

        During an outage nothing happens: the leases expire. `for_good` says that the pod was deleted: it is
        then released repeatedly, since the processes of a force-deleted pod go on for a while.
        """
        if not for_good:
            await self._release(workload, {gone}, for_good=False)
            return
        interval, now = self.state.options.loops.measure, asyncio.get_running_loop().time()
        self._to_release_again[workload, gone] = (now + interval, interval)
        deleted = self._deleted.get(workload)
        if deleted is None:
            deleted = self._deleted[workload] = _Deleted({gone})
            await self._release_together(workload, deleted, now + _NO_LONGER)
        else:
            deleted.pods.add(gone)
            deleted.another.set()

    async def _release_together(self, workload: ResourceKey, deleted: _Deleted, deadline: float) -> None:
        """Releases once no further pod is deleted: that pod would claim the messages, and end with them."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(TimeoutError):
            while True:
                async with asyncio.timeout(min(_TOGETHER, deadline - loop.time())):
                    await deleted.another.wait()
                deleted.another.clear()
        del self._deleted[workload]
        await self._release(workload, deleted.pods, for_good=True)

    async def _release(self, workload: ResourceKey, pods: set[Gone], *, for_good: bool) -> None:
        try:
            consumed = tuple(self._consumed(workload))
            release = self.broker.release_pod
            releases = (release(*group, gone, for_good=for_good) for gone in pods for group in consumed)
            released = await asyncio.gather(*releases)
            owner = self.state.resources.groups.get(workload)
            if any(released) and owner is not None:
                await self.broker.nudge(workload.namespace, owner.agent_name, Nudge.SWEEP)
            for gone in pods:
                await self._remove(workload, gone)
        except Exception as error:  # noqa: BLE001 - the pods of other groups are not concerned
            names = ", ".join(sorted(gone.pod for gone in pods))
            _log.info(
                "could not release the messages of %s; they are redelivered when their leases expire: %s",
                names,
                error,
                exc_info=None if isinstance(error, AgentStreamError) else error,
            )

    async def watch(self) -> None:
        """Removes consumers of ended processes without messages until cancelled."""
        loop, loops = asyncio.get_running_loop(), self.state.options.loops
        due = loop.time() + loops.resync / 2
        while True:
            await asyncio.sleep(loops.measure)
            if self.state.backend.outage is not None:
                continue
            await self._release_again(loop.time())
            # the others were just looked at
            for workload, gone in self._holding - self._to_release_again.keys():
                await self._alone(workload, self._remove(workload, gone))
            if loop.time() >= due:
                due = loop.time() + loops.resync
                await self._remove_unnoticed()

    async def _alone(self, workload: ResourceKey, step: Coroutine[None, None, None]) -> None:
        """Runs a step for a workload; its failure concerns no other."""
        try:
            await step
        except Exception as error:  # noqa: BLE001 - the others go on
            self.state.failures.failed(Loop.PODS, workload, error)
        else:
            self.state.failures.fine(Loop.PODS, workload)

    async def _release_again(self, now: float) -> None:
        """Releases what recently deleted pods claimed or renewed since.

        Pods that still hold messages are checked in each round, others after ever longer intervals.
        """
        for (workload, gone), (due, wait) in tuple(self._to_release_again.items()):
            if due <= now or (workload, gone) in self._holding:
                await self._release(workload, {gone}, for_good=True)
            if due > now:
                continue
            if wait < _LONGEST_INTERVAL * self.state.options.loops.measure:
                self._to_release_again[workload, gone] = (now + 2 * wait, 2 * wait)
            else:
                del self._to_release_again[workload, gone]

    async def _remove_unnoticed(self) -> None:
        """Finds consumers whose pods ended unnoticed, as while this process was down."""
        for group in tuple(self.state.resources.groups.values()):
            await self._alone(group.key, self._find_unnoticed(group))

    async def _find_unnoticed(self, group: ConsumerGroup) -> None:
        pods = await self.cluster.pods(group) if group.spec.template is not None else None
        if pods is None:
            return
        silence = _LEASES * group.spec.delivery.lease.milliseconds
        gone = set()
        for key, name in self._consumed(group.key, crowds=False):
            for consumer in await self.broker.consumers(key, name):
                if consumer.idle > silence and pods.has_lost(consumer.pod):
                    gone.add(consumer.pod)
        for pod in gone:
            await self._remove(group.key, Gone(pod))

    async def _remove(self, workload: ResourceKey, gone: Gone) -> None:
        """Removes the consumers of ended processes; those with pending entries are retried."""
        remain = False
        for key, group in self._consumed(workload, crowds=False):
            await self.broker.remove_consumers(key, group, gone)
            consumers = await self.broker.consumers(key, group)
            remain = remain or any(gone.covers(consumer.name) for consumer in consumers)
        (self._holding.add if remain else self._holding.discard)((workload, gone))

    def _consumed(self, workload: ResourceKey, *, crowds: bool = True) -> Iterator[tuple[str, str]]:
        """Yields stream key and name of each group of a workload's agent.

        Without `crowds`, not those with so many consumers that listing them is left to the janitor.
        """
        resources = self.state.resources
        owner = resources.groups.get(workload)
        if owner is None:
            return
        for group in resources.groups_of_agent(owner):
            stream = resources.streams.get(stream_of(group))
            if stream is not None and (crowds or not self._crowded(stream, group.group_name)):
                yield stream.stream_key, group.group_name

    def _crowded(self, stream: AgentStream, group: str) -> bool:
        shown = self.state.memory.streams[stream.key].shown
        seen = shown.groups.get(group) if shown is not None else None
        return seen is not None and seen.crowded
