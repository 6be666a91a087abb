"""What all reconcilers share: the two ports, what is known, what is remembered, and looking at a stream."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from agentstream.errors import AgentStreamError
from agentstream_operator.broker.broker import Broker
from agentstream_operator.broker.observe import Look
from agentstream_operator.cluster.port import Cluster, Event
from agentstream_operator.plan.accounting import accumulate_account, counters
from agentstream_operator.plan.actions import DeleteStream
from agentstream_operator.plan.agents import AgentName, agents_of
from agentstream_operator.plan.findings import CREDENTIALS_APPLIED, EventNote, Plan
from agentstream_operator.plan.observed import StreamSeen
from agentstream_operator.plan.progress import follow, stalled
from agentstream_operator.plan.signal import follow_rate
from agentstream_operator.reconcile.queue import Priority, TryAgain, WorkQueue
from agentstream_operator.reconcile.state.index import Known, Store, agent_key, owner_of
from agentstream_operator.reconcile.state.live_access import LiveAccess
from agentstream_operator.reconcile.state.memory import GroupMemory, Memory, StatusMemory
from agentstream_operator.reconcile.status import StatusWriter
from agentstream_operator.resources.agentstream import AgentStream
from agentstream_operator.resources.consumergroup import ConsumerGroup
from agentstream_operator.resources.meta import FINALIZER, ResourceKey

FRESH = 1.5
"""Seconds for which an observation may serve a plan that changes nothing."""

_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Rhythm:
    """How often things are done, in seconds.

    Attributes:
        pulse: between two measurements of a stream by which consumers are scaled.
        quiet: between two measurements of any other stream.
        janitor: between two passes of the janitor over a stream.
        access: between two looks at users and routes.
        ranking: between two looks at what pods hold, where an autoscaler may have fewer of them.
        resync: between two checks of a resource, ± 10 %.
        numbers: between two writes of a status that only bring numbers up to date.
        patience: for which a status that is about to change by itself is not written.
        probe: for which the server may be silent.
    """

    pulse: float = 1.0
    quiet: float = 1.0
    janitor: float = 5.0
    access: float = 5.0
    ranking: float = 5.0
    resync: float = 60.0
    numbers: float = 30.0
    patience: float = 1.0
    probe: float = 3.0


@dataclass(slots=True)
class Backend:
    """How the server was found last.

    Attributes:
        trouble: what its silence looks like; None while it answers. Before the first answer, that.
        run_id: which process answered.
        eviction: its eviction policy, if it may evict streams.
    """

    trouble: str | None = None
    run_id: str | None = None
    eviction: str | None = None


@dataclass(slots=True)
class Context:
    """What all reconcilers share."""

    broker: Broker
    cluster: Cluster
    installation: str
    namespaces: frozenset[str] | None
    now: Callable[[], datetime]
    rhythm: Rhythm
    store: Store
    queue: WorkQueue[ResourceKey]
    status: StatusWriter
    access: LiveAccess
    memory: Memory = field(default_factory=Memory)
    backend: Backend = field(default_factory=Backend)
    complete: bool = False
    _looking: dict[ResourceKey, asyncio.Task[StreamSeen]] = field(default_factory=dict)
    _tasks: set[asyncio.Task[StreamSeen]] = field(default_factory=set)

    async def decide(
        self, stream: AgentStream | None, plan: Callable[[StreamSeen | None], Plan]
    ) -> tuple[StreamSeen | None, Plan]:
        """Plans on what is known of a stream, and on what is there now if the plan changes anything.

        Args:
            stream: what to look at, if there is anything.
            plan: makes a plan of what was seen; of None without a stream and while the server does not
                answer.

        Returns:
            What the plan was made of, and the plan.

        Raises:
            AgentStreamError: as `Broker.observe`.
        """
        if stream is None or self.backend.trouble is not None:
            return None, plan(None)
        memory = self.memory.streams[stream.key]
        if memory.seen is not None and asyncio.get_running_loop().time() - memory.seen_at < FRESH:
            decided = plan(memory.seen)
            if not decided.actions:
                return memory.seen, decided
        seen = await self.look(stream)
        return seen, plan(seen)

    async def look(self, stream: AgentStream) -> StreamSeen:
        """What the server holds of a stream now.

        Raises:
            AgentStreamError: as `Broker.observe`.
        """
        looking = self._looking.get(stream.key)
        if looking is None:
            looking = asyncio.create_task(self._look(stream), name=f"look at {stream.stream_key}")
            self._looking[stream.key] = looking
            self._tasks.add(looking)
            looking.add_done_callback(self._tasks.discard)
        # others wait for the same answer
        return await asyncio.shield(looking)

    async def _look(self, stream: AgentStream) -> StreamSeen:
        # all that ask before the question is sent share the answer; who asks later may have written meanwhile
        await asyncio.sleep(0)
        del self._looking[stream.key]
        return await self.measure(stream)

    async def close(self) -> None:
        """Ends what is under way."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def measure(self, stream: AgentStream) -> StreamSeen:
        """Observes a stream, and brings up to date what is remembered of it and its groups."""
        at = asyncio.get_running_loop().time()
        seen = await self.broker.observe(stream.stream_key, self._declared(stream))
        self._saw(stream, seen, at)
        return seen

    async def measure_together(self, streams: Sequence[AgentStream]) -> list[StreamSeen | AgentStreamError]:
        """The same for many streams; what is known of one that cannot be observed no longer counts."""
        at = asyncio.get_running_loop().time()
        known = (self.memory.streams[stream.key].shown for stream in streams)
        looks = [Look(s.stream_key, self._declared(s), k) for s, k in zip(streams, known, strict=True)]
        found: list[StreamSeen | AgentStreamError]
        try:
            found = await self.broker.measure(looks)
        except AgentStreamError as error:
            found = [error] * len(streams)
        for stream, seen in zip(streams, found, strict=True):
            if not isinstance(seen, AgentStreamError):
                self._saw(stream, seen, at)
            elif stream.key in self.memory.streams:
                self.memory.streams[stream.key].seen = None
        return found

    def _declared(self, stream: AgentStream) -> list[str]:
        return [declared.name for declared in self.store.declared(stream.key)]

    def _saw(self, stream: AgentStream, seen: StreamSeen, at: float) -> None:
        """Remembers what was asked for at that time of the loop's clock, unless something later is known."""
        memory = self.memory.streams.get(stream.key)
        if memory is None or at < memory.seen_at:
            return
        before, shown = memory.seen, memory.shown
        memory.seen = memory.shown = seen
        if shown is not None and shown.type != "none" and seen.type == "none":
            # whoever looked: it is the stream's to put right
            self.queue.add(stream.key, Priority.EVENT)
        memory.seen_at, memory.now = at, seen.now
        memory.arrivals = follow_rate(memory.arrivals, seen.added, at)
        for key, group, name in self.store.declared(stream.key):
            if key in self.memory.groups and name in seen.groups:
                _follow_group(self.memory.groups[key], group, name, before, seen)

    def reported(self, resource: Known) -> StatusMemory:
        """What is remembered of a resource's status."""
        if isinstance(resource, AgentStream):
            return self.memory.streams[resource.key].reported
        return self.memory.groups[resource.key].reported

    def written(self, stream: ResourceKey) -> None:
        """Notes that something was written to a stream: what was seen before no longer counts."""
        memory = self.memory.streams[stream]
        memory.seen, memory.seen_at = None, asyncio.get_running_loop().time()

    async def apply(self, stream: ResourceKey, plan: Plan) -> tuple[EventNote, ...]:
        """Does the actions of a plan for a stream or a group of it. Returns what has happened then.

        Raises:
            AgentStreamError: the server could not be asked, or refused; actions after that were not done.
        """
        refused = False
        for action in plan.actions:
            try:
                reply = await self.broker.apply(action)
            finally:
                self.written(stream)
            # a stream that was to be deleted if empty, and is not
            refused = refused or (isinstance(action, DeleteStream) and not reply)
        return plan.refused if refused else plan.notices

    def check_again(self, resource: Known) -> float | None:
        """Seconds after which to check what was just done for a resource: none.

        None if that is done anyway, because it waits to say that its agents are written.

        Raises:
            TryAgain: somebody keeps undoing it.
        """
        reported = self.reported(resource)
        reported.rounds += 1
        if reported.rounds > _ROUNDS:
            raise TryAgain("what is done for it does not last")
        waiting = self.memory.state_of(agents_of(resource)).waiting
        return None if waiting and CREDENTIALS_APPLIED not in reported.findings else 0.0

    def touch(self, names: Iterable[AgentName], priority: Priority = Priority.EVENT) -> None:
        """Lets agents be written again, since what they may do may have changed."""
        for name in names:
            self.memory.agents[name].changes += 1
            self.queue.add(agent_key(name), priority)

    def agents_on(self, stream: AgentStream) -> list[AgentName]:
        """Who produces to a stream or consumes it."""
        groups = (self.store.groups[key] for key in self.store.readers_of(stream.key))
        return list(dict.fromkeys((*agents_of(stream), *(agents_of(group)[0] for group in groups))))

    def deleted_for(self, resource: Known) -> float:
        """Seconds since the deletion of a resource."""
        deletion = resource.metadata.deletion_timestamp
        return (self.now() - deletion).total_seconds() if deletion is not None else 0.0

    def queue_all(self, keys: Iterable[ResourceKey], priority: Priority) -> None:
        """Lets keys be worked on."""
        for key in keys:
            self.queue.add(key, priority)

    async def tell(self, about: Known, notices: Iterable[EventNote]) -> None:
        """Emits what has happened to a resource."""
        for notice in notices:
            event = Event(about.key, notice.reason, notice.message, notice.warning, about.metadata.uid)
            await self.cluster.emit(event)

    async def hold(self, resource: Known, *, wanted: bool) -> None:
        """Adds or removes the finalizer where that is not how it is."""
        reported = self.reported(resource)
        present = (
            FINALIZER in resource.metadata.finalizers if reported.finalizer is None else reported.finalizer
        )
        if wanted != present:
            await self.cluster.set_finalizer(owner_of(resource), present=wanted)
            reported.finalizer = wanted


