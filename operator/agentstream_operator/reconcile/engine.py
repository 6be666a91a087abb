"""Reconciling: resources are put in here, and they come true on the server and in the cluster."""

from __future__ import annotations

import asyncio
import random as randomness
import time
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from enum import StrEnum

from agentstream.errors import AccessDenied, AgentStreamError, ConnectionLost
from agentstream_operator.broker.broker import Broker
from agentstream_operator.cluster.port import Cluster, ClusterRefused, ClusterUnavailable
from agentstream_operator.plan.agents import AgentName
from agentstream_operator.plan.findings import REACHABLE, ConditionUpdate, with_ready
from agentstream_operator.plan.observed import Gone
from agentstream_operator.reconcile.context import Backend, Context, Rhythm
from agentstream_operator.reconcile.loops.deletion_cost import DeletionCost
from agentstream_operator.reconcile.loops.monitor import Monitor
from agentstream_operator.reconcile.loops.pod_cleanup import PodCleanup
from agentstream_operator.reconcile.loops.wakeup import Wakeup
from agentstream_operator.reconcile.queue import Priority, TryAgain, WorkQueue
from agentstream_operator.reconcile.report.health import ConditionCount, OperatorHealth, conditions, health
from agentstream_operator.reconcile.report.view import View, view
from agentstream_operator.reconcile.report.work import GroupWork, work
from agentstream_operator.reconcile.resources.agents import reconcile_agent
from agentstream_operator.reconcile.resources.groups import reconcile_group
from agentstream_operator.reconcile.resources.streams import reconcile_stream
from agentstream_operator.reconcile.state.index import AGENT, Known, Store, agent_key
from agentstream_operator.reconcile.state.live_access import LiveAccess
from agentstream_operator.reconcile.status import StatusWriter
from agentstream_operator.resources.agentstream import AgentStream
from agentstream_operator.resources.meta import ResourceKey
from agentstream_operator.resources.status import ConditionReason, ConditionType


class Outcome(StrEnum):
    """How a look at a key went."""

    SUCCESS = "success"
    RETRY = "retry"
    ERROR = "error"


