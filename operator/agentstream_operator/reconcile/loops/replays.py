"""Carries out replays: reads what they look at, and moves what they select, at their rate."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Final, Literal

from agentstream.protocol import replaying
from agentstream.protocol.commands import PAGE
from agentstream.protocol.replaying import EntryPage, PageEntry, PageMoved, ReplayOf, Selected
from agentstream_operator.broker.replay import PreviewScope, pages, preview, read_key, readable
from agentstream_operator.plan.replay import TICK, Allowance, IdRange, is_held, place, span_of_begun
from agentstream_operator.plan.selection import Selection, is_dead, selection_of
from agentstream_operator.reconcile.context import Context
from agentstream_operator.reconcile.loops.server import ServerWatch
from agentstream_operator.reconcile.queue import Priority
from agentstream_operator.reconcile.state.index import group_of, stream_of
from agentstream_operator.reconcile.state.loop_failures import Loop
from agentstream_operator.reconcile.state.memory import ReplayMemory
from agentstream_operator.resources.agentstream import AgentStream
from agentstream_operator.resources.consumergroup import ConsumerGroup
from agentstream_operator.resources.meta import ResourceKey
from agentstream_operator.resources.streamreplay import ReplayAction, StreamReplay

_TOGETHER: Final = 4
"""How many replays read or move at a time; the others get the next turns, whosever they are."""

_AGAIN, _NOTED = 1.0, 1.0
"""Seconds between two tries, and between two notes of how far a replay is that finds nothing."""


class _Over(Exception):  # noqa: N818 - no error: the replay is to go on no more, or later
    pass


@dataclass(slots=True)
class ReplayRunner:
    """Has one task for each replay that is to be carried out."""

    context: Context
    server: ServerWatch
    _tasks: dict[ResourceKey, asyncio.Task[None]] = field(default_factory=dict, init=False)
    _turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_TOGETHER), init=False)

    async def watch(self) -> None:
        """Carries out replays until cancelled."""
        state = self.context.state
        try:
            while True:
                self._tasks = {key: task for key, task in self._tasks.items() if not task.done()}
                if state.backend.outage is None:
                    for key in state.memory.running_replays - self._tasks.keys():
                        self._tasks[key] = asyncio.create_task(self._carry_out(key), name=f"carry out {key}")
                await asyncio.sleep(TICK)
        finally:
            tasks, self._tasks = tuple(self._tasks.values()), {}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _carry_out(self, key: ResourceKey) -> None:
        try:
            await ReplayRun.of(self.context, key, self._turns).carry_out()
        except _Over:
            pass
        except Exception as error:  # noqa: BLE001 - the others go on
            self.server.note_failure(Loop.REPLAY, key, error)
            memory = self.context.state.memory.replays.get(key)
            if memory is not None:
                memory.problem = str(error) or type(error).__name__
                self.context.queue.add(key, Priority.EVENT)
            await asyncio.sleep(_AGAIN)
        else:
            self.context.state.failures.fine(Loop.REPLAY, key)


@dataclass(slots=True)
class ReplayRun:
    """Carries out one replay, from where it is until its end."""

    context: Context
    replay: StreamReplay  # as it was at the beginning; all but a few fields are immutable
    group: ConsumerGroup
    stream: AgentStream
    memory: ReplayMemory
    turns: asyncio.Semaphore
    _cursor: str = field(default="", init=False)
    _moved: int = field(default=0, init=False)
    _pace: Allowance = field(default_factory=lambda: Allowance(asyncio.get_running_loop().time()), init=False)
    _told: float = field(default=float("-inf"), init=False)

    @classmethod
    def of(cls, context: Context, key: ResourceKey, turns: asyncio.Semaphore) -> ReplayRun:
        """Returns the run of a replay; raises `_Over` if it lacks something."""
        resources = context.state.resources
        replay = resources.replays.get(key)
        group = resources.groups.get(group_of(replay)) if replay is not None else None
        stream = resources.streams.get(stream_of(group)) if group is not None else None
        if replay is None or group is None or stream is None:
            raise _Over
        return cls(context, replay, group, stream, context.state.memory.replays[key], turns)

    async def carry_out(self) -> None:
        """Moves, removes or counts what the replay selects.

        Raises:
            AgentStreamError: the server failed or refused; what was moved is noted there.
        """
        status = self.memory.status
        span = span_of_begun(self.replay.spec, status) if status is not None else None
        if status is None or span is None:
            raise _Over
        if self.replay.spec.dry_run:
            await self._count(span)
        else:
            self._cursor, self._moved = status.cursor or "", status.moved or 0
            await self._take_up()
            while not await self._move_from(span):
                await self._take_up()
        await self._tell(at_end=True)

    @property
    def of_server(self) -> ReplayOf:
        """The replay as the server knows it."""
        return ReplayOf(self.stream.stream_key, self.group.group_name, self.replay.replay_id)

    async def _count(self, span: IdRange) -> None:
        seen = self.context.state.memory.streams[self.stream.key].shown
        group = seen.groups.get(self.group.group_name) if seen is not None else None
        scope = PreviewScope(
            self._key, is_dead(self.replay.spec), span, group.last if group is not None else None,
            self.replay.spec.limit,
        )  # fmt: skip
        call = self.context.broker.call
        counted = await preview(
            call, scope, self._selection(), now=lambda: self.context.state.now().timestamp()
        )
        self._present()
        self.memory.progress = counted.progress

    async def _take_up(self) -> None:
        """Goes on from where the replay is, by the server, or by this run or the status that know better.

        A replica that took over may not have heard of the last pages, and another leader may have seen
        already that the replay was deleted.
        """
        async with self.turns:
            self._present()
            found = replaying.parse_progress(
                await self.context.broker.call(*replaying.progress(self.of_server))
            )
            reached = self._cursor
            self._cursor, self._moved, self.memory.progress = (
                found.cursor,
                max(self._moved, found.moved),
                found,
            )
            if place(reached or "0-0") > place(found.cursor or "0-0"):
                await self._move([], reached)

    async def _move_from(self, span: IdRange) -> bool:
        """Moves what comes after the cursor. Returns whether that is all; else the cursor is another one."""
        if self._cursor:
            if place(self._cursor) >= place(span.end):
                return True
            span = IdRange(replaying.after(self._cursor), span.end)
        async with aclosing(pages(self.context.broker.call, self._key, span)) as read:
            async for page in read:
                if self._left() <= 0:
                    return True
                if not await self._move_page(page):
                    return False
        return True

    async def _move_page(self, page: EntryPage) -> bool:
        """Moves what is selected of a page. Returns whether the cursor is where this replay has moved it."""
        entries = deque(page.entries)
        while entries and self._left() > 0:
            await self._wait()
            async with self.turns:
                replay = self._present()
                count = min(int(self._pace.due), self._left())
                taken, selected = self._select(entries, count)
                if not selected and page.next is not None and not self._is_due():
                    continue
                moved = await self._move(selected, taken[-1].id)
            if moved.code == replaying.ELSEWHERE:
                return False
            self._note(moved, replay)
            # what there was no room for
            left = [entry for entry in taken if place(entry.id) > place(moved.cursor or "0-0")]
            entries.extendleft(reversed(left))
            if self._is_due():
                await self._tell()
        return True

    def _select(self, entries: deque[PageEntry], count: int) -> tuple[list[PageEntry], list[Selected]]:
        """Takes entries off until so many are to be moved. Returns all, and those that are selected."""
        selection, now = self._selection(), self.context.state.now().timestamp()
        taken: list[PageEntry] = []
        selected: list[Selected] = []
        dead = is_dead(self.replay.spec)
        while entries and count > 0 and len(selected) < PAGE:
            entry = entries.popleft()
            taken.append(entry)
            found = selection.verdict(readable(self._key, entry, dead=dead), now)
            if found is not None:
                selected.append(found)
                count -= not found.skip
        return taken, selected

    async def _move(self, selected: list[Selected], to: str) -> PageMoved:
        cursors = (self._cursor, to)
        if self.replay.spec.action is ReplayAction.DROP:
            command = replaying.drop(self.of_server, cursors, [each.id for each in selected])
        else:
            source: Literal["stream", "dead"] = "dead" if is_dead(self.replay.spec) else "stream"
            window = self._present().spec.window
            command = replaying.replay(self.of_server, source, cursors, window, selected)
        moved = replaying.parse_moved(await self.context.broker.call(*command))
        if moved.code != replaying.ELSEWHERE:
            self._cursor = moved.cursor
        return moved

    def _note(self, moved: PageMoved, replay: StreamReplay) -> None:
        self._moved += moved.moved
        self._pace = self._pace.spent(moved.moved)
        drops = replay.spec.action is ReplayAction.DROP
        self.memory.window_full = not drops and moved.waiting >= replay.spec.window
        self.memory.problem = ""
        if moved.code == replaying.NO_ROOM:
            # what was missed meanwhile is not made up for
            self._pace = Allowance(asyncio.get_running_loop().time())

    async def _wait(self) -> None:
        """Waits until at least one message may be moved."""
        now = asyncio.get_running_loop().time
        while True:
            rate = self._present().spec.rate
            self._pace = self._pace.later(rate, now())
            if self._pace.due >= 1:
                return
            if self._is_due():
                await self._tell()
            await asyncio.sleep(min(self._pace.wait(rate), _AGAIN))

    async def _tell(self, *, at_end: bool = False) -> None:
        """Reads how far the replay is, and has that reported."""
        if not self.replay.spec.dry_run:
            async with self.turns:
                self._present()
                found = await self.context.broker.call(*replaying.progress(self.of_server))
            self.memory.progress = replaying.parse_progress(found)
        self._told = asyncio.get_running_loop().time()
        self._present()
        if at_end:
            self.memory.at_end, self.memory.window_full, self.memory.problem = True, False, ""
            self.context.state.memory.running_replays.discard(self.replay.key)
        self.context.queue.add(self.replay.key, Priority.EVENT)

    def _is_due(self) -> bool:
        return asyncio.get_running_loop().time() - self._told >= _NOTED

    def _left(self) -> int:
        limit = self.replay.spec.limit
        return PAGE if limit is None else limit - self._moved

    def _present(self) -> StreamReplay:
        """Returns the replay as it is declared now; raises `_Over` if it is not to go on."""
        state, key = self.context.state, self.replay.key
        found = state.resources.replays.get(key)
        if (
            found is None
            or found.metadata.uid != self.replay.metadata.uid
            or found.deleting
            or is_held(found)
            or key not in state.memory.running_replays
            or state.backend.outage is not None
        ):
            raise _Over
        return found

    @property
    def _key(self) -> str:
        return read_key(self.replay.spec, self.group, self.stream)

    def _selection(self) -> Selection:
        keys = self.context.state.memory.streams[self.stream.key].keys
        return selection_of(self.replay.spec, self.group, self.stream, [key.id for key in keys])
