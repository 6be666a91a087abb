"""Prints documents of the API: as a table, JSON or YAML, once or again and again."""

from __future__ import annotations

import io
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TextIO, TypeVar

from pydantic import BaseModel

from agentstream.printable import printable
from agentstream_operator.queue_api.figures import NONE, UNKNOWN, count, rate, span

__all__ = ["NONE", "UNKNOWN", "Column", "Printer", "clock", "count", "dump", "lay_out", "rate", "span"]

Row = TypeVar("Row")
Shown = TypeVar("Shown")

REFRESH = 2.0
"""Seconds between two looks of `--watch`."""

_LEAST = 12
"""The fewest characters that a column is cut to."""

_RED, _PLAIN = "\x1b[31m", "\x1b[0m"
_HOME, _END_OF_LINE, _BELOW = "\x1b[H", "\x1b[K", "\x1b[J"
_OTHER_SCREEN, _THIS_SCREEN = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"


@dataclass(frozen=True, slots=True)
class Column(Generic[Row]):
    """A column of a table."""

    title: str
    value: Callable[[Row], str]
    """The text of a cell; it may be of others."""

    right: bool = False
    """Whether it is aligned to the right, as numbers are."""

    wide: bool = False
    """Whether only `-o wide` has it."""

    elastic: bool = False
    """Whether it is cut where a terminal is too narrow."""

    alarm: Callable[[Row], bool] | None = None
    """Whether a cell is red on a terminal."""


class Printer:
    """Writes to a file in one format; with colours and cut to its width only where that is a terminal."""

    def __init__(self, file: TextIO, output: str = "table") -> None:
        self._file = file
        self.output = output
        self.terminal = file.isatty()
        # https://no-color.org: set and not empty
        self.colours = self.terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

    @property
    def structured(self) -> bool:
        """Whether programs read the output: JSON or YAML."""
        return self.output in {"json", "yaml"}

    def line(self, text: str = "") -> None:
        """Prints a line; what in it is of others does no harm."""
        self._file.write(f"{printable(text, 10_000)}\n")
        self._file.flush()

    def raw(self, text: str) -> None:
        """Prints a text as it is, and nothing after it: for what goes into files."""
        self._file.write(text)
        self._file.flush()

    def document(self, document: BaseModel | Sequence[BaseModel]) -> None:
        """Prints a document in the format that programs read; several as a list."""
        self.raw(dump(document, "yaml" if self.output == "yaml" else "json"))

    def table(self, rows: Sequence[Row], columns: Sequence[Column[Row]], *, head: bool = True) -> None:
        """Prints rows as a table."""
        width = shutil.get_terminal_size().columns if self.terminal and self.output != "wide" else None
        for line in lay_out(rows, self._meant(columns), width, head=head, colours=self.colours):
            self._file.write(f"{line}\n")
        self._file.flush()

    def show(
        self,
        document: BaseModel,
        rows: Sequence[Row],
        columns: Sequence[Column[Row]],
        empty: str = "",
    ) -> None:
        """Prints a document for programs, or its rows as a table; for no rows, the line `empty`."""
        if self.structured:
            self.document(document)
        elif rows or not empty:
            self.table(rows, columns)
        else:
            self.line(empty)

    def watch(self, look: Callable[[], Shown], show: Callable[[Printer, Shown], None]) -> None:
        """Shows what there is again and again, until Ctrl-C.

        A terminal is drawn anew each time; elsewhere the lines follow that were not there the time before.

        Args:
            look: gets what to show.
            show: prints it on the printer that it gets.
        """
        frames = self._frames(look, show)
        if self.terminal and not self.structured:
            self._draw(frames)
        else:
            self._append(frames)

    def _frames(
        self, look: Callable[[], Shown], show: Callable[[Printer, Shown], None]
    ) -> Iterator[list[str]]:
        while True:
            paper = Printer(io.StringIO(), self.output)
            paper.terminal, paper.colours = self.terminal, self.colours
            show(paper, look())
            yield paper._file.getvalue().splitlines()  # type: ignore[attr-defined]
            time.sleep(REFRESH)

    def _draw(self, frames: Iterator[list[str]]) -> None:
        self.raw(_OTHER_SCREEN)
        try:
            for lines in frames:
                height = shutil.get_terminal_size().lines
                shown = lines if len(lines) < height else [*lines[: height - 2], "…"]
                self.raw(_HOME + "".join(f"{line}{_END_OF_LINE}\r\n" for line in shown) + _BELOW)
        finally:
            self.raw(_THIS_SCREEN)

    def _append(self, frames: Iterator[list[str]]) -> None:
        before: list[str] = []
        for lines in frames:
            known = set(before)
            # a document for programs is one whole
            new = lines if self.structured and lines != before else [x for x in lines if x not in known]
            self.raw("".join(f"{line}\n" for line in new))
            before = lines

    def _meant(self, columns: Sequence[Column[Row]]) -> list[Column[Row]]:
        return [column for column in columns if self.output == "wide" or not column.wide]


def dump(document: BaseModel | Sequence[BaseModel], output: str) -> str:
    """Formats a document as JSON or YAML; controls in texts of others are escaped in both."""
    whole: Any
    if isinstance(document, BaseModel):
        whole = document.model_dump(mode="json", by_alias=True)
    else:
        whole = [each.model_dump(mode="json", by_alias=True) for each in document]
    if output == "json":
        return json.dumps(whole, indent=2) + "\n"
    import yaml

    return str(yaml.safe_dump(whole, sort_keys=False))


def lay_out(
    rows: Sequence[Row],
    columns: Sequence[Column[Row]],
    width: int | None = None,
    *,
    head: bool = True,
    colours: bool = False,
) -> list[str]:
    """Lays rows out as the lines of a table; its elastic columns are cut where it is wider than `width`."""
    cells = [[printable(column.value(row)) for column in columns] for row in rows]
    titles = [[column.title for column in columns]] if head else []
    widths = [max(map(len, each), default=0) for each in zip(*titles, *cells, strict=True)]
    if width is not None:
        _narrow(widths, columns, width)
    lines = []
    for number, texts in enumerate([*titles, *cells]):
        parts = []
        for text, column, size in zip(texts, columns, widths, strict=True):
            cut = text if len(text) <= size else f"{text[: size - 1]}…"
            cell = cut.rjust(size) if column.right else cut.ljust(size)
            if (
                colours
                and column.alarm
                and number >= len(titles)
                and column.alarm(rows[number - len(titles)])
            ):
                cell = f"{_RED}{cell}{_PLAIN}"
            parts.append(cell)
        lines.append("  ".join(parts).rstrip())
    return lines


def _narrow(widths: list[int], columns: Sequence[Column[Row]], width: int) -> None:
    """Takes from elastic columns, the last one first, what the lines are too long by."""
    too_much = sum(widths) + 2 * (len(widths) - 1) - width
    for index in reversed(range(len(widths))):
        if too_much > 0 and columns[index].elastic:
            taken = min(too_much, max(widths[index] - _LEAST, 0))
            widths[index] -= taken
            too_much -= taken


def clock(at: datetime | None, now: datetime | None = None) -> str:
    """Formats a time in the zone of this machine: `09:02:11`, with its date if that is not today."""
    if at is None:
        return UNKNOWN
    local, today = at.astimezone(), (now or datetime.now().astimezone()).astimezone()
    return f"{local:%H:%M:%S}" if local.date() == today.date() else f"{local:%Y-%m-%d %H:%M:%S}"
