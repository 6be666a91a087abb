"""Charts and histories are bounded, and draw what was measured."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from agentstream_operator.console.charts import HEIGHT, WIDTH, Line, chart
from agentstream_operator.console.history import EVERY, GROUPS, POINTS, History
from agentstream_operator.console.pages import ShownPage, render_main
from agentstream_operator.queue_api.documents import GroupNumbers, LagAnswer, ServerNumbers
from agentstream_operator.queue_api.troubles import Severity, Trouble


def group(name: str = "coder", backlog: int = 0) -> GroupNumbers:
    numbers: dict[str, Any] = {"name": name, "stream": "tasks", "backlog": backlog, "reason": "Ready"}
    return GroupNumbers(namespace="team", known=True, ready=True, **numbers)


def test_a_history_has_a_point_in_five_seconds_for_an_hour() -> None:
    history = History()
    for second in range(2 * POINTS * int(EVERY)):
        history.add(float(second), group(backlog=second))
    points = history.of("team", "coder")
    assert len(points) == POINTS
    assert {b.at - a.at for a, b in pairwise(points)} == {EVERY}
    assert points[-1].backlog == points[-1].at


def test_the_group_that_was_looked_at_longest_ago_is_forgotten_first() -> None:
    history = History()
    for number in range(GROUPS):
        history.add(0.0, group(name=f"g{number}"))
    history.add(9.0, group(name="g0"))
    history.add(9.0, group(name="new"))
    assert len(history.of("team", "g0")) == 2
    assert history.of("team", "g1") == ()


VALUES = st.lists(st.none() | st.floats(0, 1e12), min_size=2, max_size=50)


@given(VALUES)
def test_every_known_value_is_drawn_within_the_chart(values: list[float | None]) -> None:
    drawn = str(chart("t", [5.0 * n for n in range(len(values))], [Line("a", "b", values)]))
    points = [tuple(map(float, each.split(","))) for each in re.findall(r"[\d.]+,[\d.]+(?=[ \"])", drawn)]
    known = [value for value in values if value is not None]
    assert len(points) == len(known)
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in points)
    # a greater value is never drawn lower
    ordered = sorted(zip(known, (y for _, y in points), strict=True))
    assert all(a[1] >= b[1] for a, b in pairwise(ordered))


def test_without_points_a_chart_says_so() -> None:
    assert "nothing to draw" in chart("Backlog", [1.0], [Line("a", "b", [1.0])])
    assert "&lt;b&gt;" in chart("<b>", [1.0], [])


def test_what_is_wrong_is_shown_with_its_commands_and_moves_nothing_else() -> None:
    trouble = Trouble(
        Severity.BROKEN, "AgentStream a/b", "R", "<script>\x1b[2J", "Run `a <b>`.", "/console/x"
    )
    lag = LagAnswer(
        at=datetime(2026, 1, 1, tzinfo=UTC), server=ServerNumbers(reachable=True), streams=(), groups=()
    )
    content = {"lag": lag, "troubles": [trouble], "streams": [], "strays": []}
    shown = render_main(ShownPage("overview.html", "Queues", content))
    assert '<div class="finding broken"><b><a href="/console/x">AgentStream a/b</a>: R</b>' in shown
    assert "&lt;script&gt;\\x1b[2J<br>Run <code>a &lt;b&gt;</code>." in shown
