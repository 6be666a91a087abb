"""What `agentstream dev` shows where there is no terminal: one line per change."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import TextIO

from agentstream_operator.reconcile.report.view import GroupView, View
from agentstream_operator.resources.meta import ResourceKey

PROGRESS_EVERY = 5.0
"""Seconds between two lines about the numbers of a group."""


def progress(group: GroupView) -> str:
    """The numbers of a group in a line."""
    account = group.account
    parts = [
        f"backlog {_known(group.backlog)}",
        f"{group.running or 0} running",
        f"{account.acknowledged} acknowledged",
        f"{_known(group.dead)} dead letters",
    ]
    if group.delayed:
        parts.insert(1, f"{group.delayed} retries later")
    if account.lost:
        parts.append(f"{account.lost} LOST")
    return f"{group.resource}: {', '.join(parts)}"


class Lines:
    """Writes lines to a file.

    Args:
        file: where to.
        closed: called when nobody reads them any more.
        clock: seconds on any steady clock.
    """

    def __init__(self, file: TextIO, *, closed: Callable[[], None], clock: Callable[[], float]) -> None:
        self._file = file
        self._closed = closed
        self._clock = clock
        self._shown: dict[ResourceKey, str] = {}
        self._next = 0.0

    def say(self, text: str) -> None:
        """Shows something that happened, with the time."""
        self._write(f"{datetime.now().astimezone():%H:%M:%S} {text}")

    def relay(self, name: str, text: str) -> None:
        """Shows a line that the process in this place printed."""
        self._write(f"[{name}] {text}")

    def show(self, view: View) -> None:
        """Shows the numbers of the groups that changed, now and then."""
        now = self._clock()
        if now < self._next or any(group.backlog is None for group in view.groups):
            return
        self._next = now + PROGRESS_EVERY
        for group in view.groups:
            line = progress(group)
            if self._shown.setdefault(group.resource, line) != line:
                self._shown[group.resource] = line
                self.say(line)

    def close(self) -> None:
        """Nothing has to be undone."""

    def _write(self, line: str) -> None:
        try:
            self._file.write(f"{line}\n")
            self._file.flush()
        except OSError:
            self._closed()


def _known(count: int | None) -> str:
    return "?" if count is None else str(count)
