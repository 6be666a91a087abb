"""The checker finds each broken promise in a history written by hand, and allows what the page allows."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import pytest

from histories.checker import IN_DOUBT, REJECTED, Promise, check
from histories.records import (
    Began,
    Called,
    Claimed,
    Effect,
    Failed,
    Fault,
    GroupEnd,
    History,
    Letter,
    Line,
    Returned,
    Settled,
    Settling,
    StreamEnd,
)

GROUP = "tasks/coder"
SECOND = 1_000_000_000
numbers = itertools.count()


def sent(n: int, entry: str | None = None, *, at: float = 0.0, **more: Any) -> list[Line]:
    """A call that returned with an entry, by default `n-0`."""
    t = round(at * SECOND)
    call = Called(t=t, who="planner-0.1", n=n, stream="tasks", groups=(GROUP,), **more)
    return [call, Returned(t=t + 1, who="planner-0.1", n=n, entry=entry or f"{n}-0")]


def refused(n: int, *, doubt: bool) -> list[Line]:
    """A call that failed."""
    return [sent(n)[0], Failed(t=1, who="planner-0.1", n=n, error="no", doubt=doubt)]


def handled(
    n: int,
    at: float,
    until: float,
    verb: str = "ack",
    *,
    who: str = "coder-0.1",
    held: bool | None = True,
    fence: int = 1,
    entry: str | None = None,
    key: str | None = None,
    effect: str | None = None,
    answered: float | None = None,
) -> list[Line]:
    """A run: its verb is answered at once, but not where `held` is None; an empty one is not called."""
    d, begin, end = next(numbers), round(at * SECOND), round(until * SECOND)
    lines: list[Line] = [
        Began(
            t=begin,
            who=who,
            d=d,
            group=GROUP,
            n=n,
            entry=entry or f"{n}-0",
            attempt=fence,
            fence=fence,
            key=key,
        )
    ]
    if effect:
        lines.append(Effect(t=begin + 1, who=who, d=d, group=GROUP, effect=effect))
    if verb:
        lines.append(Settling(t=end, who=who, d=d, verb=verb))
        if held is not None:
            answer = end + 1 if answered is None else round(answered * SECOND)
            lines.append(Settled(t=answer, who=who, d=d, held=held))
    return lines


def fault(kind: str, since: float, until: float, target: str = "coder-0.1") -> list[Line]:
    """Something that was broken."""
    return [Fault(t=round(until * SECOND), kind=kind, since=round(since * SECOND), target=target)]


def dead(n: int, reason: str, attempts: int = 1) -> Letter:
    """A dead letter."""
    return Letter(n, f"{n}-0", reason, attempts)


def broken(
    *parts: list[Line],
    letters: Iterable[Letter] = (),
    added: int | None = None,
    left: dict[str, int] | None = None,
    **counted: int,
) -> set[Promise]:
    """The promises that a history breaks; what the server counts is right unless said."""
    lines = tuple(sorted((line for part in parts for line in part), key=lambda line: line.t))
    entries = {line.entry for line in lines if isinstance(line, Began | Returned)}
    acked = {
        began.entry
        for began in lines
        if isinstance(began, Began)
        and any(isinstance(line, Settled) and line.d == began.d and line.held for line in lines)
        and any(isinstance(line, Settling) and line.d == began.d and line.verb == "ack" for line in lines)
    }
    totals = {"acked": len(acked), "dead": len(tuple(letters)), **counted}
    end = GroupEnd(left=left or {}, letters=tuple(letters), **totals)
    stream = StreamEnd({}, len(entries) if added is None else added, {GROUP: end})
    return {violation.promise for violation in check(History(lines, {"tasks": stream}))}


FINE = [sent(1), handled(1, 1, 2)]


def test_a_history_without_faults_breaks_nothing() -> None:
    assert broken(*FINE) == set()


@pytest.mark.parametrize(
    ("parts", "more", "promise"),
    [
        pytest.param([sent(1)], {"added": 1, "left": {"pending": 1}}, Promise.KEPT, id="lost"),
        pytest.param(
            [sent(1), handled(1, 1, 2, ""), fault("kill", 1, 1.5)],
            {"added": 1, "left": {"pending": 1}},
            Promise.KEPT,
            id="lost with its consumer",
        ),
        pytest.param([*FINE, handled(1, 3, 4, entry="9-0")], {}, Promise.ONE_ENTRY, id="two entries"),
        pytest.param(
            [sent(1, once="a"), sent(2, "2-0", once="a"), handled(1, 1, 2), handled(2, 1, 2)],
            {},
            Promise.ONE_ENTRY,
            id="two entries of one key",
        ),
        pytest.param(
            [refused(1, doubt=False), handled(1, 1, 2)], {}, Promise.ONE_ENTRY, id="refused and added"
        ),
        pytest.param([*FINE, handled(1, 3, 4, fence=2)], {}, Promise.ONE_SETTLEMENT, id="settled twice"),
        pytest.param(
            [
                sent(1),
                handled(1, 1, 9),
                handled(1, 8, 10, fence=2, who="coder-1.1", held=False),
                fault("pause", 1, 9),
            ],
            {},
            Promise.ONE_SETTLEMENT,
            id="settled by one whom another has overtaken",
        ),
        pytest.param(
            FINE, {"letters": [dead(1, REJECTED)], "acked": 0}, Promise.ONE_SETTLEMENT, id="settled and dead"
        ),
        pytest.param(
            [sent(1), handled(1, 1, 2, "retry"), handled(1, 3, 4)], {}, Promise.FENCED, id="one fence twice"
        ),
        pytest.param(
            [
                *(sent(1, key="a"), sent(2, key="a")),
                *(handled(1, 1, 3, key="a"), handled(2, 2, 4, key="a", who="coder-1.1")),
            ],
            {},
            Promise.ORDERED,
            id="beside",
        ),
        pytest.param(
            [
                *(sent(9, key="a"), sent(10, key="a")),
                *(handled(10, 1, 2, key="a"), handled(9, 3, 4, key="a")),
            ],
            {},
            Promise.ORDERED,
            id="before",
        ),
        pytest.param(
            [
                *(sent(1, key="a"), sent(2, key="a"), handled(1, 1, 2, "retry", key="a")),
                *(handled(2, 3, 4, key="a"), handled(1, 5, 6, key="a", fence=2)),
            ],
            {},
            Promise.ORDERED,
            id="between two attempts",
        ),
        pytest.param(
            [
                *(sent(1), handled(1, 1, 2, "retry", effect="e")),
                handled(1, 3, 4, fence=2, effect="e"),
            ],
            {},
            Promise.EFFECT_ONCE,
            id="effect repeated",
        ),
        pytest.param(
            [sent(1), handled(1, 1, 2, held=False), handled(1, 3, 4, fence=2)],
            {},
            Promise.NOT_TWICE,
            id="twice for no reason",
        ),
        pytest.param(
            [
                *(sent(1), handled(1, 1, 9, held=False), handled(1, 8, 10, fence=2)),
                fault("silence", 2, 9, ""),
            ],
            {},
            Promise.NOT_TWICE,
            id="twice, as nobody was heard",
        ),
        pytest.param(
            [sent(1), handled(1, 1, 2, held=False), handled(1, 3, 4, fence=2), fault("pause", 1, 1.5)],
            {},
            Promise.NOT_TWICE,
            id="twice after a pause shorter than a lease",
        ),
        pytest.param(
            [sent(1)], {"letters": [dead(1, "Expired", 0)]}, Promise.ALLOWED_LETTERS, id="expired unseen"
        ),
        pytest.param(
            [sent(1), *(handled(1, f, f + 0.5, "retry", fence=f) for f in (1, 2, 3))],
            {"letters": [dead(1, "MaxDeliveries", 5)]},
            Promise.ALLOWED_LETTERS,
            id="given up too early",
        ),
        pytest.param(
            [sent(1), handled(1, 1, 2, fence=6)], {}, Promise.ALLOWED_LETTERS, id="one attempt too many"
        ),
        pytest.param(
            [sent(1), handled(1, 1, 2, "dead_letter")],
            {"letters": [dead(1, IN_DOUBT)], "acked": 0},
            Promise.ALLOWED_LETTERS,
            id="in doubt without a reason",
        ),
        pytest.param(FINE, {"acked": 2}, Promise.COUNTED, id="too many counted"),
        pytest.param(FINE, {"lost": 1, "acked": 0}, Promise.COUNTED, id="a loss counted"),
        pytest.param(FINE, {"added": 2, "skipped": 1}, Promise.COUNTED, id="an entry of nobody"),
        pytest.param(FINE, {"left": {"delayed": 1}}, Promise.NOT_STUCK, id="stuck"),
        pytest.param(
            [*FINE, [Claimed(t=SECOND, n=1, groups=(GROUP,))]], {}, Promise.RECEIPTS, id="a receipt that lies"
        ),
    ],
)
def test_a_broken_promise_is_found(parts: list[list[Line]], more: dict[str, Any], promise: Promise) -> None:
    assert promise in broken(*parts, **more)


@pytest.mark.parametrize(
    ("parts", "more"),
    [
        pytest.param(
            [sent(1), handled(1, 1, 2, held=None), handled(1, 5, 6, fence=2), fault("kill", 2, 2.5)],
            {},
            id="what a killed consumer had in hand comes again",
        ),
        pytest.param(
            [
                *(sent(1), handled(1, 1, 7, held=False), fault("pause", 2, 7)),
                handled(1, 5, 6, fence=2, who="coder-1.1"),
            ],
            {},
            id="what a stopped consumer had in hand comes again",
        ),
        pytest.param(
            [
                *(sent(1), handled(1, 8, 9, held=False), fault("pause", 2, 7.9)),
                handled(1, 5, 8, fence=2, who="coder-1.1"),
            ],
            {},
            id="a process that was stopped may start one message late",
        ),
        pytest.param(
            [sent(1), handled(1, 1, 9, held=False), handled(1, 8, 10, fence=2), fault("refuse", 2, 9)],
            {},
            id="who is cut off alone counts as dead",
        ),
        pytest.param(
            [
                *(sent(1), handled(1, 1, 2, held=False, answered=5)),
                *(handled(1, 8, 9, fence=2, who="coder-1.1"), fault("terminate", 1, 5)),
                fault("refuse", 1.5, 7, ""),
            ],
            {},
            id="who is asked to end waits for the server for one lease",
        ),
        pytest.param(
            [sent(1), handled(1, 1, 2), handled(1, 5, 6, fence=1), fault("destroy", 3, 4, GROUP)],
            {},
            id="a destroyed group begins at its checkpoint",
        ),
        pytest.param(
            [sent(1), fault("flush", 1, 2, "")], {"added": 0}, id="a flush takes what was not handled"
        ),
        pytest.param([sent(1), fault("delete", 1, 2, "tasks")], {"added": 0}, id="so does a deletion"),
        pytest.param(
            [sent(1, once="a"), fault("delete", 1, 2, "tasks"), sent(2, "1-0", at=3, once="a")],
            {"added": 0},
            id="and what is sent again with its key makes none",
        ),
        pytest.param([refused(1, doubt=True)], {"added": 0}, id="a call in doubt may have made none"),
        pytest.param([refused(1, doubt=True), handled(1, 1, 2)], {}, id="a call in doubt may have made one"),
        pytest.param(
            [sent(1, once="a"), sent(2, "1-0", at=3, once="a"), handled(1, 1, 2)],
            {},
            id="a second call with one key makes none",
        ),
        pytest.param(
            [
                *(sent(1, once="a"), sent(2, "3600002-0", at=3, once="a")),
                *(handled(1, 1, 2), handled(2, 4, 5, entry="3600002-0")),
            ],
            {},
            id="after an hour of the server it may",
        ),
        pytest.param(
            [
                *(sent(1, key="a", work={"rejects": 1}), sent(2, key="a")),
                *(handled(1, 1, 2, "dead_letter", key="a"), handled(2, 3, 4, key="a")),
            ],
            {"letters": [dead(1, REJECTED)]},
            id="a dead letter ends the wait of its key",
        ),
        pytest.param(
            [
                *(sent(1, key="a"), sent(2, key="a"), handled(1, 1, 2, "retry", key="a", fence=5)),
                *(handled(2, 3, 4, key="a"), fault("flush", 5, 6, "")),
            ],
            {},
            id="so does a last attempt whose dead letter was flushed",
        ),
        pytest.param(
            [
                *(sent(1, key="a"), sent(2, key="a"), handled(1, 1, 5, key="a", held=False)),
                *(fault("pause", 1, 5), handled(1, 3, 4, key="a", fence=2, who="coder-1.1")),
                handled(2, 4.5, 6, key="a", who="coder-1.1"),
            ],
            {},
            id="who lost its lease may still run when the next one of the key starts",
        ),
        pytest.param(
            [sent(1), *(handled(1, f, f + 0.5, "retry", fence=f) for f in (1, 2, 3, 4, 5))],
            {"letters": [dead(1, "MaxDeliveries", 5)]},
            id="given up after its attempts",
        ),
        pytest.param(
            [
                *(sent(1), *(handled(1, f, f + 0.5, "retry", fence=f) for f in (1, 2, 3, 5))),
                fault("kill", 4, 4, "coder-9.1"),
            ],
            {"letters": [dead(1, "MaxDeliveries", 5)]},
            id="one attempt was counted of which the process wrote nothing",
        ),
        pytest.param(
            [sent(1, work={"rejects": 1}), handled(1, 1, 2, "dead_letter")],
            {"letters": [dead(1, REJECTED)]},
            id="the handler wanted it",
        ),
        pytest.param(
            [
                *(sent(1, work={"effect": 1}), handled(1, 1, 2, "", effect="e"), fault("kill", 2, 2)),
                handled(1, 5, 6, "dead_letter", fence=2),
            ],
            {"letters": [dead(1, IN_DOUBT)]},
            id="an interrupted effect is in doubt",
        ),
        pytest.param(
            [sent(1), handled(1, 1, 2, held=None), fault("kill", 2, 2)],
            {"acked": 1},
            id="an acknowledgement of which nobody wrote the answer",
        ),
        pytest.param(
            [
                *(sent(1), handled(1, 1, 2), handled(1, 1.5, 1.8, fence=2, who="coder-1.1", held=False)),
                *(fault("cut", 2, 2), fault("pause", 0.1, 1.4)),
            ],
            {},
            id="what is gone counts as done to whom an answer was lost",
        ),
        pytest.param(
            [*FINE, [Claimed(t=3 * SECOND, n=1, groups=(GROUP,))]], {}, id="a receipt that is right"
        ),
    ],
)
def test_what_the_page_allows_is_allowed(parts: list[list[Line]], more: dict[str, Any]) -> None:
    assert broken(*parts, **more) == set()


def test_every_promise_has_a_history_that_breaks_it() -> None:
    marks = [mark for mark in test_a_broken_promise_is_found.pytestmark if mark.name == "parametrize"]
    assert {case.values[2] for case in marks[0].args[1]} == set(Promise)
