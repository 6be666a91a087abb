"""Shows how far a replay is: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import typer

from agentstream.printable import printable
from agentstream_operator.commands.output import Printer
from agentstream_operator.queue_api.documents import ReplayAnswer

Describe = Callable[[ReplayAnswer], str]


class ProgressView(Protocol):
    """Shows how far a replay is."""

    def show(self, replay: ReplayAnswer) -> None:
        """Shows it as it is now."""


@contextmanager
def open_progress(printer: Printer, describe: Describe) -> Iterator[ProgressView]:
    """Opens what suits the output; where programs read it, nothing is shown."""
    if printer.structured:
        yield _Silent()
    elif printer.terminal:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as RichProgress

        # what programs read goes to standard output, a bar is for whoever looks
        console = Console(stderr=True, highlight=False, no_color=not printer.colours)
        columns = (BarColumn(20), TextColumn("{task.description}", markup=False))
        with RichProgress(*columns, console=console) as bar:
            yield _Bar(bar.add_task("", total=None), bar.update, describe)
    else:
        yield _ProgressLines(printer, describe)


@contextmanager
def searching(what: str) -> Iterator[Callable[[int], None]]:
    """Says on a terminal how many messages a search has looked at: what it yields is called with that."""
    here = sys.stderr.isatty()

    def tell(scanned: int) -> None:
        if here and scanned:
            typer.echo(f"\r{printable(what)}: {scanned:,} looked at\x1b[K", err=True, nl=False)

    try:
        yield tell
    finally:
        if here:
            typer.echo("\r\x1b[K", err=True, nl=False)


class _Silent:
    def show(self, replay: ReplayAnswer) -> None:
        pass


class _ProgressLines:
    """Prints a line whenever something has changed."""

    def __init__(self, printer: Printer, describe: Describe) -> None:
        self._printer = printer
        self._describe = describe
        self._shown = ""

    def show(self, replay: ReplayAnswer) -> None:
        line = self._describe(replay)
        if line != self._shown:
            self._printer.line(line)
            self._shown = line


class _Bar:
    def __init__(self, task: int, update: Callable[..., None], describe: Describe) -> None:
        self._task = task
        self._update = update
        self._describe = describe

    def show(self, replay: ReplayAnswer) -> None:
        status = replay.status
        # the number that match is known only when all was looked at: until then, what was found so far
        total, done = (status.matched, status.moved) if status is not None else (None, None)
        text = printable(f"{self._describe(replay)} · Ctrl-C leaves it running")
        self._update(self._task, total=total or None, completed=done or 0, description=text)
