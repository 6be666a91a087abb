"""Scales groups up from zero: one blocking read over the streams of all groups at zero replicas.

A read lasts at most a second, so a group that was just scaled to zero is included within that time; until
then the monitor covers it (docs/adr/0016-one-read-wakes.md). A read triggers a measurement, which decides.
A message for another agent wakes a group as well, since only its consumers can skip it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from agentstream.errors import AccessDenied, AgentStreamError, ConnectionLost
from agentstream.protocol.keys import StreamKeys
from agentstream_operator.broker.broker import Broker
from agentstream_operator.reconcile.loops.server import ServerWatch
from agentstream_operator.reconcile.observer import Observer
from agentstream_operator.reconcile.queue import Priority, WorkQueue
from agentstream_operator.reconcile.resources.consumers import controls_replicas, decide_replicas
from agentstream_operator.reconcile.state.index import stream_of
from agentstream_operator.reconcile.state.loop_failures import Loop
from agentstream_operator.reconcile.state.state import State
from agentstream_operator.resources.consumergroup import ConsumerGroup
from agentstream_operator.resources.meta import ResourceKey

_log = logging.getLogger(__name__)

_ROUND = 1.0
"""Seconds for which a read blocks at most, and after which a failed one is repeated."""

_REST = 10e-6
"""Seconds of pause after a read for each of its keys: the costs of a read grow with them."""


_LATER = 0.01
"""Seconds by which the server's clock may be read later than ours."""


class _Served(NamedTuple):
    """A group served by the consumers of a group at zero: the group itself, or another one of its agent."""

    key: ResourceKey  # of the ConsumerGroup
    name: str  # on its stream
    stream: ResourceKey  # the AgentStream
    stream_key: str
    retry_key: str


class WatchedKey(NamedTuple):
    """A key whose new entries wake groups."""

    stream: ResourceKey  # the AgentStream of the key
    after: str | None  # the id after which entries are new; None for any entry not seen yet
    due: float | None = None  # when the first delayed retry will arrive there, on the loop's clock


