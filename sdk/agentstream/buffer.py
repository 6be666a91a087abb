"""Deliveries that wait for a handler, and which of them may start: a pure decision.

A message that fails again and again may be one that takes its process down. From its third attempt on it
therefore runs alone: it starts when nothing else runs, or after waiting for that as long as a lease, and
nothing else starts before it is settled.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from agentstream.entries import Entry
from agentstream.message import Message

ALONE_FROM = 3


class Waiting:
    """An entry with its message and what was read from its payload, ready to be handed out."""

    __slots__ = ("entry", "message", "payload")

    def __init__(self, entry: Entry, message: Message, payload: Any) -> None:
        self.entry = entry
        self.message = message
        self.payload = payload


class Buffer:
    """Deliveries in the order of their arrival, the suspect ones apart.

    Attributes:
        patience: seconds that a suspect waits for running handlers to end.
    """

    def __init__(self, patience: float) -> None:
        self.patience = patience
        self._ordinary: deque[Waiting] = deque()
        self._suspect: deque[Waiting] = deque()
        self._suspect_since: float | None = None
        self._alone: Entry | None = None

    def __len__(self) -> int:
        """How many wait."""
        return len(self._ordinary) + len(self._suspect)

    @property
    def patience_ends(self) -> float | None:
        """When a suspect that waits for others to end starts anyway; None if none waits."""
        return None if self._suspect_since is None else self._suspect_since + self.patience

    def put(self, waiting: Waiting) -> None:
        """Adds a delivery."""
        is_suspect = waiting.entry.next_attempt >= ALONE_FROM
        (self._suspect if is_suspect else self._ordinary).append(waiting)

    def take(self, running: int, now: float) -> Waiting | None:
        """The delivery that starts next; None if none may.

        Args:
            running: how many deliveries have started and are not settled.
            now: seconds of any clock that never goes back.
        """
        if self._alone is not None:
            return None
        if not self._suspect:
            return self._ordinary.popleft() if self._ordinary else None
        if self._suspect_since is None:
            self._suspect_since = now
        if running and now < self._suspect_since + self.patience:
            return None
        self._suspect_since = None
        waiting = self._suspect.popleft()
        self._alone = waiting.entry
        return waiting

    def ended(self, entry: Entry) -> None:
        """Notes that a delivery that was taken is settled, or could not start."""
        if self._alone is entry:
            self._alone = None

    def discard(self, entry: Entry) -> None:
        """Removes a delivery that is not held any more."""
        for queue in (self._ordinary, self._suspect):
            for waiting in queue:
                if waiting.entry is entry:
                    queue.remove(waiting)
                    break
        if not self._suspect:
            self._suspect_since = None

    def clear(self) -> list[Entry]:
        """Removes and returns everything that waits."""
        entries = [waiting.entry for queue in (self._ordinary, self._suspect) for waiting in queue]
        self._ordinary.clear()
        self._suspect.clear()
        self._suspect_since = None
        return entries
