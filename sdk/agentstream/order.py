"""Asking the server whether an entry's predecessor is finished, for as long as there is something to ask."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from agentstream.calls import GroupCalls
from agentstream.entries import Entry
from agentstream.errors import AgentStreamError
from agentstream.lanes import Lanes
from agentstream.trouble import Trouble

_BATCH = 500


class Turns:
    """Asks for the entries of one group that wait for their turn.

    Args:
        call: sends a command and returns its reply.
        calls: the commands of this consumer.
        lanes: the entries.
        on_turn: called with those whose turn has come.
    """

    def __init__(
        self,
        call: Callable[..., Awaitable[Any]],
        calls: GroupCalls,
        lanes: Lanes,
        on_turn: Callable[[Sequence[Entry]], None],
    ) -> None:
        self._call = call
        self._calls = calls
        self._lanes = lanes
        self._on_turn = on_turn
        self._look = asyncio.Event()
        self._trouble = Trouble(f"ask whose turn it is in {calls.main.key}")

    def look(self) -> None:
        """There may be something to ask."""
        self._look.set()

    async def run(self) -> None:
        """Asks until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            self._look.clear()
            ask_at = self._lanes.ask_at
            if ask_at is None or ask_at > loop.time():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(ask_at):
                        await self._look.wait()
            if due := self._lanes.due(loop.time())[:_BATCH]:
                await self._ask(due)

    async def _ask(self, entries: Sequence[Entry]) -> None:
        replies = await self._finished(entries)
        now = asyncio.get_running_loop().time()
        self._on_turn(
            [
                entry
                for entry, finished in zip(entries, replies, strict=True)
                if self._lanes.answered(entry, now, finished=bool(finished))
            ]
        )

    async def _finished(self, entries: Sequence[Entry]) -> Sequence[int]:
        """Whether the predecessor of each is finished; not, as long as the server does not say so."""
        try:
            replies: Sequence[int] = await self._call(
                *self._calls.turn(entry.after or "" for entry in entries)
            )
        except AgentStreamError as error:
            self._trouble.met(error)
            return [0] * len(entries)
        self._trouble.over()
        return replies
