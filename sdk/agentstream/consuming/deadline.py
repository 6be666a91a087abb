"""Deadlines of handlers: one timer for all deliveries that a process has in hand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from agentstream.consuming.delivery import Delivery


class Deadlines:
    """Watches the deadlines of deliveries.

    Args:
        in_hand: the deliveries that handlers have.
    """

    def __init__(self, in_hand: Callable[[], Iterable[Delivery[Any]]]) -> None:
        self._in_hand = in_hand
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, deadline: float) -> None:
        """There is a deadline at this time of the event loop's clock."""
        if self._timer is None or deadline < self._timer.when():
            self.cancel()
            self._timer = asyncio.get_running_loop().call_at(deadline, self._look)

    def cancel(self) -> None:
        """Watches no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        ahead = []
        for delivery in list(self._in_hand()):
            if delivery.deadline is not None:
                if delivery.deadline > now:
                    ahead.append(delivery.deadline)
                else:
                    delivery._expire()  # noqa: SLF001 - no business of its handler
        if ahead:
            self.watch(min(ahead))
