"""The engine: takes resources, and reconciles the server and the cluster with them."""

from __future__ import annotations

import asyncio
import random as randomness
import time
from collections.abc import Awaitable, Callable, Iterable
from enum import StrEnum

from agentstream.errors import AccessDenied, AgentStreamError, ConnectionLost, ProtocolError
from agentstream_operator.broker.broker import Broker
from agentstream_operator.cluster.port import Cluster, ClusterRefused, ClusterUnavailable, Unreadable
from agentstream_operator.plan.agents import AgentName
from agentstream_operator.plan.conditions import REACHABLE, ConditionUpdate, with_ready
from agentstream_operator.plan.observed import Gone
from agentstream_operator.reconcile.context import Context
from agentstream_operator.reconcile.loops.access import AccessWatch
from agentstream_operator.reconcile.loops.deletion_cost import DeletionCost
from agentstream_operator.reconcile.loops.janitor import Janitor
from agentstream_operator.reconcile.loops.monitor import Monitor
from agentstream_operator.reconcile.loops.pod_cleanup import PodCleanup
from agentstream_operator.reconcile.loops.replays import ReplayRunner
from agentstream_operator.reconcile.loops.server import ServerWatch
from agentstream_operator.reconcile.loops.wakeup import Wakeup
from agentstream_operator.reconcile.observer import Observer
from agentstream_operator.reconcile.queue import Priority, TryAgain, WorkQueue
from agentstream_operator.reconcile.report.figures import Figures, figures
from agentstream_operator.reconcile.report.metrics import OperatorHealth, health
from agentstream_operator.reconcile.report.view import View, view
from agentstream_operator.reconcile.resources.agents import reconcile_agent
from agentstream_operator.reconcile.resources.groups import reconcile_group
from agentstream_operator.reconcile.resources.replays import reconcile_replay
from agentstream_operator.reconcile.resources.streams import reconcile_stream
from agentstream_operator.reconcile.state.index import AGENT, ResourceIndex, agent_key
from agentstream_operator.reconcile.state.live_access import LiveAccess
from agentstream_operator.reconcile.state.state import EngineOptions, State
from agentstream_operator.reconcile.status import StatusWriter
from agentstream_operator.reconcile.supervision import supervised
from agentstream_operator.resources.agentstream import AgentStream
from agentstream_operator.resources.meta import ResourceKey
from agentstream_operator.resources.parse import AnyResource
from agentstream_operator.resources.status import AnyStatus, ConditionReason, ConditionType
from agentstream_operator.resources.streamreplay import StreamReplay


class Outcome(StrEnum):
    """The outcome of reconciling a key."""

    SUCCESS = "success"
    RETRY = "retry"
    ERROR = "error"


def _discard(kind: str, outcome: Outcome, seconds: float) -> None:
    del kind, outcome, seconds


