"""Summarizes the messages of a run of `agentstream dev`, as a table or as JSON."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

import msgspec

from agentstream_operator.plan.accounting import Account, Latency
from agentstream_operator.reconcile.report.view import GroupView, View

_HEAD = ("", "sent", "acknowledged", "dead-lettered", "lost", "waiting", "p50", "p95")
_SECOND = 1000


class Totals(msgspec.Struct, frozen=True, rename="camel"):
    """Numbers of messages of a run.

    Attributes:
        sent: added to the stream.
        acknowledged: acknowledged after processing.
        skipped: acknowledged without processing, being routed to other agents.
        retried: failed attempts that were followed by another.
        dead_lettered: moved to the dead letters.
        lost: added, and neither settled nor on the server any more.
        waiting: not settled; kept for the next run.
        p50_ms: median time from sending to acknowledging, in ms; None without acknowledged messages.
        p95_ms: 95th percentile of it.
    """

    sent: int
    acknowledged: int
    skipped: int
    retried: int
    dead_lettered: int
    lost: int
    waiting: int
    p50_ms: float | None
    p95_ms: float | None


class GroupSummary(msgspec.Struct, frozen=True):
    """The totals of a group."""

    namespace: str
    name: str
    stream: str
    numbers: Totals


class Summary(msgspec.Struct, frozen=True):
    """The totals of a run.

    Attributes:
        seconds: its duration.
        groups: totals by group.
        total: totals of all groups; a message for two groups counts as sent once and acknowledged twice.
    """

    seconds: float
    groups: tuple[GroupSummary, ...]
    total: Totals


def summarise(view: View, seconds: float) -> Summary:
    """Computes the totals from the last view."""
    groups = tuple(
        GroupSummary(g.resource.namespace, g.resource.name, g.stream, _numbers(g.account, _waiting([g])))
        for g in view.groups
    )
    sent: dict[tuple[str, str], int] = {}
    for group in view.groups:
        stream = (group.resource.namespace, group.stream)
        sent[stream] = max(sent.get(stream, 0), group.account.sent)
    counts = ("acknowledged", "skipped", "retried", "dead", "lost")
    total = Account(
        sent=sum(sent.values()),
        latency=Latency(
            sum((Counter(g.account.latency.counts) for g in view.groups), Counter()),
            max(
                (g.account.latency.slowest for g in view.groups if g.account.latency.counts), default=math.inf
            ),
        ),
        **{count: sum(getattr(g.account, count) for g in view.groups) for count in counts},
    )
    return Summary(round(seconds, 3), groups, _numbers(total, _waiting(view.groups)))


def as_json(summary: Summary) -> str:
    """Formats the summary as a line of JSON."""
    return msgspec.json.encode(summary).decode()


def as_text(summary: Summary) -> str:
    """Formats the summary as a table."""
    rows: list[tuple[str, ...]] = [_HEAD]
    rows += [_row(group.name, group.numbers) for group in summary.groups]
    rows.append(_row("total", summary.total))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *cells in rows:
        padded = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        lines.append("  ".join((name.ljust(widths[0]), *padded)))
    return "\n".join(lines)


def _numbers(account: Account, waiting: int) -> Totals:
    return Totals(
        sent=account.sent,
        acknowledged=account.acknowledged,
        skipped=account.skipped,
        retried=account.retried,
        dead_lettered=account.dead,
        lost=account.lost,
        waiting=waiting,
        p50_ms=_finite(account.latency.percentile(0.5)),
        p95_ms=_finite(account.latency.percentile(0.95)),
    )


def _finite(ms: float | None) -> float | None:
    # of the last bucket only the lower bound is known
    return None if ms is None or ms == float("inf") else round(ms, 1)


def _waiting(groups: Iterable[GroupView]) -> int:
    return sum((group.backlog or 0) + (group.delayed or 0) for group in groups)


def _row(name: str, n: Totals) -> tuple[str, ...]:
    counts = (n.sent, n.acknowledged, n.dead_lettered, n.lost, n.waiting)
    return (name, *(f"{count:,}" for count in counts), _time(n.p50_ms), _time(n.p95_ms))


def _time(ms: float | None) -> str:
    if ms is None:
        return "-"
    return f"{ms:.1f} ms" if ms < _SECOND else f"{ms / _SECOND:.1f} s"
