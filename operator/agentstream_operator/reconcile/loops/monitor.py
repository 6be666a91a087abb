"""What is done all the time: measuring every stream, the janitor, the server itself, its users and routes.

Nothing is put right here: what is not as it was is put into the queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Collection, Coroutine, Iterable, Sequence

from agentstream.errors import AccessDenied, AgentStreamError, ConnectionLost
from agentstream_operator.cluster.port import ClusterRefused, ClusterUnavailable
from agentstream_operator.plan.agents import AgentName, strays
from agentstream_operator.plan.observed import StreamSeen
from agentstream_operator.plan.retention import JanitorSpec, janitor_spec, remember, retention_healthy
from agentstream_operator.plan.streams import managed
from agentstream_operator.reconcile.context import Context, concerns_plans, is_same
from agentstream_operator.reconcile.queue import Priority
from agentstream_operator.reconcile.resources.consumers import measure_need, rests, scales
from agentstream_operator.reconcile.resources.groups import numbers_of_group
from agentstream_operator.reconcile.resources.streams import numbers_of_stream
from agentstream_operator.reconcile.state.index import agent_key, stream_of
from agentstream_operator.reconcile.state.memory import AgentMemory, Cleaned
from agentstream_operator.resources.agentstream import AgentStream
from agentstream_operator.resources.consumergroup import ConsumerGroup
from agentstream_operator.resources.meta import ResourceKey
from agentstream_operator.resources.status import ConditionType

_log = logging.getLogger(__name__)
_STILL = 6
"""After so many of the janitor's rounds it passes over a stream on which nothing moves."""

_PART = 250
"""Streams or groups that are looked at in a row: some ms, during which nothing else is done."""

_FIRST_RETRY, _LONGEST_RETRY = 0.1, 2.0


