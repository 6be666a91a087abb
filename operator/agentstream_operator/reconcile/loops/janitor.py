"""Runs the janitor over every stream: due retries, trimming, admission."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from agentstream.errors import AccessDenied, ConnectionLost
from agentstream_operator.broker.broker import Broker
from agentstream_operator.plan.observed import JanitorReport
from agentstream_operator.plan.retention import (
    JanitorSpec,
    janitor_actions,
    janitor_spec,
    remember,
    remember_failure,
    retention_healthy,
)
from agentstream_operator.plan.streams import managed
from agentstream_operator.reconcile.loops.server import ServerWatch
from agentstream_operator.reconcile.observer import is_same
from agentstream_operator.reconcile.queue import Priority, WorkQueue
from agentstream_operator.reconcile.state.loop_failures import Loop
from agentstream_operator.reconcile.state.memory import JanitorPass
from agentstream_operator.reconcile.state.state import State
from agentstream_operator.resources.agentstream import AgentStream
from agentstream_operator.resources.meta import ResourceKey

_IDLE_ROUNDS = 6
"""Rounds after which the janitor passes over a stream without changes."""


@dataclass(slots=True)
class Janitor:
    """Cleans up streams and replies, and queues streams whose retention condition changed."""

    state: State
    broker: Broker
    queue: WorkQueue[ResourceKey]
    server: ServerWatch
    _cursor: bytes = field(default=b"0", init=False)

    async def watch(self) -> None:
        """Cleans up a part of the streams at a time until cancelled."""
        loops = self.state.options.loops
        parts = max(1, round(loops.janitor / loops.measure))
        for part in itertools.cycle(range(parts)):
            streams = tuple(self.state.resources.streams.values())[part::parts]
            await self.server.guard(Loop.CLEAN, self.clean(streams))
            if not part:
                await self.server.guard(Loop.REPLIES, self._expire_replies())
            await asyncio.sleep(loops.janitor / parts)

    async def _expire_replies(self) -> None:
        self._cursor = await self.broker.expire_replies(self._cursor)

    async def clean(self, streams: Iterable[AgentStream]) -> None:
        """Cleans up those of the streams that are due and may be trimmed."""
        now = asyncio.get_running_loop().time()
        due: list[tuple[AgentStream, JanitorSpec]] = []
        for stream in streams:
            with self._alone(stream):
                if self._may_clean(stream) and self._is_due(stream, spec := self._spec(stream), now):
                    due.append((stream, spec))
        passes = (self.broker.janitor(spec) for _, spec in due)
        reports = await asyncio.gather(*passes, return_exceptions=True)
        for (stream, spec), report in zip(due, reports, strict=True):
            with self._alone(stream):
                self._take(stream, spec, report, now)
        self.server.raise_if_all(reports)

    @contextlib.contextmanager
    def _alone(self, stream: AgentStream) -> Iterator[None]:
        """Notes a failure that is one stream's: the others go on."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - the others go on
            self.server.note_failure(Loop.CLEAN, stream.key, error)

    def _take(
        self, stream: AgentStream, spec: JanitorSpec, report: JanitorReport | BaseException, now: float
    ) -> None:
        """Remembers what a pass did, or why it failed, and queues the stream if its condition changed."""
        memory = self.state.memory.streams.get(stream.key)
        if memory is None:
            return
        if isinstance(report, BaseException):
            self.server.note_failure(Loop.CLEAN, stream.key, report)
            if isinstance(report, ConnectionLost | AccessDenied | asyncio.CancelledError):
                return
            memory.history = remember_failure(memory.history, str(report) or type(report).__name__)
        else:
            self.state.failures.fine(Loop.CLEAN, stream.key)
            self.state.memory.janitor.update(janitor_actions(report))
            # what is left to do is due at once
            memory.cleaned = None if report.more else JanitorPass(now, spec, memory.seen)
            memory.history = remember(memory.history, report, memory.now)
        if memory.seen is not None:
            update = retention_healthy(stream, memory.seen, memory.history, self.state.backend.eviction)
            if not any(update[:3] == reported[:3] for reported in memory.reported.conditions):
                readers = self.state.resources.readers_of(stream.key)
                self.queue.add_all((stream.key, *readers), Priority.RESYNC)

    def _spec(self, stream: AgentStream) -> JanitorSpec:
        return janitor_spec(stream, [d.group for d in self.state.resources.declared(stream.key)])

    def _is_due(self, stream: AgentStream, spec: JanitorSpec, now: float) -> bool:
        """Returns whether a stream needs a pass: without changes, only the age of its entries matters."""
        memory = self.state.memory.streams[stream.key]
        seen, last = memory.seen, memory.cleaned
        return (
            seen is None
            or last is None
            or last.seen is None
            or last.spec != spec
            or now - last.at >= _IDLE_ROUNDS * self.state.options.loops.janitor
            or not is_same(seen, last.seen)
            or any(group.delayed for group in seen.groups.values())
            or (memory.history is not None and not memory.history.quiet)
        )

    def _may_clean(self, stream: AgentStream) -> bool:
        """Returns whether a stream may be trimmed: only if all of its groups are known."""
        resources = self.state.resources
        return (
            resources.complete
            and stream.metadata.namespace not in resources.unreadable_namespaces
            and managed(stream)
            and self.state.memory.streams[stream.key].usable is True
        )
