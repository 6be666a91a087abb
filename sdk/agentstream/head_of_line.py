"""What becomes of messages behind one that runs alone: after a moment, other processes may have them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from agentstream.buffer import Buffer
from agentstream.entries import Entry


class HeadOfLine:
    """Looks at a buffer again when a suspect has waited for others long enough, or others for it.

    Args:
        buffer: what waits for a handler.
        release: hands entries back.
        nudge: tells the group's consumers that there is something to claim.
        look_again: called when something else may start.
    """

    def __init__(
        self,
        buffer: Buffer,
        release: Callable[..., Awaitable[None]],
        nudge: Callable[[], Awaitable[None]],
        look_again: Callable[[], None],
    ) -> None:
        self._buffer = buffer
        self._release = release
        self._nudge = nudge
        self._look_again = look_again
        self._timer: asyncio.TimerHandle | None = None
        self._releases: set[asyncio.Task[None]] = set()
        self._stopped = False

    def watch(self) -> None:
        """Something started, ended or came."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        when = None if self._stopped else self._buffer.changes_at(time.monotonic())
        if when is not None:
            self._timer = asyncio.get_running_loop().call_at(when, self._waited)

    def stop(self) -> None:
        """Looks no more: whatever waits is about to be handed back."""
        self._stopped = True
        self.watch()

    async def ended(self) -> None:
        """Waits until what was to be handed back is, and others know."""
        await asyncio.gather(*self._releases)

    def _waited(self) -> None:
        behind = self._buffer.give_way(time.monotonic())
        if behind:
            task = asyncio.create_task(self._hand_back(behind))
            self._releases.add(task)
            task.add_done_callback(self._releases.discard)
        self._look_again()

    async def _hand_back(self, entries: list[Entry]) -> None:
        # a server that is away gives them to nobody; given up, each would have lost an attempt
        await self._release(*entries, patience=None)
        await self._nudge()
