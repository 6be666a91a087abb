"""Observes streams on the server and updates what is remembered of them and of their groups."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import msgspec

from agentstream.errors import AgentStreamError, ProtocolError
from agentstream_operator.broker.broker import Broker
from agentstream_operator.broker.observe import Look
from agentstream_operator.plan.accounting import accumulate_account, counters
from agentstream_operator.plan.conditions import Plan
from agentstream_operator.plan.observed import GroupSeen, StreamSeen
from agentstream_operator.plan.signal import Activity, follow_progress, follow_rate, work_of
from agentstream_operator.reconcile.queue import Priority, WorkQueue
from agentstream_operator.reconcile.state.index import stream_of
from agentstream_operator.reconcile.state.memory import GroupMemory
from agentstream_operator.reconcile.state.state import State
from agentstream_operator.resources.agentstream import AgentStream, OnFull
from agentstream_operator.resources.consumergroup import ConsumerGroup
from agentstream_operator.resources.meta import ResourceKey

FRESH = 1.5
"""Seconds for which an observation may serve a plan that changes nothing."""

_ASK, _TOGETHER = 10_000, 100
"""Milliseconds between two looks at the leases of a group, and the most groups looked at in one turn."""


@dataclass(slots=True)
class Observer:
    """Observes streams; concurrent callers for one stream share one observation."""

    state: State
    broker: Broker
    queue: WorkQueue[ResourceKey]
    _waiting: dict[ResourceKey, asyncio.Task[StreamSeen]] = field(default_factory=dict, init=False)
    _tasks: set[asyncio.Task[StreamSeen]] = field(default_factory=set, init=False)

    async def decide(
        self, stream: AgentStream | None, plan: Callable[[StreamSeen | None], Plan]
    ) -> tuple[StreamSeen | None, Plan]:
        """Plans on a recent observation, and on a new one if that plan changes anything.

        Plans on None without a stream and while the server does not answer. Returns observation and plan.

        Returns:
            The observation and the plan.

        Raises:
            AgentStreamError: as `Broker.observe`.
        """
        if stream is None or self.state.backend.outage is not None:
            return None, plan(None)
        memory = self.state.memory.streams[stream.key]
        if memory.seen is not None and asyncio.get_running_loop().time() - memory.seen_at < FRESH:
            decided = plan(memory.seen)
            if not decided.actions:
                return memory.seen, decided
        seen = await self.observe(stream)
        return seen, plan(seen)

    async def observe(self, stream: AgentStream) -> StreamSeen:
        """Observes a stream now.

        Raises:
            AgentStreamError: as `Broker.observe`.
        """
        task = self._waiting.get(stream.key)
        if task is None:
            task = asyncio.create_task(self._observe(stream), name=f"observe {stream.stream_key}")
            self._waiting[stream.key] = task
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        # other callers wait for the same task
        return await asyncio.shield(task)

    async def _observe(self, stream: AgentStream) -> StreamSeen:
        # calls until the request is sent share its answer; a later caller may have written meanwhile
        await asyncio.sleep(0)
        del self._waiting[stream.key]
        at = asyncio.get_running_loop().time()
        seen = self._take(stream, await self.broker.observe(stream.stream_key, self._declared(stream)), at)
        if isinstance(seen, AgentStreamError):
            raise seen
        return seen

    async def observe_all(self, streams: Sequence[AgentStream]) -> list[StreamSeen | AgentStreamError]:
        """Observes many streams in one round trip; forgets the observation of a stream that fails."""
        at, remembered = asyncio.get_running_loop().time(), self.state.memory.streams
        shown = (remembered[stream.key].shown for stream in streams)
        looks = [Look(s.stream_key, self._declared(s), k) for s, k in zip(streams, shown, strict=True)]
        found: list[StreamSeen | AgentStreamError]
        try:
            found = await self.broker.measure(looks)
        except AgentStreamError as error:
            found = [error] * len(streams)
        return [self._take(stream, seen, at) for stream, seen in zip(streams, found, strict=True)]

    def _take(
        self, stream: AgentStream, seen: StreamSeen | AgentStreamError, at: float
    ) -> StreamSeen | AgentStreamError:
        """Remembers one of many observations. Returns it, or the error that is this stream's alone."""
        if not isinstance(seen, AgentStreamError):
            try:
                return self._remember(stream, seen, at)
            except Exception as error:  # noqa: BLE001 - what one stream holds must not hide the others
                seen = ProtocolError(f"cannot make sense of {stream.stream_key}: {error}")
                seen.__cause__ = error
        memory = self.state.memory.streams
        if stream.key in memory:
            memory[stream.key].seen = None
        return seen

    async def close(self) -> None:
        """Cancels observations under way."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def look_at_leases(self, groups: Iterable[ConsumerGroup]) -> None:
        """Asks who renews leases in groups that settled nothing for long; each at most every 10 seconds."""
        due = list[tuple[ConsumerGroup, GroupMemory, StreamSeen, str]]()
        for group in groups:
            memory = self.state.memory.groups[group.key]
            stream = self.state.resources.streams.get(stream_of(group))
            if memory.work is Activity.SETTLING or stream is None or group.spec.suspend:
                continue
            seen = self.state.memory.streams[stream.key].seen
            if seen is not None and seen.now - memory.asked >= _ASK and len(due) < _TOGETHER:
                memory.asked = seen.now
                due.append((group, memory, seen, stream.stream_key))
        asked = (self.broker.least_idle(key, group.group_name) for group, _, _, key in due)
        idles = await asyncio.gather(*asked, return_exceptions=True)
        for (group, memory, seen, _), idle in zip(due, idles, strict=True):
            lease = group.spec.delivery.lease.milliseconds
            found = seen.groups.get(group.group_name)
            # what no consumer renewed in time proves nothing, nor does what could not be read
            if isinstance(idle, int) and idle <= lease and memory.progress is not None and found is not None:
                memory.progress = msgspec.structs.replace(memory.progress, renewed=seen.now - idle)
                memory.work = work_of(memory.progress, found, lease, seen.now)

    def _declared(self, stream: AgentStream) -> list[str]:
        return [declared.name for declared in self.state.resources.declared(stream.key)]

    def _remember(self, stream: AgentStream, seen: StreamSeen, at: float) -> StreamSeen:
        """Remembers an observation requested at a time of the loop's clock, unless a later one is known.

        Returns it, with the last known values of counters that hold no number.
        """
        streams, groups = self.state.memory.streams, self.state.memory.groups
        memory = streams.get(stream.key)
        if memory is None or at < memory.seen_at:
            return seen
        before, shown = memory.seen, memory.shown
        seen = completed(shown, seen)
        memory.seen = memory.shown = seen
        if shown is not None and shown.type != "none" and seen.type == "none":
            # reconciling the stream creates it again, whichever loop noticed
            self.queue.add(stream.key, Priority.EVENT)
        memory.seen_at, memory.now = at, seen.now
        memory.arrivals = follow_rate(memory.arrivals, seen.added, at)
        for key, group, name in self.state.resources.declared(stream.key):
            if key in groups and name in seen.groups:
                trims = stream.spec.retention.on_full is OnFull.TRIM_OLDEST
                _update_group(groups[key], group, name, before, seen, trims_oldest=trims)
        return seen


def completed(before: StreamSeen | None, seen: StreamSeen) -> StreamSeen:
    """Returns an observation with the last known values of counters that hold no number on the server."""
    groups = dict(seen.groups)
    for name, group in seen.groups.items():
        known = before.groups.get(name) if before is not None else None
        if known is not None and (group.misread or group.unreadable):
            lacking = known.stats if group.unreadable else group.misread
            last = {each: known.stats[each] for each in lacking if each in known.stats}
            groups[name] = msgspec.structs.replace(group, stats={**last, **group.stats})
    return msgspec.structs.replace(seen, groups=groups) if groups != seen.groups else seen


def what_was_misread(before: GroupSeen | None, group: GroupSeen) -> str | None:
    """Returns what agents wrote into keys of a group that could not be read; None if nothing lately."""
    if group.unreadable:
        return "a key of the group is of another type than it should be"
    if group.misread:
        return f"counters that held no number got their last known value back: {', '.join(group.misread)}"
    dropped = "unreadable"
    if before is not None and group.stats.get(dropped, 0) > before.stats.get(dropped, 0):
        return "something that no client of AgentStream wrote was dropped"
    return None


def is_same(before: StreamSeen, after: StreamSeen) -> bool:
    """Returns whether two observations differ in nothing but their time."""
    return before.digest == after.digest


def concerns_plans(before: StreamSeen, after: StreamSeen) -> bool:
    """Returns whether more changed than the number of entries and the positions of groups."""
    return after.added < before.added or _facts(before) != _facts(after)


def _facts(seen: StreamSeen) -> tuple[object, ...]:
    """What plans depend on; checkpoints in the meta hash are no part of it."""
    owner = [seen.meta.get(name) for name in ("installation", "namespace", "name", "uid", "namespace_uid")]
    groups = {
        name: (g.exists, g.retry_ready, g.exact, g.dead > 0, g.misread, g.unreadable, g.crowded)
        for name, g in seen.groups.items()
    }
    return seen.type, seen.contracts, owner, groups


def _update_group(
    memory: GroupMemory,
    group: ConsumerGroup,
    name: str,
    before: StreamSeen | None,
    after: StreamSeen,
    *,
    trims_oldest: bool,
) -> None:
    found = after.groups[name]
    known = before.groups.get(name) if before is not None else None
    if (misread := what_was_misread(known, found)) is not None:
        memory.misread, memory.misread_at = misread, after.now
    memory.progress = follow_progress(memory.progress, found, after.now)
    lease = group.spec.delivery.lease.milliseconds
    memory.work = work_of(memory.progress, found, lease, after.now)
    if memory.counters is not None and before is not None and is_same(before, after):
        return
    now = counters(after, found, memory.counters, trims_oldest=trims_oldest)
    if memory.counters is not None:
        memory.account = accumulate_account(memory.account, memory.counters, now)
    memory.counters = now