def is_same(before: StreamSeen, after: StreamSeen) -> bool:
    """Whether two observations differ in nothing but their time."""
    return before.digest == after.digest


def concerns_plans(before: StreamSeen, after: StreamSeen) -> bool:
    """Whether more differs than how much there is and how far everybody is."""
    return after.added < before.added or _facts(before) != _facts(after)


def _facts(seen: StreamSeen) -> tuple[object, ...]:
    """What plans depend on; `checkpoint` and the like in the operator's hash are none of it."""
    owner = [seen.meta.get(name) for name in ("installation", "namespace", "name", "uid")]
    groups = {name: (g.exists, g.retry_ready, g.exact, g.dead > 0) for name, g in seen.groups.items()}
    return seen.type, seen.contracts, owner, groups


def _follow_group(
    memory: GroupMemory, group: ConsumerGroup, name: str, before: StreamSeen | None, after: StreamSeen
) -> None:
    found = after.groups[name]
    memory.progress = follow(memory.progress, found, after.now)
    lease = group.spec.delivery.lease.milliseconds
    memory.stalled = stalled(memory.progress, found, lease, after.now) and not group.spec.suspend
    if memory.counters is not None and before is not None and is_same(before, after):
        return
    now = counters(after, found)
    if memory.counters is not None:
        memory.account = accumulate_account(memory.account, memory.counters, now)
    memory.counters = now
