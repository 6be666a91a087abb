"""What is wrong comes first; charts and histories are bounded, and draw what was measured."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentstream_operator.console.charts import HEIGHT, WIDTH, Line, chart
from agentstream_operator.console.history import EVERY, GROUPS, POINTS, History
from agentstream_operator.console.troubles import Severity, troubles
from agentstream_operator.queue_api.documents import (
    ConditionItem,
    ConsumerCount,
    GroupNumbers,
    LagAnswer,
    ServerNumbers,
    StreamNumbers,
)

AT = datetime(2026, 1, 1, tzinfo=UTC)
KNOWN: dict[str, Any] = {"namespace": "team", "known": True, "ready": True, "reason": "Ready"}


def group(**numbers: Any) -> GroupNumbers:
    return GroupNumbers(**{**KNOWN, "name": "coder", "stream": "tasks", "dead": 0, "backlog": 0, **numbers})


def stream(**numbers: Any) -> StreamNumbers:
    return StreamNumbers(**{**KNOWN, "name": "tasks", "key": "k", "admission": "Open", **numbers})


def lag(*found: GroupNumbers | StreamNumbers, **server: Any) -> LagAnswer:
    return LagAnswer(
        at=AT,
        server=ServerNumbers(**{"reachable": True, "used_memory": 5, "max_memory": 100, **server}),
        streams=tuple(each for each in found if isinstance(each, StreamNumbers)),
        groups=tuple(each for each in found if isinstance(each, GroupNumbers)),
    )


def test_nothing_is_wrong_where_nothing_is() -> None:
    assert troubles(lag(stream(), group(backlog=9, pending=2), group(backlog=9))) == []


BROKEN = ConditionItem(type="Ready", status="False", reason="R", message="because", since=AT)


@pytest.mark.parametrize(
    ("found", "what", "severity"),
    [
        (lag(reachable=False, used_memory=None), "does not answer", Severity.BROKEN),
        (lag(used_memory=91), "out of memory", Severity.BROKEN),
        (lag(stream(admission="Closed", unsettled=7)), "AgentStream team/tasks is full", Severity.BROKEN),
        (lag(stream(ready=False, reason="R", conditions=(BROKEN,))), "team/tasks: R", Severity.BROKEN),
        (lag(group(ready=False, reason="R", conditions=(BROKEN,))), "team/coder: R", Severity.BROKEN),
        (lag(group(backlog=3, consumers=ConsumerCount(wanted=1, running=0))), "no consumer", Severity.BROKEN),
        (lag(group(dead=1)), "has 1 dead letter", Severity.WARNING),
    ],
)
def test_what_is_wrong_is_said_with_why_and_where(found: LagAnswer, what: str, severity: Severity) -> None:
    (one,) = troubles(found)
    assert what in one.what
    assert one.severity is severity
    assert one.link.startswith("/console")
    assert one.why


def test_the_worst_comes_first() -> None:
    found = troubles(lag(group(dead=5), stream(admission="Closed"), reachable=False, used_memory=None))
    assert [each.severity for each in found] == sorted(each.severity for each in found)
    assert found[-1].severity is Severity.WARNING


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
