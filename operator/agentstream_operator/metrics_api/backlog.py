"""How much work groups have, asked of the server at most once a second and for all who ask together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from agentstream.errors import AgentStreamError
from agentstream_operator.broker.broker import Broker
from agentstream_operator.broker.observe import Look
from agentstream_operator.plan.groups import may_change
from agentstream_operator.plan.observed import StreamSeen
from agentstream_operator.plan.signal import Signal, combine, read_signal
from agentstream_operator.reconcile.state.index import Store, stream_of
from agentstream_operator.resources.agentstream import AgentStream
from agentstream_operator.resources.consumergroup import ConsumerGroup
from agentstream_operator.resources.meta import ResourceKey

FRESH = 1.0
"""Seconds for which an answer of the server serves."""

Seen = StreamSeen | AgentStreamError


class Unknown(Exception):  # noqa: N818 - it is what it is
    """The work of a group is not known; the message says why."""


@dataclass(frozen=True, slots=True)
class Backlog:
    """The work of a group.

    Attributes:
        messages: how many are undelivered, pending or due.
        at: when they were counted.
    """

    messages: int
    at: datetime


@dataclass(slots=True)
class Sample:
    """What was seen of a stream, or is about to be.

    Attributes:
        groups: those of which all was asked for.
        asked: when, on the loop's clock.
        seen: the answer.
        at: when it came.
    """

    groups: tuple[str, ...]
    asked: float
    seen: asyncio.Future[Seen]
    at: datetime | None = None


class Backlogs:
    """Counts the work of groups.

    Args:
        store: which groups there are.
        broker: the server.
    """

    def __init__(self, store: Store, broker: Broker) -> None:
        self._store = store
        self._broker = broker
        self._glances: dict[ResourceKey, Sample] = {}
        self._known: dict[ResourceKey, StreamSeen] = {}
        self._changes = 0
        self._waiting: list[tuple[AgentStream, Sample]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def of(self, group: ConsumerGroup) -> Backlog:
        """What the consumers of a group have to do: for it, and for the groups of its agent without any.

        Raises:
            Unknown: that is not known.
        """
        signals: list[Signal] = []
        oldest = datetime.now(UTC)
        for served in self._store.served_by(group):
            stream = self._stream(served)
            if stream is None:
                if served is group:
                    raise Unknown(f"{group.key} is not in place on a stream")
                continue
            glance = self._glance(stream)
            seen = await asyncio.shield(glance.seen)
            if isinstance(seen, AgentStreamError):
                raise Unknown(f"the server cannot be asked: {seen}") from seen
            signal = read_signal(seen, served.group_name, None)
            if not signal.known and served is not group and not may_change(served, stream):
                # nobody is about to make it: its agent has nothing to do there
                continue
            signals.append(signal)
            oldest = min(oldest, glance.at or oldest)
        total = combine(signals)
        if not total.known:
            raise Unknown(f"{group.key} is not on its stream yet")
        return Backlog(total.backlog, oldest)

    async def close(self) -> None:
        """Ends what is under way."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _stream(self, group: ConsumerGroup) -> AgentStream | None:
        """The stream of a group, if both have the place that they claim."""
        stream = self._store.streams.get(stream_of(group))
        in_place = (
            stream is not None
            and self._store.winner(stream) is stream
            and self._store.group_winner(group) is group
        )
        return stream if in_place else None

    def _glance(self, stream: AgentStream) -> Sample:
        loop = asyncio.get_running_loop()
        groups = tuple(declared.name for declared in self._store.declared(stream.key))
        known = self._glances.get(stream.key)
        fresh = known is not None and (not known.seen.done() or loop.time() - known.asked < FRESH)
        if known is not None and fresh and known.groups == groups:
            return known
        glance = self._glances[stream.key] = Sample(groups, loop.time(), loop.create_future())
        if not self._waiting:
            # what else is asked for in this turn of the loop goes along
            loop.call_soon(self._look)
        self._waiting.append((stream, glance))
        return glance

    def _look(self) -> None:
        waiting, self._waiting = self._waiting, []
        self._forget()
        task = asyncio.create_task(self._measure(waiting), name="measure")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _measure(self, asked: Sequence[tuple[AgentStream, Sample]]) -> None:
        looks = [Look(s.stream_key, g.groups, self._known.get(s.key)) for s, g in asked]
        found: Sequence[Seen]
        try:
            found = await self._broker.measure(looks)
        except AgentStreamError as error:
            found = [error] * len(asked)
        except asyncio.CancelledError:
            for _, glance in asked:
                glance.seen.cancel()
            raise
        now = datetime.now(UTC)
        for (stream, glance), seen in zip(asked, found, strict=True):
            glance.at = now
            glance.seen.set_result(seen)
            if isinstance(seen, AgentStreamError):
                self._known.pop(stream.key, None)
            else:
                self._known[stream.key] = seen

    def _forget(self) -> None:
        """Forgets streams that are gone."""
        if self._changes == self._store.changes:
            return
        self._changes = self._store.changes
        for key in self._glances.keys() - self._store.streams.keys():
            self._glances.pop(key)
            self._known.pop(key, None)
