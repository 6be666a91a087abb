"""The delivery ledger adds up: each message that a group was given is in one line of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentstream_operator.plan.ledger import Ledger, ledger_of, total
from agentstream_operator.plan.observed import GroupSeen, StreamSeen

_COUNT = st.integers(0, 50)
_ENDS = ("acked", "skipped", "dead", "discarded")


@st.composite
def histories(draw: st.DrawFn) -> tuple[int, dict[str, int], StreamSeen]:
    """What a group was given, what became of it, and what the server shows afterwards."""
    main = {end: draw(_COUNT) for end in (*_ENDS, "retried", "released", "trimmed", "vanished")}
    undelivered, pending = draw(_COUNT), draw(_COUNT)
    replayed = draw(_COUNT)
    # each retry is on the server, settled for good, to be repeated, or gone
    again = main["retried"] + main["released"] + replayed
    retry, left = dict.fromkeys((*_ENDS, "retried", "released", "gone", "waiting"), 0), again
    while left:
        what = draw(st.sampled_from(sorted(retry)))
        some = draw(st.integers(1, left))
        retry[what] += some
        left -= some if what not in {"retried", "released"} else 0
        if retry["retried"] + retry["released"] > 100:
            retry["waiting"] += left
            left = 0
    stats = {name: main[name] + retry[name] for name in ("acked", "skipped", "dead", "retried", "released")}
    settled = sum(main.values()) - main["vanished"]
    resettled = sum(retry.values()) - retry["gone"] - retry["waiting"]
    base = draw(_COUNT)
    stats |= {"settled": settled, "resettled": resettled, "replayed": replayed, "trimmed": main["trimmed"]}
    stats |= {"base:read": base, "base:settled": 0}
    given = settled + main["vanished"] + undelivered + pending
    group = GroupSeen(
        exists=True,
        pending=pending,
        undelivered=undelivered,
        delayed=retry["waiting"],
        stats=stats,
    )
    truth = {end: main[end] + retry[end] for end in _ENDS}
    truth["lost"] = main["trimmed"] + main["vanished"] + retry["gone"]
    truth["waiting"] = undelivered + pending + retry["waiting"]
    return given + replayed, truth, StreamSeen("stream", added=base + given, groups={"coder": group})


@given(histories())
def test_each_message_is_in_one_line(history: tuple[int, dict[str, int], StreamSeen]) -> None:
    added, truth, seen = history
    ledger = ledger_of(seen, "coder")
    assert ledger is not None
    found = (ledger.acknowledged, ledger.skipped, ledger.dead, ledger.discarded, ledger.lost, ledger.waiting)
    assert found == tuple(truth.values())
    assert ledger.added == added
    assert ledger.ratio is None or 0 <= ledger.ratio <= 1


@pytest.mark.parametrize(
    "group",
    [
        GroupSeen(exists=False),
        GroupSeen(exists=True, unreadable=True),
        GroupSeen(exists=True, misread=("acked",)),
        GroupSeen(exists=True, exact=False),
    ],
)
def test_what_is_not_known_is_not_made_up(group: GroupSeen) -> None:
    assert ledger_of(StreamSeen("stream", groups={"coder": group}), "coder") is None
    assert ledger_of(StreamSeen("stream"), "coder") is None
    assert total((Ledger(acknowledged=1), None)) is None


def test_groups_add_up() -> None:
    both = total((Ledger(acknowledged=998, dead=1), Ledger(skipped=1, waiting=7)))
    assert both == Ledger(acknowledged=998, skipped=1, dead=1, waiting=7)
    assert (both.added, both.ended, both.ratio) == (1007, 1000, 0.999)
    assert total(()) == Ledger()
    assert Ledger(waiting=3).ratio is None
