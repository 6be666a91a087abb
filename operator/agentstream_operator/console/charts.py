"""Draws lines over time as SVG, without anything from elsewhere; decides nothing, and reads nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple

from markupsafe import Markup

WIDTH, HEIGHT = 720, 160
_LEFT, _BOTTOM, _TOP = 56, 22, 10
_STEPS: Final = (1.0, 2.0, 5.0, 10.0)


class Line(NamedTuple):
    """A line of a chart: its CSS class, what it shows, and a value for each time; None leaves a gap."""

    kind: str
    name: str
    values: Sequence[float | None]


def chart(title: str, times: Sequence[float], lines: Sequence[Line]) -> Markup:
    """Draws lines over times in seconds since 1970; without two points, says so.

    Args:
        title: what is shown, for those who cannot see it.
        times: in ascending order.
        lines: of as many values as there are times.
    """
    known = [value for line in lines for value in line.values if value is not None]
    if len(times) < 2 or not known:  # noqa: PLR2004 - a line has two ends
        return Markup('<p class="quiet">{}: nothing to draw yet; points come every five seconds.</p>').format(
            title
        )
    top = _round_up(max(known))
    parts = [
        Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}"><title>{}</title>').format(
            WIDTH, HEIGHT, title, title
        )
    ]
    for value in (0.0, top / 2, top):
        y = _y(value, top)
        parts.append(
            Markup(
                '<line class="grid" x1="{}" y1="{}" x2="{}" y2="{}"/><text x="{}" y="{}">{}</text>'
            ).format(_LEFT, y, WIDTH, y, _LEFT - 6, y + 4, f"{value:,g}")
        )
    for at, anchor in ((times[0], "start"), (times[-1], "end")):
        text = Markup('<text class="time {}" x="{}" y="{}">{:%H:%M:%S}</text>')
        parts.append(text.format(anchor, _x(at, times), HEIGHT - 4, datetime.fromtimestamp(at, UTC)))
    parts += [
        Markup('<polyline class="{}" points="{}"/>').format(line.kind, points)
        for line in lines
        for points in _pieces(times, line.values, top)
    ]
    names = Markup(" ").join(
        Markup('<span class="key {}">{}</span>').format(line.kind, line.name) for line in lines
    )
    return Markup("{}</svg><p>{}</p>").format(Markup("").join(parts), names)


def _pieces(times: Sequence[float], values: Sequence[float | None], top: float) -> list[str]:
    """The points of a line, in pieces between gaps."""
    pieces: list[list[str]] = [[]]
    for at, value in zip(times, values, strict=True):
        if value is None:
            pieces.append([])
        else:
            pieces[-1].append(f"{_x(at, times):.1f},{_y(value, top):.1f}")
    return [" ".join(piece) for piece in pieces if piece]


def _x(at: float, times: Sequence[float]) -> float:
    return _LEFT + (WIDTH - _LEFT) * (at - times[0]) / ((times[-1] - times[0]) or 1.0)


def _y(value: float, top: float) -> float:
    return _TOP + (HEIGHT - _BOTTOM - _TOP) * (1 - value / top)


def _round_up(value: float) -> float:
    """The next number with one digit that is 1, 2 or 5."""
    if value <= 1:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in _STEPS if value <= step * power)
