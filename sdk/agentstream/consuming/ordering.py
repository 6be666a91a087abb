"""Ordering by key: of the entries with one ordering key, one at a time is handled. A pure decision.

Entries of one key form a lane, of which one at a time is current: from when its turn has come until it is
settled. Every entry names its predecessor. Its turn comes when the group has finished the predecessor. This
process knows that if the entry was here when it did so itself; otherwise it asks the server: what it finished
before the entry came, another consumer may have again, if the group was lost and made again.

An entry of the retry stream had its turn before it was retried: it waits only for the current entry. One of a
replay may not have had it: it names the one before it in the replay. Entries wait only for those that were
added earlier, so they never wait in a circle.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from bisect import insort
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from agentstream.consuming.hold import Hold
from agentstream.errors import AgentStreamError
from agentstream.protocol.commands import GroupCalls
from agentstream.protocol.entry import NOTHING, Source, position
from agentstream.transport.retry import Backoff, FailureLog


def _place(hold: Hold) -> tuple[int, int]:
    return position(hold.entry.origin)


@dataclass(slots=True, eq=False)
class _Lane:
    """The holds of one key: the one whose turn it is, and those that wait, oldest first.

    The server is asked about the first of these at `ask_at`, and from `ask_with_others_at` on if it is asked
    about others anyway.
    """

    key: str
    current: Hold | None = None
    waiting: list[Hold] = field(default_factory=list)
    ask_at: float = -math.inf
    ask_with_others_at: float = -math.inf
    backoff: Backoff = field(init=False)


class KeyOrder:
    """The holds of entries with ordering keys."""

    def __init__(self, backoff: Callable[[], Backoff] = lambda: Backoff(0.002, 0.25)) -> None:
        self._new_backoff = backoff
        self._lane_of: dict[Hold, _Lane] = {}
        self._lanes: dict[str, _Lane] = {}
        self._asking: dict[_Lane, None] = {}
        self._waiting = 0

    def __len__(self) -> int:
        """The number of holds that wait for their turn."""
        return self._waiting

    @property
    def size(self) -> int:
        """Bytes of the messages that wait for their turn."""
        return sum([hold.entry.size for lane in self._lanes.values() for hold in lane.waiting])

    @property
    def ask_at(self) -> float | None:
        """When to ask the server next; None if no hold waits for its answer."""
        return min((lane.ask_at for lane in self._asking), default=None)

    def put(self, hold: Hold) -> bool:
        """Adds a hold of an entry with a key. Returns whether its turn has come."""
        key = hold.entry.key
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = _Lane(key)
        self._lane_of[hold] = lane
        insort(lane.waiting, hold, key=_place)
        self._waiting += 1
        return lane.waiting[0] is hold and self._go_on(lane) is hold

    def leave(self, hold: Hold) -> Hold | None:
        """Removes a hold that is settled or lost. Returns the one whose turn comes by that."""
        lane = self._lane_of.pop(hold, None)
        if lane is None:
            return None
        if lane.current is hold:
            lane.current = None
        else:
            was_first = lane.waiting[0] is hold
            lane.waiting.remove(hold)
            self._waiting -= 1
            if not was_first:
                return None
        return self._go_on(lane, finished=hold.entry.origin if hold.is_finished else NOTHING)

    def due(self, now: float) -> list[Hold]:
        """Returns the holds for which to ask the server whether their predecessors are finished."""
        if all(lane.ask_at > now for lane in self._asking):
            return []
        return [lane.waiting[0] for lane in self._asking if lane.ask_with_others_at <= now]

    def answered(self, hold: Hold, now: float, *, finished: bool) -> bool:
        """Takes an answer of the server, maybe out of date. Returns whether the hold's turn has come."""
        lane = self._lane_of.get(hold)
        if lane is None or lane not in self._asking or lane.waiting[0] is not hold:
            return False
        if finished:
            self._take_turn(lane)
        else:
            backoff = lane.backoff.next()
            lane.ask_at, lane.ask_with_others_at = now + backoff, now + backoff / 2
        return finished

    def clear(self) -> list[Hold]:
        """Removes and returns all holds that wait; current ones stay."""
        waiting = [hold for lane in self._lanes.values() for hold in lane.waiting]
        for hold in waiting:
            del self._lane_of[hold]
        self._lanes = {lane.key: lane for lane in self._lane_of.values()}
        for lane in self._lanes.values():
            lane.waiting.clear()
        self._asking.clear()
        self._waiting = 0
        return waiting

    def _go_on(self, lane: _Lane, finished: str = NOTHING) -> Hold | None:
        """Looks at a lane whose first hold has changed. Returns that hold if its turn has come.

        `finished` is the entry that the group has finished just now.
        """
        self._asking.pop(lane, None)
        if lane.current is not None:
            return None
        if not lane.waiting:
            del self._lanes[lane.key]
            return None
        first = lane.waiting[0]
        had_its_turn = first.source.retry and first.entry.replay is None
        if had_its_turn or first.after in (NOTHING, finished):
            return self._take_turn(lane)
        lane.ask_at = lane.ask_with_others_at = -math.inf
        lane.backoff = self._new_backoff()
        self._asking[lane] = None
        return None

    def _take_turn(self, lane: _Lane) -> Hold:
        self._asking.pop(lane, None)
        self._waiting -= 1
        lane.current = lane.waiting.pop(0)
        return lane.current


_BATCH = 500


class OrderPoller:
    """Asks the server whether the predecessors of waiting entries are finished.

    Calls `on_turn` with the holds whose turn has come.
    """

    def __init__(
        self,
        call: Callable[..., Awaitable[Any]],
        commands: GroupCalls,
        key_order: KeyOrder,
        on_turn: Callable[[Sequence[Hold]], None],
    ) -> None:
        self._call = call
        self._commands = commands
        self._key_order = key_order
        self._on_turn = on_turn
        self._look = asyncio.Event()
        self._failures = FailureLog(f"ask for finished predecessors in {commands.main.key}")

    def look(self) -> None:
        """Looks again, as other holds may wait."""
        self._look.set()

    async def run(self) -> None:
        """Asks until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            self._look.clear()
            ask_at = self._key_order.ask_at
            if ask_at is None or ask_at > loop.time():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(ask_at):
                        await self._look.wait()
            due = self._key_order.due(loop.time())
            for source in self._commands.sources:
                if of_source := [hold for hold in due if hold.source == source][:_BATCH]:
                    await self._ask(source, of_source)

    async def _ask(self, source: Source, holds: Sequence[Hold]) -> None:
        replies = await self._finished(source, holds)
        now = asyncio.get_running_loop().time()
        answers = zip(holds, map(bool, replies), strict=True)
        self._on_turn([hold for hold, done in answers if self._key_order.answered(hold, now, finished=done)])

    async def _finished(self, source: Source, holds: Sequence[Hold]) -> Sequence[int]:
        """Asks whether the predecessor of each is finished; 0 for all if the server does not answer."""
        try:
            replies: Sequence[int] = await self._call(*self._commands.turn(source, holds))
        except AgentStreamError as error:
            self._failures.failed(error)
            return [0] * len(holds)
        self._failures.recovered()
        return replies