@dataclass(slots=True)
class Wakeup:
    """Queues groups at zero replicas as soon as a message arrives."""

    state: State
    broker: Broker
    observer: Observer
    queue: WorkQueue[ResourceKey]
    server: ServerWatch
    _changes: int = field(default=-1, init=False)
    _may_sleep: tuple[tuple[ConsumerGroup, tuple[_Served, ...]], ...] = field(default=(), init=False)
    _rebuilt: float = field(default=float("-inf"), init=False)
    _watched: dict[str, WatchedKey] = field(default_factory=dict, init=False)
    _scaled_to_zero: dict[ResourceKey, list[ConsumerGroup]] = field(default_factory=dict, init=False)
    _passed: dict[str, str] = field(default_factory=dict, init=False)
    _refused: bool = field(default=False, init=False)

    async def watch(self) -> None:
        """Reads until cancelled."""
        while True:
            try:
                if self.state.backend.outage is None:
                    await self._round()
                    self._refused = False
                    continue
            except AgentStreamError as error:
                self._failed(error)
            await asyncio.sleep(_ROUND)

    async def _round(self) -> None:
        """Reads once, and wakes the groups of keys with new entries."""
        now = asyncio.get_running_loop().time()
        if now >= self._rebuilt + _ROUND:
            self._rebuild(now)
        watched = self._watched
        due = {key: found.due for key, found in watched.items() if found.due is not None}
        first = min(due.values(), default=now + _ROUND)
        if first > now:
            arrived = await self._read(watched, min(_ROUND, first - now))
        else:
            arrived = {key for key, at in due.items() if at <= now}
        woken = {watched[key].stream for key in arrived}
        if woken:
            # whatever is decided, the next rebuild includes them again
            self._watched = {key: found for key, found in watched.items() if found.stream not in woken}
            await self._wake(woken)
        await asyncio.sleep(_REST * len(watched))

    def _rebuild(self, now: float) -> None:
        """Collects the keys of all groups at zero replicas."""
        self._rebuilt = now
        self._watched, self._scaled_to_zero = {}, {}
        for group, served in self._asleep():
            for one in served:
                if watched := self._watched_of(one):
                    self._watched |= watched
                    self._scaled_to_zero.setdefault(one.stream, []).append(group)
        self._passed = {key: passed for key, passed in self._passed.items() if key in self._watched}

    async def _read(self, watched: dict[str, WatchedKey], seconds: float) -> Collection[str]:
        """Returns the keys with new entries after at most so many seconds."""
        if not watched:
            await asyncio.sleep(seconds)
            return ()
        after = {key: at.after or self._passed.get(key, "0-0") for key, at in watched.items()}
        found = await self.broker.arrivals(after, seconds)
        self._passed.update((key, entry) for key, entry in found.items() if watched[key].after is None)
        return found.keys()

    async def _wake(self, woken: Collection[ResourceKey]) -> None:
        """Measures streams, and queues first those of their groups that need consumers."""
        state = self.state
        streams = [state.resources.streams[key] for key in woken if key in state.resources.streams]
        looks = await asyncio.gather(*map(self.observer.observe, streams), return_exceptions=True)
        for stream, look in zip(streams, looks, strict=True):
            if isinstance(look, BaseException):
                self.server.note_failure(Loop.MEASURE, stream.key, look)
                continue
            for group in self._scaled_to_zero.get(stream.key, ()):
                if state.resources.groups.get(group.key) is group and decide_replicas(state, group).replicas:
                    self.queue.add(group.key, Priority.WAKE)
            # the monitor would have queued them at its next measurement
            self.queue.add_all((stream.key, *state.resources.readers_of(stream.key)), Priority.RESYNC)

    def _asleep(self) -> Iterator[tuple[ConsumerGroup, tuple[_Served, ...]]]:
        """Yields the groups that were scaled to zero."""
        state = self.state
        if self._changes != state.resources.changes:
            self._changes = state.resources.changes
            groups = (g for g in state.resources.groups.values() if g.spec.autoscaling is not None)
            self._may_sleep = tuple((group, tuple(self._served(group))) for group in groups)
        for group, served in self._may_sleep:
            memory = state.memory.groups[group.key]
            decision, workload = memory.decision, memory.workload
            if (
                workload is not None
                and workload.replicas == 0
                and decision is not None
                and not decision.held
                and decision.replicas == 0
                and not group.spec.suspend
                and controls_replicas(state, group)
            ):
                yield group, served

    def _served(self, group: ConsumerGroup) -> Iterator[_Served]:
        resources = self.state.resources
        for served in resources.served_by(group):
            stream = resources.streams.get(stream_of(served))
            if stream is not None:
                keys, name = StreamKeys(stream.stream_key), served.group_name
                yield _Served(served.key, name, stream.key, keys.stream, keys.retry(name))

    def _watched_of(self, served: _Served) -> dict[str, WatchedKey]:
        """Returns the keys of a group: its stream after the last measurement, its retry stream."""
        remembered = self.state.memory
        memory, serves = remembered.streams[served.stream], remembered.groups[served.key].serves
        seen = memory.seen
        found = seen.groups.get(served.name) if seen is not None else None
        if seen is None or found is None or not found.exists or serves is False:
            return {}
        due = None
        if found.next_due is not None:
            # the server looked at its clock a little later than we at ours
            due = memory.seen_at + (found.next_due - seen.now) / 1000 + _LATER
        return {
            served.stream_key: WatchedKey(served.stream, seen.last),
            # settled entries are deleted from it
            served.retry_key: WatchedKey(served.stream, None, due),
        }

    def _failed(self, error: AgentStreamError) -> None:
        if isinstance(error, ConnectionLost):
            self.server.probe_now()
        elif not self._refused:
            # the type of a key may have changed, which the next measurement shows
            level = logging.WARNING if isinstance(error, AccessDenied) else logging.INFO
            what = "cannot watch for new messages; scale-up from zero waits for the next measurement: %s"
            _log.log(level, what, error)
            self._refused = True
