"""The live table of `agentstream dev` on a terminal, below its lines."""

from __future__ import annotations

import zlib
from datetime import datetime

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from agentstream.printable import coloured, printable
from agentstream_operator.reconcile.report.view import GroupView, StreamView, View
from agentstream_operator.resources.meta import ResourceKey

_COLOURS = ("cyan", "yellow", "green", "magenta", "blue", "red")


class LiveTable:
    """Shows lines that scroll above a table of streams and groups."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, refresh_per_second=4, transient=True)
        self._table = ViewTable()
        self._live.start()

    def say(self, text: str) -> None:
        """Shows an event with its time."""
        self._console.print(Text(f"{datetime.now().astimezone():%H:%M:%S} {printable(text)}"))

    def relay(self, name: str, text: str) -> None:
        """Shows a line of a process."""
        prefix = Text(f"[{name}] ", style=_colour(name))
        self._console.print(prefix + Text.from_ansi(coloured(text)))

    def show(self, view: View) -> None:
        """Updates the table."""
        self._live.update(self._table.render(view))

    def close(self) -> None:
        """Removes the table."""
        self._live.stop()


class ViewTable:
    """Renders views; for an unknown number, its last known value."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[ResourceKey, str], int] = {}

    def render(self, view: View) -> Group:
        """Renders a view as two tables."""
        return Group(self._streams(view.streams), self._groups(view.groups))

    def _streams(self, streams: tuple[StreamView, ...]) -> Table:
        table = _table("stream", "length", "per second", "state")
        for stream in streams:
            table.add_row(
                _name(stream.resource),
                self._number(stream.resource, "length", stream.length),
                f"{stream.rate:,.1f}",
                _state(stream.reason, ready=stream.ready),
            )
        return table

    def _groups(self, groups: tuple[GroupView, ...]) -> Table:
        table = _table("group", "backlog", "consumers", "acknowledged", "dead letters", "state")
        for group in groups:
            running = "-" if group.replicas is None else f"{group.running or 0}/{group.replicas}"
            state = _state(group.reason, ready=group.ready)
            table.add_row(
                _name(group.resource),
                self._number(group.resource, "backlog", group.backlog),
                running,
                f"{group.account.acknowledged:,}",
                self._number(group.resource, "dead", group.dead),
                state if group.crashing is None else Text(printable(group.crashing), style="red"),
            )
        return table

    def _number(self, resource: ResourceKey, name: str, count: int | None) -> str:
        if count is not None:
            self._numbers[resource, name] = count
        latest = self._numbers.get((resource, name))
        return "?" if latest is None else f"{latest:,}"


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column(first, no_wrap=True)
    for other in others[:-1]:
        table.add_column(other, justify="right")
    table.add_column(others[-1], no_wrap=True)
    return table


def _name(key: ResourceKey) -> str:
    return key.name if key.namespace == "default" else f"{key.namespace}/{key.name}"


def _colour(process: str) -> str:
    """Chooses a colour, the same for all processes of a group."""
    return _COLOURS[zlib.crc32(process.rpartition("-")[0].encode()) % len(_COLOURS)]


def _state(reason: str, *, ready: bool) -> Text:
    return Text("ready", style="green") if ready else Text(str(reason), style="yellow")