class Engine:
    """Reconciles the server and the cluster with the resources.

    `random` returns a number in [0, 1), to spread work over time. `reconciled` is called after each key with
    its kind, the outcome and the duration in seconds.
    """

    def __init__(
        self,
        broker: Broker,
        cluster: Cluster,
        options: EngineOptions | None = None,
        *,
        random: Callable[[], float] = randomness.random,
        reconciled: Callable[[str, Outcome, float], None] = _discard,
    ) -> None:
        options = options or EngineOptions()
        self._random = random
        self._reconciled = reconciled
        self._broker = broker
        access = LiveAccess(broker, options.installation)
        state = self._state = State(options, ResourceIndex(options.allowed_keys), access)
        queue: WorkQueue[ResourceKey] = WorkQueue(jitter=random)
        self._queue = queue
        observer = self._observer = Observer(state, broker, queue)
        status = StatusWriter(
            cluster,
            lambda: state.now(),  # noqa: PLW0108 - looked up at each call
            options.status,
            lambda: queue.busy,
        )
        self._context = Context(state, broker, cluster, queue, status, observer)
        self._server = ServerWatch(state, broker, queue)
        self._monitor = Monitor(self._context, self._server)
        self._janitor = Janitor(state, broker, queue, self._server)
        self._access = AccessWatch(state, cluster, queue, self._server)
        self._wakeup = Wakeup(state, broker, observer, queue, self._server)
        self._pod_cleanup = PodCleanup(state, broker, cluster)
        self._deletion_cost = DeletionCost(state, broker, cluster)
        self._replays = ReplayRunner(self._context, self._server)

    def put(self, resource: AnyResource) -> None:
        """Takes a new or changed resource."""
        state, key = self._state, resource.key
        known = state.resources.get(key)
        if known is not None and known.metadata.uid != resource.metadata.uid:
            self.remove(key)
            known = None
        if known is not None and _is_same(known, resource):
            state.resources.readable(key)
            return
        affected = state.resources.put(resource)
        if known is not None:
            state.memory.reported(resource).finalizer = None
        elif isinstance(resource, AgentStream):
            state.memory.recall_stream(key, resource.status)
        elif isinstance(resource, StreamReplay):
            state.memory.recall_replay(key, resource.status)
        else:
            state.memory.recall_group(key, resource.status)
        # after a restart, resources with an up-to-date status wait for those without
        restarted = known is None and _was_acted_on(resource)
        self._requeue(affected, Priority.RESYNC if restarted else Priority.EVENT)
        self._queue.add(key, Priority.RESYNC if restarted else Priority.CHANGE)

    def remove(self, key: ResourceKey) -> None:
        """Drops a resource that is gone."""
        gone = self._state.resources.replays.get(key)
        if gone is not None:
            # the status that came with it is an earlier one
            status = self._state.memory.replays[key].status
            self._state.memory.removed_replays[key].append(gone.model_copy(update={"status": status}))
        affected = self._state.resources.remove(key)
        self._state.memory.forget(key)
        self._queue.forget(key)
        self._requeue(affected, Priority.EVENT)
        self._queue.add(key, Priority.CHANGE)

    def unreadable(self, found: Unreadable) -> None:
        """Notes a resource that cannot be parsed: it stays as it was, and nothing is removed meanwhile."""
        if self._state.resources.unreadable(found):
            self._queue.add(found.owner.key, Priority.CHANGE)

    def listed(self) -> None:
        """Notes that every resource has been put: from now on rights may shrink and leftovers are removed."""
        state = self._state
        state.resources.complete = True
        self._context.requeue_agents({*state.resources.agents, *state.memory.agents}, Priority.RESYNC)
        state.access.due.set()

    def server_down(self, outage: str) -> None:
        """Notes before the start that the server is unreachable, so that statuses report it at once."""
        self._state.backend.outage = outage

    async def run(self) -> None:
        """Reconciles until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for name, run in self._tasks().items():
                    tasks.create_task(supervised(name, run), name=name)
        finally:
            await self._observer.close()

    def _tasks(self) -> dict[str, Callable[[], Awaitable[None]]]:
        return {
            "reconcile": lambda: self._queue.run(self._work),
            "probe the server": self._server.watch,
            "list users and routes": self._access.watch,
            "measure streams": self._monitor.watch,
            "wake groups": self._wakeup.watch,
            "clean up streams": self._janitor.watch,
            "clean up after pods": self._pod_cleanup.watch,
            "set pod deletion costs": self._deletion_cost.watch,
            "carry out replays": self._replays.watch,
            "check everything anew": self._resync,
        }

    async def idle(self) -> None:
        """Waits until no key is queued or being reconciled; delayed keys do not count."""
        await self._queue.idle()
        while self._state.backend.outage is None and not self._state.access.listed.is_set():
            # the listing queues agents
            await self._state.access.listed.wait()
            await self._queue.idle()

    async def pod_gone(self, workload: ResourceKey, gone: Gone, *, for_good: bool = False) -> None:
        """Releases the messages of processes that ended. See `PodCleanup.pod_gone`."""
        await self._pod_cleanup.pod_gone(workload, gone, for_good=for_good)

    def requeue(self, key: ResourceKey) -> None:
        """Queues a stream or group whose objects in the cluster changed."""
        if self._state.resources.get(key) is not None:
            self._queue.add(key, Priority.EVENT)

    def requeue_agent(self, namespace: str, agent: str) -> None:
        """Queues an agent whose Secret changed."""
        name = AgentName(namespace, agent)
        if name in self._state.resources.agents:
            self._queue.add(agent_key(name), Priority.EVENT)

    def known(self, key: ResourceKey) -> AnyResource | None:
        """Returns a resource as it was put last."""
        return self._state.resources.get(key)

    @property
    def resources(self) -> ResourceIndex:
        """The resources as they were put last; nobody but the engine changes them."""
        return self._state.resources

    def status_of(self, resource: AnyResource) -> AnyStatus | None:
        """Returns the status of a resource as it was written last."""
        return self._state.memory.reported(resource).status

    @property
    def health(self) -> OperatorHealth:
        """The present health."""
        return health(self._state, self._broker, self._queue)

    async def figures(self) -> Figures:
        """Returns what is held of every resource, for metrics."""
        return await figures(self._state)

    def check_all(self) -> None:
        """Checks every resource anew, as a resync does in the course of a minute."""
        self._server.check_all(Priority.RESYNC)

    def view(self) -> View:
        """Returns the numbers as of the latest measurement."""
        return view(self._state)

    async def summary(self) -> View:
        """Measures everything and returns the numbers; the latest ones if the server does not answer."""
        await self._monitor.measure_all()
        return view(self._state)

    def _requeue(self, affected: Iterable[ResourceKey], priority: Priority) -> None:
        for key in affected:
            if key.kind == AGENT:
                self._context.requeue_agents((AgentName(key.namespace, key.name),), priority)
            else:
                self._queue.add(key, priority)

    async def _work(self, key: ResourceKey) -> float | None:
        began, outcome = time.perf_counter(), Outcome.ERROR
        try:
            again = await self._reconcile(key)
            outcome = Outcome.SUCCESS
        except TryAgain:
            outcome = Outcome.RETRY
            raise
        finally:
            self._reconciled(key.kind, outcome, time.perf_counter() - began)
        return again

    async def _reconcile(self, key: ResourceKey) -> float | None:
        try:
            unreadable = self._state.resources.why_unreadable(key)
            if unreadable is not None and self._state.resources.get(key) is None:
                await self._context.status.write_unreadable(unreadable)
                return None
            if key.kind == "AgentStream":
                return await reconcile_stream(self._context, key)
            if key.kind == "ConsumerGroup":
                return await reconcile_group(self._context, key)
            if key.kind == "StreamReplay":
                return await reconcile_replay(self._context, key)
            return await reconcile_agent(self._context, key)
        except (ConnectionLost, AccessDenied) as error:
            self._server.probe_now()
            raise TryAgain(str(error)) from error
        except AgentStreamError as error:
            await self._report_refusal(key, error)
            raise TryAgain(str(error)) from error
        except (ClusterUnavailable, ClusterRefused) as error:
            raise TryAgain(str(error)) from error

    async def _report_refusal(self, key: ResourceKey, error: AgentStreamError) -> None:
        """Writes the server's refusal, or what cannot be read there, into the status of a resource."""
        resource = self._state.resources.get(key)
        if resource is not None:
            reason, why = ConditionReason.RECONCILING, f"the server refused a command: {error}"
            if isinstance(error, ProtocolError):
                reason, why = ConditionReason.STATS_UNREADABLE, str(error)
            refused = ConditionUpdate(ConditionType.SYNCED, "False", reason, why)
            reported = self._state.memory.reported(resource)
            await self._context.status.write(resource, reported, with_ready((REACHABLE, refused)), {})

    async def _resync(self) -> None:
        """Queues every key once per `resync` interval, ± 10 %, spread evenly."""
        every = self._state.options.loops.resync
        step = min(1.0, every / 10)
        while True:
            keys = tuple(self._state.resources.keys())
            steps = max(1, round(every * (0.9 + 0.2 * self._random()) / step))
            for part in range(steps):
                await asyncio.sleep(step)
                first, end = (len(keys) * bound // steps for bound in (part, part + 1))
                self._queue.add_all(keys[first:end], Priority.RESYNC)


def _was_acted_on(resource: AnyResource) -> bool:
    status = resource.status
    return status is not None and status.observed_generation == resource.metadata.generation


def _is_same(known: AnyResource, resource: AnyResource) -> bool:
    """Returns whether nothing changed that a plan depends on; a written status comes back as a change."""
    old, new = known.metadata, resource.metadata
    return (
        (old.generation, old.deletion_timestamp, old.creation_timestamp, old.finalizers)
        == (new.generation, new.deletion_timestamp, new.creation_timestamp, new.finalizers)
        and old.annotations == new.annotations
        and known.spec == resource.spec
    )