class Monitor:
    """Measures, cleans up and watches, each in a task of its own.

    Args:
        context: what is measured.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._doubt = asyncio.Event()
        self._relist = asyncio.Event()
        self._scaling: tuple[int, frozenset[ResourceKey]] = (-1, frozenset())

    def doubt(self) -> None:
        """A connection broke: looks at once whether the server is there."""
        self._doubt.set()

    async def watch_server(self) -> None:
        """Finds out, again and again, whether the server answers, and whether it is still the same."""
        delay = _FIRST_RETRY
        while True:
            doubted = self._doubt.is_set()
            self._doubt.clear()
            try:
                async with asyncio.timeout(self._context.rhythm.probe):
                    server = await self._context.broker.server()
            except (AgentStreamError, TimeoutError) as error:
                self._lost(str(error) or "the server does not answer")
                await asyncio.sleep(delay)
                delay = min(2 * delay, _LONGEST_RETRY)
            else:
                delay = _FIRST_RETRY
                eviction = None if server.eviction_policy == "noeviction" else server.eviction_policy
                self._found(server.run_id, eviction, doubted=doubted)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._context.rhythm.pulse):
                        await self._doubt.wait()

    async def measure(self) -> None:
        """Measures every stream, again and again, and queues what is not as it was.

        A stream by which no consumers are scaled is measured less often.
        """
        rhythm, streams = self._context.rhythm, self._context.store.streams
        parts = max(1, round(rhythm.quiet / rhythm.pulse))
        for part in itertools.cycle(range(parts)):
            began = asyncio.get_running_loop().time()
            scaling = self._scaling_streams()
            due = [s for n, s in enumerate(streams.values()) if n % parts == part or s.key in scaling]
            await self._step(self.measure_those(due))
            await asyncio.sleep(max(0.0, began + rhythm.pulse - asyncio.get_running_loop().time()))

    async def measure_all(self) -> None:
        """Measures every stream once."""
        await self.measure_those(tuple(self._context.store.streams.values()))

    async def measure_those(self, streams: Sequence[AgentStream]) -> None:
        """Measures some streams once, a part of them at a time, so that others get their turns in between."""
        context = self._context
        for first in range(0, len(streams), _PART):
            await self._measure(streams[first : first + _PART])
        groups = tuple(context.store.groups.values())
        for first in range(0, len(groups), _PART):
            for group in groups[first : first + _PART]:
                # reconciling it says so; the others must not wait for that
                with contextlib.suppress(ClusterRefused, ClusterUnavailable):
                    await self._follow(group)
            await asyncio.sleep(0)

    async def _measure(self, streams: Sequence[AgentStream]) -> None:
        context = self._context
        before = [context.memory.streams[stream.key].seen for stream in streams]
        found = await context.measure_together(streams)
        for error in {id(new): new for new in found if isinstance(new, AgentStreamError)}.values():
            self._failed(error)
        for stream, old, new in zip(streams, before, found, strict=True):
            if isinstance(new, AgentStreamError):
                continue
            if old is None or (not is_same(old, new) and concerns_plans(old, new)):
                self._changed(stream, vanished=old is not None and new.added < old.added)
            elif not is_same(old, new):
                self._moved(stream, new)

    async def clean(self) -> None:
        """Lets the janitor pass over every stream, again and again, a part of them at a time."""
        rhythm = self._context.rhythm
        parts = max(1, round(rhythm.janitor / rhythm.pulse))
        for part in itertools.cycle(range(parts)):
            await self._step(self.clean_up(tuple(self._context.store.streams.values())[part::parts]))
            await asyncio.sleep(rhythm.janitor / parts)

    async def clean_up(self, streams: Iterable[AgentStream]) -> None:
        """Lets the janitor pass over those of the streams that it may touch."""
        context = self._context
        now = asyncio.get_running_loop().time()
        cleaned = [
            (stream, spec)
            for stream in streams
            if self._may_clean(stream) and self._is_due(stream, spec := self._janitor_spec(stream), now)
        ]
        passes = (context.broker.janitor(spec) for _, spec in cleaned)
        reports = await asyncio.gather(*passes, return_exceptions=True)
        for (stream, spec), report in zip(cleaned, reports, strict=True):
            if isinstance(report, BaseException):
                self._failed(report)
                continue
            memory = context.memory.streams[stream.key]
            memory.cleaned = Cleaned(now, spec, memory.seen)
            memory.history = remember(memory.history, report, memory.now)
            if memory.seen is not None:
                finding = retention_healthy(stream, memory.seen, memory.history, context.backend.eviction)
                if not any(finding[:3] == reported[:3] for reported in memory.reported.findings):
                    self._changed(stream)

    async def watch_access(self) -> None:
        """Lists users and routes, again and again, and queues the agents whose are not as written."""
        while True:
            self._relist.clear()
            await self._step(self.list_access())
            with contextlib.suppress(TimeoutError):
                # not wait_for, which in Python 3.11 loses a cancellation that comes with the event
                async with asyncio.timeout(self._context.rhythm.access):
                    await self._relist.wait()

    async def list_access(self) -> None:
        """Lists users and routes once."""
        context = self._context
        anew = not context.access.listed.is_set()
        await context.access.refresh({name.namespace for name in context.store.agents})
        found = self._astray(await context.cluster.users())
        if anew:
            context.queue_all(map(agent_key, context.memory.agents), Priority.RESYNC)
        context.queue_all(map(agent_key, found), Priority.EVENT)

    async def _step(self, step: Coroutine[None, None, None]) -> None:
        """Does one step while the server answers; its failure must not end the steps that follow."""
        if self._context.backend.trouble is not None:
            step.close()
            return
        try:
            await step
        except Exception as error:  # noqa: BLE001 - see above
            self._failed(error)

    def relist(self) -> None:
        """Users and routes may have changed: lists them now."""
        self._relist.set()

    def _astray(self, users: Collection[str]) -> set[AgentName]:
        """The agents whose user or route is not what was written, or that should have none.

        Args:
            users: names of the users for whom there is a Secret: a server may have forgotten them.
        """
        context = self._context
        access, named = context.access, context.store.agents
        found = {name for name, memory in context.memory.agents.items() if not self._in_place(name, memory)}
        if context.complete:
            unreadable = context.store.unreadable_namespaces
            known = {*access.users, *users}
            found.update(strays(known, context.installation, named, context.namespaces, unreadable))
            found.update(name for name in access.routed if name not in named)
        return found

    def _in_place(self, name: AgentName, memory: AgentMemory) -> bool:
        access, written = self._context.access, memory.written
        return (
            not memory.waiting
            and name in self._context.store.agents
            and (
                written is None
                or (access.user(name) == written.fingerprint and access.route(name) == written.route)
            )
        )

    def _scaling_streams(self) -> frozenset[ResourceKey]:
        """The streams by whose backlog consumers are scaled."""
        store = self._context.store
        changes, found = self._scaling
        if changes != store.changes:
            scaled = (group for group in store.groups.values() if group.spec.autoscaling is not None)
            found = frozenset(stream_of(o) for group in scaled for o in store.groups_of_agent(group))
            self._scaling = store.changes, found
        return found

    def _janitor_spec(self, stream: AgentStream) -> JanitorSpec:
        return janitor_spec(stream, [d.group for d in self._context.store.declared(stream.key)])

    def _is_due(self, stream: AgentStream, spec: JanitorSpec, now: float) -> bool:
        """Whether a stream needs the janitor now: where nothing moves, only its entries' age does."""
        memory = self._context.memory.streams[stream.key]
        seen, last = memory.seen, memory.cleaned
        return (
            seen is None
            or last is None
            or last.seen is None
            or last.spec != spec
            or now - last.at >= _STILL * self._context.rhythm.janitor
            or not is_same(seen, last.seen)
            or any(group.delayed for group in seen.groups.values())
            or (memory.history is not None and not memory.history.quiet)
        )

    def _may_clean(self, stream: AgentStream) -> bool:
        """Whether a stream may be trimmed: only if all of its groups are known."""
        context = self._context
        return (
            context.complete
            and stream.metadata.namespace not in context.store.unreadable_namespaces
            and managed(stream)
            and context.memory.streams[stream.key].usable is True
        )

    async def _follow(self, group: ConsumerGroup) -> None:
        """Queues a group whose consumers are not as they were or should be, or that ceased to get on."""
        context = self._context
        memory = context.memory.groups[group.key]
        if memory.stalled and not any(
            finding.kind is ConditionType.STALLED and finding.status == "True"
            for finding in memory.reported.findings
        ):
            context.queue.add(group.key, Priority.RESYNC)
        if group.has_workload:
            decision = memory.decision if rests(context, group) else None
            decision = decision or measure_need(context, group)
            workload = await context.cluster.workload(group)
            moved = scales(context, group) and workload is not None and workload.replicas != decision.replicas
            if workload != memory.workload or moved:
                asleep = moved and workload is not None and workload.replicas == 0
                context.queue.add(group.key, Priority.WAKE if asleep else Priority.RESYNC)

    def _changed(self, stream: AgentStream, *, vanished: bool = False) -> None:
        self._context.queue.add(stream.key, Priority.RESYNC)
        self._context.queue_all(self._context.store.readers_of(stream.key), Priority.RESYNC)
        if vanished:
            # what removed a stream may have removed more
            self.relist()

    def _moved(self, stream: AgentStream, seen: StreamSeen) -> None:
        """Queues those whose status is to show other numbers by now."""
        context = self._context
        memory = context.memory.streams[stream.key]
        if memory.added is not None:
            memory.added = seen.added
        if context.status.is_due(memory.reported, numbers_of_stream(context, stream, seen)):
            context.queue.add(stream.key, Priority.RESYNC)
        for key in context.store.readers_of(stream.key):
            reader = context.memory.groups[key]
            numbers = numbers_of_group(context.store.groups[key], reader, seen)
            if context.status.is_due(reader.reported, numbers):
                context.queue.add(key, Priority.RESYNC)

    def _failed(self, error: BaseException) -> None:
        if isinstance(error, ConnectionLost | AccessDenied):
            self.doubt()
        elif isinstance(error, AgentStreamError):
            _log.warning("the server refused: %s", error)
        else:
            _log.error("could not be measured", exc_info=error)

    def _lost(self, why: str) -> None:
        context = self._context
        if context.backend.trouble is None:
            _log.warning("the server is not reachable: %s", why)
            context.backend.trouble = why
            context.access.listed.clear()
            context.queue_all(tuple(context.store.keys()), Priority.EVENT)

    def _found(self, run_id: str, eviction: str | None, *, doubted: bool) -> None:
        context, backend = self._context, self._context.backend
        again = backend.trouble is not None or doubted or backend.run_id not in (None, run_id)
        backend.trouble, backend.run_id = None, run_id
        if backend.eviction != eviction:
            backend.eviction = eviction
            context.queue_all(tuple(context.store.streams), Priority.EVENT)
        if again:
            _log.info("the server answers again: everything on it is checked")
            self.check_all(Priority.EVENT)

    def check_all(self, priority: Priority) -> None:
        """Forgets what was seen, and lets everything be looked at anew."""
        context = self._context
        for key in context.store.streams:
            context.written(key)
        context.access.listed.clear()
        self.relist()
        context.queue_all(tuple(context.store.keys()), priority)