def _unnoticed(kind: str, outcome: Outcome, seconds: float) -> None:
    """Tells nobody of a look at a key."""
    del kind, outcome, seconds


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Engine:
    """Keeps what is on the server and in the cluster as the resources say.

    Args:
        broker: the server.
        cluster: where resources, workloads and Secrets live.
        installation: what the installation's users and routes are named after.
        namespaces: those that are watched; None for all.
        allowed_keys: shell patterns of stream keys that any namespace may claim.
        now: the present time, with a time zone.
        random: a number in [0, 1), for spreading what would otherwise come at once.
        rhythm: how often things are done.
        trouble: why the server does not answer, if it does not from the start.
        worked: called after each look at a key with its kind, how it went and how many seconds that took.
    """

    def __init__(
        self,
        broker: Broker,
        cluster: Cluster,
        *,
        installation: str = "agentstream",
        namespaces: Iterable[str] | None = None,
        allowed_keys: Iterable[str] = (),
        now: Callable[[], datetime] = _utc_now,
        random: Callable[[], float] = randomness.random,
        rhythm: Rhythm | None = None,
        trouble: str | None = None,
        worked: Callable[[str, Outcome, float], None] = _unnoticed,
    ) -> None:
        rhythm = rhythm or Rhythm()
        self._random = random
        self._worked = worked
        queue: WorkQueue[ResourceKey] = WorkQueue(jitter=random)
        self._context = Context(
            broker=broker,
            cluster=cluster,
            installation=installation,
            namespaces=frozenset(namespaces) if namespaces is not None else None,
            now=now,
            rhythm=rhythm,
            store=Store(tuple(allowed_keys)),
            queue=queue,
            status=StatusWriter(
                cluster,
                now,
                rarely=rhythm.numbers,
                patience=rhythm.patience,
                busy=lambda: queue.busy,
            ),
            access=LiveAccess(broker, installation),
            backend=Backend(trouble=trouble),
        )
        self._pulse = Monitor(self._context)
        self._departures = PodCleanup(self._context)
        self._wakeup = Wakeup(self._context, self._pulse.doubt)
        self._ranking = DeletionCost(self._context)

    def put(self, resource: Known) -> None:
        """Takes up a new resource, or a change of one."""
        context, key = self._context, resource.key
        known = context.store.get(key)
        if known is not None and known.metadata.uid != resource.metadata.uid:
            self.remove(key)
            known = None
        if known is not None and _is_same(known, resource):
            context.store.readable(key)
            return
        affected = context.store.put(resource)
        if known is None:
            if isinstance(resource, AgentStream):
                context.memory.recall_stream(key, resource.status)
            else:
                context.memory.recall_group(key, resource.status)
        else:
            context.reported(resource).finalizer = None
        # after a restart, what was acted on before waits for what was not
        restarted = known is None and _was_acted_on(resource)
        self._let_look(affected, Priority.RESYNC if restarted else Priority.EVENT)
        context.queue.add(key, Priority.RESYNC if restarted else Priority.CHANGE)

    def remove(self, key: ResourceKey) -> None:
        """Lets go of a resource that is gone."""
        context = self._context
        affected = context.store.remove(key)
        context.memory.forget(key)
        context.queue.forget(key)
        self._let_look(affected, Priority.EVENT)
        context.queue.add(key, Priority.CHANGE)

    def unreadable(self, key: ResourceKey) -> None:
        """A resource exists that cannot be read: what it was before stays, and nothing is removed for it."""
        self._context.store.unreadable(key)

    def listed(self) -> None:
        """Everything has been put in once: from now on rights may shrink, and what nobody names may go."""
        self._context.complete = True
        self._context.touch({*self._context.store.agents, *self._context.memory.agents}, Priority.RESYNC)
        self._pulse.relist()

    async def run(self) -> None:
        """Reconciles until cancelled."""
        pulse, queue = self._pulse, self._context.queue
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(queue.run(self._work), name="work")
                tasks.create_task(pulse.watch_server(), name="watch the server")
                tasks.create_task(pulse.watch_access(), name="watch users and routes")
                tasks.create_task(pulse.measure(), name="measure")
                tasks.create_task(self._wakeup.watch(), name="wake up")
                tasks.create_task(pulse.clean(), name="clean")
                tasks.create_task(self._departures.watch(), name="watch departures")
                tasks.create_task(self._ranking.watch(), name="rank pods")
                tasks.create_task(self._resync(), name="resync")
        finally:
            await self._context.close()

    async def idle(self) -> None:
        """Returns when nothing is waiting to be worked on; what is delayed does not count."""
        context = self._context
        await context.queue.idle()
        while context.backend.trouble is None and not context.access.listed.is_set():
            # once they are listed, agents are queued
            await context.access.listed.wait()
            await context.queue.idle()

    async def departed(self, workload: ResourceKey, gone: Gone, *, for_good: bool = False) -> None:
        """Processes of a group's workload have ended: others may have their messages at once.

        Args:
            workload: the group.
            gone: the processes.
            for_good: whether no pod will have the name of theirs again.
        """
        await self._departures.left(workload, gone, for_good=for_good)

    def look_at_group(self, key: ResourceKey) -> None:
        """Something about the consumers of a group changed."""
        if key in self._context.store.groups:
            self._context.queue.add(key, Priority.EVENT)

    def look_at_stream(self, key: ResourceKey) -> None:
        """Something about the signing keys of a stream changed."""
        if key in self._context.store.streams:
            self._context.queue.add(key, Priority.EVENT)

    def look_at_agent(self, namespace: str, agent: str) -> None:
        """Something about the Secret of an agent changed."""
        name = AgentName(namespace, agent)
        if name in self._context.store.agents:
            self._context.queue.add(agent_key(name), Priority.EVENT)

    def known(self, key: ResourceKey) -> Known | None:
        """A resource as it was put in last."""
        return self._context.store.get(key)

    @property
    def health(self) -> OperatorHealth:
        """How it is just now."""
        return health(self._context)

    @property
    def conditions(self) -> Counter[ConditionCount]:
        """How many resources say what in their conditions."""
        return conditions(self._context)

    @property
    def work(self) -> tuple[GroupWork, ...]:
        """What every group's consumers have to do."""
        return tuple(work(self._context))

    def check_all(self) -> None:
        """Looks at everything anew, as a resync does in the course of a minute."""
        self._pulse.check_all(Priority.RESYNC)

    def view(self) -> View:
        """The numbers as they were measured last."""
        return view(self._context)

    async def summary(self) -> View:
        """The numbers as they are now; those of a moment ago if the server does not answer."""
        await self._pulse.measure_all()
        return view(self._context)

    def _let_look(self, affected: Iterable[ResourceKey], priority: Priority) -> None:
        context = self._context
        for key in affected:
            if key.kind == AGENT:
                context.touch((AgentName(key.namespace, key.name),), priority)
            else:
                context.queue.add(key, priority)

    async def _work(self, key: ResourceKey) -> float | None:
        began, outcome = time.perf_counter(), Outcome.ERROR
        try:
            again = await self._reconcile(key)
            outcome = Outcome.SUCCESS
        except TryAgain:
            outcome = Outcome.RETRY
            raise
        finally:
            self._worked(key.kind, outcome, time.perf_counter() - began)
        return again

    async def _reconcile(self, key: ResourceKey) -> float | None:
        try:
            if key.kind == "AgentStream":
                return await reconcile_stream(self._context, key)
            if key.kind == "ConsumerGroup":
                return await reconcile_group(self._context, key)
            await reconcile_agent(self._context, key)
        except (ConnectionLost, AccessDenied) as error:
            self._pulse.doubt()
            raise TryAgain(str(error)) from error
        except AgentStreamError as error:
            await self._refused(key, str(error))
            raise TryAgain(str(error)) from error
        except (ClusterUnavailable, ClusterRefused) as error:
            raise TryAgain(str(error)) from error
        return None

    async def _refused(self, key: ResourceKey, why: str) -> None:
        """Says in a resource's status that the server refused what was to be done for it."""
        resource = self._context.store.get(key)
        if resource is not None:
            found = ConditionUpdate(
                ConditionType.SYNCED, "False", ConditionReason.RECONCILING, f"the server refused: {why}"
            )
            reported = self._context.reported(resource)
            await self._context.status.write(resource, reported, with_ready((REACHABLE, found)), {})

    async def _resync(self) -> None:
        """Queues every key once in `rhythm.resync` seconds, ± 10 %, spread evenly."""
        context = self._context
        every = context.rhythm.resync
        step = min(1.0, every / 10)
        while True:
            keys = tuple(context.store.keys())
            steps = max(1, round(every * (0.9 + 0.2 * self._random()) / step))
            for part in range(steps):
                await asyncio.sleep(step)
                first, end = (len(keys) * bound // steps for bound in (part, part + 1))
                context.queue_all(keys[first:end], Priority.RESYNC)


def _was_acted_on(resource: Known) -> bool:
    status = resource.status
    return status is not None and status.observed_generation == resource.metadata.generation


def _is_same(known: Known, resource: Known) -> bool:
    """Whether nothing changed that a plan depends on: a written status comes back as a change, too."""
    old, new = known.metadata, resource.metadata
    return (
        (old.generation, old.deletion_timestamp, old.creation_timestamp, old.finalizers)
        == (new.generation, new.deletion_timestamp, new.creation_timestamp, new.finalizers)
        and old.annotations == new.annotations
        and known.spec == resource.spec
    )
