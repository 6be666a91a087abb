"""What becomes of the messages of consumers that are gone: others take them up at once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator

from agentstream.errors import AgentStreamError
from agentstream.pushes import Nudge
from agentstream_operator.reconcile.context import Context
from agentstream_operator.reconcile.store import stream_of
from agentstream_operator.resources.meta import ResourceKey

_log = logging.getLogger(__name__)

_LEASES = 3
"""After so many leases of silence a consumer whose pod is not known holds nothing any more by its lease."""


_LINGER = 16
"""After a wait of so many pulses, and twice as many in all, nothing of a deleted pod is expected any more."""


class Departures:
    """Frees what consumers that are gone hold, and removes their names once they hold nothing.

    Args:
        context: who has a say in it.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._holding: set[tuple[ResourceKey, str]] = set()
        self._lingering: dict[tuple[ResourceKey, str], tuple[float, float]] = {}

    async def left(self, workload: ResourceKey, pod: str, *, for_good: bool = False) -> None:
        """A pod, or its process, of a group's workload has ended, and no other one has its name.

        Without the server nothing happens: then the leases end by themselves.

        Args:
            workload: the group.
            pod: name of the pod.
            for_good: whether no pod will have the name again. Then it is freed some more times: the processes
                of a pod that was deleted by force live on for a while, and go on taking and renewing.
        """
        if for_good:
            pulse = self._context.rhythm.pulse
            self._lingering[workload, pod] = (asyncio.get_running_loop().time() + pulse, pulse)
        await self._free(workload, pod)

    async def _free(self, workload: ResourceKey, pod: str) -> None:
        try:
            freed = 0
            for key, group in self._consumed(workload):
                freed += await self._context.broker.orphan(key, group, pod)
            owner = self._context.store.groups.get(workload)
            if freed and owner is not None:
                await self._context.broker.nudge(workload.namespace, owner.agent_name, Nudge.SWEEP)
            await self._remove(workload, pod)
        except AgentStreamError as error:
            _log.info("what %s held waits for its leases to end: %s", pod, error)

    async def watch(self) -> None:
        """Removes, again and again, the names of consumers that are gone and hold nothing any more."""
        loop, rhythm = asyncio.get_running_loop(), self._context.rhythm
        due = loop.time() + rhythm.resync / 2
        while True:
            await asyncio.sleep(rhythm.pulse)
            if self._context.backend.trouble is not None:
                continue
            try:
                await self._free_again(loop.time())
                for workload, pod in tuple(self._holding):
                    await self._remove(workload, pod)
                if loop.time() >= due:
                    due = loop.time() + rhythm.resync
                    await self._tidy()
            except AgentStreamError as error:
                _log.info("names of consumers that are gone stay for now: %s", error)

    async def _free_again(self, now: float) -> None:
        """Frees what pods that were deleted lately took or renewed since, after ever longer waits."""
        for (workload, pod), (due, wait) in tuple(self._lingering.items()):
            if due > now:
                continue
            await self._free(workload, pod)
            if wait < _LINGER * self._context.rhythm.pulse:
                self._lingering[workload, pod] = (now + 2 * wait, 2 * wait)
            else:
                del self._lingering[workload, pod]

    async def _tidy(self) -> None:
        """Looks for consumers whose pods ended unseen, as while this process was down."""
        context = self._context
        for group in tuple(context.store.groups.values()):
            pods = await context.cluster.pods(group) if group.spec.template is not None else None
            if pods is None:
                continue
            silence = _LEASES * group.spec.delivery.lease.milliseconds
            gone = set()
            for key, name in self._consumed(group.key):
                for consumer in await context.broker.consumers(key, name):
                    if consumer.idle > silence and pods.has_lost(consumer.pod):
                        gone.add(consumer.pod)
            for pod in gone:
                await self._remove(group.key, pod)

    async def _remove(self, workload: ResourceKey, pod: str) -> None:
        """Removes the consumers of a pod that is gone; those that hold entries are tried again."""
        remain = False
        for key, group in self._consumed(workload):
            await self._context.broker.remove_consumers(key, group, pod)
            remain = remain or any(c.pod == pod for c in await self._context.broker.consumers(key, group))
        if remain:
            self._holding.add((workload, pod))
        else:
            self._holding.discard((workload, pod))

    def _consumed(self, workload: ResourceKey) -> Iterator[tuple[str, str]]:
        """Stream key and name of each group that a workload may consume: all of its agent."""
        store = self._context.store
        owner = store.groups.get(workload)
        if owner is None:
            return
        for group in store.groups_of_agent(owner):
            stream = store.streams.get(stream_of(group))
            if stream is not None:
                yield stream.stream_key, group.group_name
