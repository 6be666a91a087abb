"""How long it took until all was well, case by case: a table for whoever reads the run."""

from __future__ import annotations

from dataclasses import dataclass, field

from harness.ledger import Counts

_HEAD = (
    "case",
    "after",
    "what that is",
    "longest wait of a message",
    "sent",
    "lost",
    "handled twice",
)


@dataclass(frozen=True)
class Recovery:
    """What one case came to.

    Attributes:
        case: what was done.
        seconds: how long it took until all was well.
        meaning: how that was seen.
        counts: what became of the messages; None where another row of the case says it.
    """

    case: str
    seconds: float
    meaning: str
    counts: Counts | None = None


@dataclass
class Recoveries:
    """All cases of a run."""

    rows: list[Recovery] = field(default_factory=list)

    def table(self) -> str:
        """The cases as a Markdown table."""
        cells = [_HEAD, ("---",) * len(_HEAD), *(_cells(row) for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return "".join(f"| {' | '.join(map(str.ljust, row, widths))} |\n" for row in cells)


def _cells(row: Recovery) -> tuple[str, ...]:
    counts = row.counts
    seconds = f"{row.seconds:.1f} s" if row.seconds >= 1 else f"{row.seconds * 1000:.0f} ms"
    if counts is None:
        return row.case, seconds, row.meaning, "", "", "", ""
    return (
        row.case,
        seconds,
        row.meaning,
        f"{counts.longest:.1f} s",
        f"{counts.sent:,}",
        f"{len(counts.lost):,}",
        f"{counts.twice:,}",
    )
