"""Whose turn it is among entries with ordering keys: a pure decision.

Entries of one key form a lane, in which one at a time is in hand: from when its turn has come until it is
settled. Every entry names its predecessor. Its turn is when the group has finished that, as this process
knows if it has just done so itself; where others may have the predecessor, the server has to be asked.

An entry of the retry stream had its turn before it was put off: it waits for nothing but its lane. Whatever
waits, waits for what was added earlier, so nothing waits in a circle.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from bisect import insort
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from agentstream.consuming.hold import Hold
from agentstream.errors import AgentStreamError
from agentstream.protocol.commands import GroupCalls
from agentstream.protocol.entry import NOTHING, position
from agentstream.transport.retry import Backoff, FailureLog

# Of so many keys that nothing waits for, the last finished entry is remembered.
_REMEMBERED = 2_000


def _place(entry: Hold) -> tuple[int, int]:
    return position(entry.entry.origin)


class _Lane:
    """The entries of one key that this process holds.

    Attributes:
        key: the key.
        in_hand: the one whose turn it is.
        waiting: the others, oldest first.
        ask_at: when to ask about the first of these.
        ask_with_others_at: from when on to do so if others are asked about.
        backoff: how long to wait when its turn has not come.
    """

    __slots__ = ("ask_at", "ask_with_others_at", "backoff", "in_hand", "key", "waiting")

    def __init__(self, key: str) -> None:
        self.key = key
        self.in_hand: Hold | None = None
        self.waiting: list[Hold] = []
        self.ask_at = self.ask_with_others_at = -math.inf
        self.backoff: Backoff


class KeyOrder:
    """The entries with ordering keys that this process holds.

    Args:
        backoff: makes the delays after which it is asked again whether it is the turn of an entry.
    """

    def __init__(self, backoff: Callable[[], Backoff] = lambda: Backoff(0.002, 0.25)) -> None:
        self._new_pause = backoff
        self._lane_of: dict[Hold, _Lane] = {}
        self._key_order: dict[str, _Lane] = {}
        self._asking: dict[_Lane, None] = {}
        self._finished: dict[str, str] = {}
        self._waiting = 0

    def __len__(self) -> int:
        """How many entries wait for their turn."""
        return self._waiting

    @property
    def ask_at(self) -> float | None:
        """When there is something to ask; None if there is not."""
        return min((lane.ask_at for lane in self._asking), default=None)

    def put(self, entry: Hold) -> bool:
        """Adds an entry that has a key. Returns whether its turn has come."""
        key = entry.entry.key
        lane = self._key_order.get(key)
        if lane is None:
            lane = self._key_order[key] = _Lane(key)
        self._lane_of[entry] = lane
        insort(lane.waiting, entry, key=_place)
        self._waiting += 1
        return lane.waiting[0] is entry and self._go_on(lane) is entry

    def leave(self, entry: Hold) -> Hold | None:
        """Removes an entry that is settled or not held any more. Returns the one whose turn comes by that."""
        lane = self._lane_of.pop(entry, None)
        if lane is None:
            return None
        if entry.is_finished:
            self._remember(lane.key, entry.entry.origin)
        if lane.in_hand is entry:
            lane.in_hand = None
        else:
            was_first = lane.waiting[0] is entry
            lane.waiting.remove(entry)
            self._waiting -= 1
            if not was_first:
                return None
        return self._go_on(lane)

    def due(self, now: float) -> list[Hold]:
        """The entries for which the server is to be asked whether their predecessors are finished."""
        if all(lane.ask_at > now for lane in self._asking):
            return []
        return [lane.waiting[0] for lane in self._asking if lane.ask_with_others_at <= now]

    def answered(self, entry: Hold, now: float, *, finished: bool) -> bool:
        """Takes an answer, which may be of no use by now. Returns whether the entry's turn has come."""
        lane = self._lane_of.get(entry)
        if lane is None or lane not in self._asking or lane.waiting[0] is not entry:
            return False
        if finished:
            self._recover_own(lane)
        else:
            backoff = lane.backoff.next()
            lane.ask_at, lane.ask_with_others_at = now + backoff, now + backoff / 2
        return finished

    def clear(self) -> list[Hold]:
        """Removes and returns everything that waits; what is in hand stays."""
        waiting = [entry for lane in self._key_order.values() for entry in lane.waiting]
        for entry in waiting:
            del self._lane_of[entry]
        self._key_order = {lane.key: lane for lane in self._lane_of.values()}
        for lane in self._key_order.values():
            lane.waiting.clear()
        self._asking.clear()
        self._waiting = 0
        return waiting

    def _go_on(self, lane: _Lane) -> Hold | None:
        """Looks at a lane with another first entry. Returns that if its turn has come."""
        self._asking.pop(lane, None)
        if lane.in_hand is not None:
            return None
        if not lane.waiting:
            del self._key_order[lane.key]
            return None
        first = lane.waiting[0]
        if first.source.retry or first.after in (NOTHING, self._finished.get(lane.key)):
            return self._recover_own(lane)
        lane.ask_at = lane.ask_with_others_at = -math.inf
        lane.backoff = self._new_pause()
        self._asking[lane] = None
        return None

    def _recover_own(self, lane: _Lane) -> Hold:
        self._asking.pop(lane, None)
        self._waiting -= 1
        lane.in_hand = lane.waiting.pop(0)
        return lane.in_hand

    def _remember(self, key: str, entry_id: str) -> None:
        self._finished.pop(key, None)
        self._finished[key] = entry_id
        if len(self._finished) > _REMEMBERED:
            del self._finished[next(iter(self._finished))]


_BATCH = 500


class OrderPoller:
    """Asks for the entries of one group that wait for their turn.

    Args:
        call: sends a command and returns its reply.
        calls: the commands of this consumer.
        key_order: the entries.
        on_turn: called with those whose turn has come.
    """

    def __init__(
        self,
        call: Callable[..., Awaitable[Any]],
        calls: GroupCalls,
        key_order: KeyOrder,
        on_turn: Callable[[Sequence[Hold]], None],
    ) -> None:
        self._call = call
        self._calls = calls
        self._key_order = key_order
        self._on_turn = on_turn
        self._look = asyncio.Event()
        self._failures = FailureLog(f"ask whose turn it is in {calls.main.key}")

    def look(self) -> None:
        """There may be something to ask."""
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
            if due := self._key_order.due(loop.time())[:_BATCH]:
                await self._ask(due)

    async def _ask(self, entries: Sequence[Hold]) -> None:
        replies = await self._finished(entries)
        now = asyncio.get_running_loop().time()
        self._on_turn(
            [
                entry
                for entry, finished in zip(entries, replies, strict=True)
                if self._key_order.answered(entry, now, finished=bool(finished))
            ]
        )

    async def _finished(self, entries: Sequence[Hold]) -> Sequence[int]:
        """Whether the predecessor of each is finished; not, as long as the server does not say so."""
        try:
            replies: Sequence[int] = await self._call(
                *self._calls.turn(entry.after or "" for entry in entries)
            )
        except AgentStreamError as error:
            self._failures.failed(error)
            return [0] * len(entries)
        self._failures.recovered()
        return replies
