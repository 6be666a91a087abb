"""Lines that `agentstream dev` shows: one per event, log record and line of a process; errors of the user."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Protocol, TextIO

from agentstream.printable import coloured, printable
from agentstream_operator.reconcile.report.view import GroupView, View
from agentstream_operator.resources.meta import ResourceKey

if TYPE_CHECKING:
    from agentstream_operator.local.screen.table import LiveTable

PROGRESS_EVERY = 5.0
"""Seconds between two lines about the progress of a group."""


class LocalError(Exception):
    """The user's input or the state of the machine prevents `agentstream dev`; shown without a traceback.

    Each line is a problem, complete in itself.
    """

    def __init__(self, *lines: str) -> None:
        super().__init__("\n".join(lines))
        self.lines: Sequence[str] = lines


def cannot(action: str, error: OSError) -> LocalError:
    """Builds the error for an action that the operating system refused: `cannot write to DIR: …`."""
    return LocalError(f"cannot {action}: {error.strerror or error}")


class Output(Protocol):
    """Takes lines for the user."""

    def say(self, text: str) -> None:
        """Shows an event."""
        ...

    def relay(self, name: str, text: str) -> None:
        """Shows a line that the process of this name printed."""
        ...


def open_screen(file: TextIO, closed: Callable[[], None]) -> Lines | LiveTable:
    """Opens a live table on a terminal, and lines elsewhere; calls `closed` when writing lines fails."""
    if file.isatty():
        from rich.console import Console  # noqa: PLC0415 - only needed on a terminal

        from agentstream_operator.local.screen.table import LiveTable  # noqa: PLC0415

        return LiveTable(Console(file=file, highlight=False, soft_wrap=True))
    return Lines(file, closed)


def progress(group: GroupView) -> str:
    """Formats the progress of a group as a line."""
    account = group.account
    parts = [
        f"backlog {'?' if group.backlog is None else group.backlog}",
        f"{group.running or 0} running",
        f"{account.acknowledged} acknowledged",
        f"{'?' if group.dead is None else group.dead} dead letters",
    ]
    if group.delayed:
        parts.insert(1, f"{group.delayed} delayed retries")
    if account.lost:
        parts.append(f"{account.lost} LOST")
    return f"{group.resource}: {', '.join(parts)}"


@dataclass(slots=True, eq=False)
class Lines:
    """Writes lines to a file; calls `closed` when it cannot, as after the reader of a pipe has ended."""

    file: TextIO
    closed: Callable[[], None]
    clock: Callable[[], float] = time.monotonic
    _shown: dict[ResourceKey, str] = field(init=False, default_factory=dict)
    _next: float = field(init=False, default=0.0)

    def say(self, text: str) -> None:
        """Writes an event with its time."""
        self._write(f"{datetime.now().astimezone():%H:%M:%S} {printable(text)}")

    def relay(self, name: str, text: str) -> None:
        """Writes a line of a process."""
        self._write(f"[{name}] {coloured(text)}")

    def show(self, view: View) -> None:
        """Writes the progress of groups whose numbers changed, at most every `PROGRESS_EVERY` seconds."""
        now = self.clock()
        if now < self._next or any(group.backlog is None for group in view.groups):
            return
        self._next = now + PROGRESS_EVERY
        for group in view.groups:
            line = progress(group)
            if self._shown.setdefault(group.resource, line) != line:
                self._shown[group.resource] = line
                self.say(line)

    def close(self) -> None:
        """Does nothing: the terminal is as it was."""

    def _write(self, line: str) -> None:
        try:
            self.file.write(f"{line}\n")
            self.file.flush()
        except OSError:
            self.closed()


class _OutputHandler(logging.Handler):
    """Shows log records as lines, without the tracebacks, which are of no use to a user."""

    def __init__(self, output: Output) -> None:
        super().__init__(logging.WARNING)
        self._output = output

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        reason = f": {type(error).__name__}: {error}" if error is not None else ""
        self._output.say(f"{record.levelname.lower()}: {record.getMessage()}{reason}")


@contextmanager
def relayed_logs(output: Output) -> Iterator[None]:
    """Shows warnings and errors that the reconcilers log."""
    handler = _OutputHandler(output)
    log = logging.getLogger("agentstream_operator")
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
