"""How a replay goes on, and what is said of it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentstream.protocol.replaying import ReplayProgress
from agentstream_operator.plan.conditions import EventNote
from agentstream_operator.plan.observed import StreamSeen
from agentstream_operator.plan.replay import (
    Allowance,
    IdRange,
    ReplayGiven,
    ReplayPlan,
    asked_by,
    expires_in,
    first_in_line,
    follow_again,
    plan_replay,
    reach,
    reported_reach,
    span_of,
    span_of_begun,
    summary,
)
from agentstream_operator.resources.status import (
    ConditionReason,
    ConditionType,
    ReplayPhase,
    StreamReplayStatus,
)
from agentstream_operator.resources.streamreplay import StreamReplay
from agentstream_operator.resources.times import LAST_SEQUENCE
from support.examples import trying
from support.resources import PAUSED, a_replay

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
BEGAN = 1_000_000
LAST = f"{BEGAN}-7"
BEGUN = StreamReplayStatus(phase=ReplayPhase.RUNNING, started_at=NOW, cursor="5-0")
HALF = ReplayProgress("7-0", 5, 3, {"expired": 2}, 1, 1, 30)


def of_stream(**origin: str) -> StreamReplay:
    spec: dict[str, Any] = {"from": {"source": "Stream", **origin}}
    return a_replay(**spec)


@pytest.mark.parametrize(
    ("origin", "span"),
    [
        ({}, ("-", LAST)),
        ({"since": "5-1", "until": "7-2"}, ("5-1", "7-2")),
        ({"since": "1970-01-01T00:00:05Z"}, ("5000-0", LAST)),
        ({"until": "1970-01-01T00:00:05.5Z"}, ("-", f"5500-{LAST_SEQUENCE}")),
        ({"until": "2100-01-01T00:00:00Z"}, ("-", LAST)),
        ({"until": f"{BEGAN + 1}-0"}, ("-", LAST)),
    ],
)
def test_a_replay_reads_from_since_to_until_and_nothing_newer_than_itself(
    origin: dict[str, str], span: tuple[str, str]
) -> None:
    assert span_of(of_stream(**origin).spec, LAST) == span


def test_who_takes_a_replay_over_goes_on_to_where_it_was_to_end() -> None:
    spec = of_stream().spec
    assert span_of_begun(spec, StreamReplayStatus()) is None
    assert span_of_begun(spec, BEGUN.model_copy(update={"last": "9-1"})) == ("-", "9-1")
    # as an operator began it that noted no id
    ms = round(NOW.timestamp() * 1000)
    assert span_of_begun(spec, BEGUN) == ("-", f"{ms}-{LAST_SEQUENCE}")


TRIMMED = StreamSeen("stream", length=10, added=100, first="5000-3", last="9000-0")


@pytest.mark.parametrize(
    ("span", "seen", "outside"),
    [
        (IdRange("-", "9-0"), TRIMMED, None),
        (IdRange("5000-3", "9000-0"), TRIMMED, None),
        (IdRange("5000-2", "9000-0"), TRIMMED, False),
        (IdRange("1-0", "5000-3"), TRIMMED, False),
        (IdRange("1-0", "5000-2"), TRIMMED, True),
        (IdRange("1-0", "9000-0"), StreamSeen("stream", added=100), True),
        # a stream that has lost nothing reaches back to its beginning
        (IdRange("1-0", "2-0"), StreamSeen("stream", length=10, added=10, first="5-0"), None),
    ],
)
def test_a_range_may_begin_or_lie_before_what_the_stream_still_has(
    span: IdRange, seen: StreamSeen, *, outside: bool | None
) -> None:
    found = reach(of_stream(since="1-0").spec, seen, span)
    assert (None if found is None else found.outside) == outside
    if found is not None and seen.first is not None:
        assert "1970-01-01T00:00:05Z (5000-3)" in found.message
    assert reach(a_replay().spec, seen, span) is None


def test_an_id_beyond_all_times_is_told_all_the_same() -> None:
    seen = StreamSeen("stream", length=1, added=9, first=f"{10**18}-0")
    found = reach(of_stream(since="1-0").spec, seen, IdRange("1-0", f"{BEGAN}-0"))
    assert found is not None
    assert found.outside


@trying(200)
@given(
    st.integers(1, 20) | st.integers(1, 5_000),
    st.lists(st.floats(0.001, 0.9), min_size=1, max_size=200),
    st.floats(0, 1e6),
)
def test_a_rate_is_kept_however_irregular_its_turns_are(rate: int, pauses: list[float], start: float) -> None:
    allowance, now, moved = Allowance(start), start, 0
    for pause in pauses:
        now += pause
        allowance = allowance.later(rate, now)
        count = int(allowance.due)
        allowance, moved = allowance.spent(count), moved + count
    expected = rate * (now - start)
    assert moved <= expected + 1
    assert moved >= expected - 1.01


def test_what_was_missed_for_long_is_not_made_up_for() -> None:
    assert Allowance(0.0).later(100, 3_600).due == 101
    assert Allowance(0.0).later(1, 3_600).due == 2
    assert Allowance(5.0).later(10, 4.0) == Allowance(5.0)


@pytest.mark.parametrize(("rate", "due", "wait"), [(100, 0, 0.1), (1, 0, 1.0), (2, 0.5, 0.25), (5, 3, 0.1)])
def test_the_next_move_is_when_there_is_one_to_make(rate: int, due: float, wait: float) -> None:
    assert Allowance(0.0, due).wait(rate) == pytest.approx(wait)


def state(phase: ReplayPhase | None = None, *, begun: bool = False) -> StreamReplayStatus:
    return StreamReplayStatus(phase=phase, started_at=NOW if begun else None)


def test_the_replay_at_work_goes_first_then_one_that_was_then_the_oldest() -> None:
    old, young, youngest = (a_replay(name, age=age) for name, age in (("a", 3), ("b", 2), ("c", 1)))
    running, held_before = state(ReplayPhase.RUNNING, begun=True), state(ReplayPhase.PENDING, begun=True)
    assert first_in_line(young, [(young, None), (old, None)]) == old
    assert first_in_line(old, [(old, None), (young, running)]) == young
    assert first_in_line(old, [(old, None), (young, held_before)]) == young
    assert first_in_line(old, [(young, held_before), (youngest, running)]) == youngest


@pytest.mark.parametrize(
    ("other", "status"),
    [
        (a_replay("old", age=9, suspend=True), state(ReplayPhase.RUNNING, begun=True)),
        (a_replay("old", age=9, annotations=PAUSED), state(ReplayPhase.RUNNING, begun=True)),
        (a_replay("old", age=9, dryRun=True), state(ReplayPhase.RUNNING, begun=True)),
        (a_replay("old", age=9), state(ReplayPhase.COMPLETE, begun=True)),
        (a_replay("old", age=9), state(ReplayPhase.FAILED)),
        (a_replay("old", age=9, meta={"deletionTimestamp": NOW}), state(ReplayPhase.RUNNING, begun=True)),
    ],
)
def test_what_does_not_go_on_is_not_in_the_way(other: StreamReplay, status: StreamReplayStatus) -> None:
    replay = a_replay("young")
    assert first_in_line(replay, [(replay, None), (other, status)]) == replay
    assert first_in_line(replay, [(other, status)]) == replay


def plan(
    replay: StreamReplay | None = None, status: StreamReplayStatus | None = None, **given: Any
) -> ReplayPlan:
    return plan_replay(ReplayGiven(replay or a_replay(), status, **given), NOW)


def ready(found: ReplayPlan) -> tuple[str, str]:
    return found.conditions[0].status, found.conditions[0].reason


NO_GROUP = EventNote(ConditionReason.GROUP_NOT_FOUND, "there is no ConsumerGroup coder")
GONE = EventNote(ConditionReason.GROUP_DELETED, "ConsumerGroup coder was deleted", warning=True)


@pytest.mark.parametrize(
    ("replay", "status", "given", "phase", "says"),
    [
        ({}, None, {"missing": NO_GROUP}, "Pending", ("False", "GroupNotFound")),
        ({}, BEGUN, {"missing": NO_GROUP}, "Pending", ("False", "GroupNotFound")),
        ({}, BEGUN, {"missing": GONE}, "Failed", ("False", "GroupDeleted")),
        ({}, BEGUN, {"missing": GONE, "at_end": True}, "Failed", ("False", "GroupDeleted")),
        ({}, None, {"ahead": a_replay("x")}, "Pending", ("False", "WaitingForReplay")),
        ({"dryRun": True}, None, {"ahead": a_replay("x")}, "Running", ("True", "Replaying")),
        ({}, None, {}, "Running", ("True", "Replaying")),
        ({}, BEGUN, {"progress": HALF}, "Running", ("True", "Replaying")),
        ({}, BEGUN, {"progress": HALF, "window_full": True}, "Running", ("True", "WindowFull")),
        ({}, BEGUN, {"problem": "OOM", "window_full": True}, "Running", ("True", "Replaying")),
        ({"suspend": True}, None, {}, "Suspended", ("False", "Suspended")),
        ({"suspend": True}, BEGUN, {"ahead": a_replay("x")}, "Suspended", ("False", "Suspended")),
        ({"annotations": PAUSED}, BEGUN, {}, "Suspended", ("False", "Paused")),
        (
            {"suspend": True},
            BEGUN,
            {"at_end": True, "progress": HALF},
            "Complete",
            ("True", "ReplayFinished"),
        ),
        ({}, BEGUN, {"at_end": True, "progress": HALF}, "Complete", ("True", "ReplayFinished")),
        ({}, BEGUN, {"at_end": True}, "Complete", ("True", "NothingMatched")),
        ({"dryRun": True}, BEGUN, {"at_end": True, "progress": HALF}, "Complete", ("True", "DryRunFinished")),
    ],
)
def test_a_replay_has_one_phase_and_says_why(
    replay: dict[str, Any],
    status: StreamReplayStatus | None,
    given: dict[str, Any],
    phase: str,
    says: tuple[str, str],
) -> None:
    found = plan(a_replay(**replay), status, **given)
    assert found.phase == phase
    assert ready(found) == says


def test_a_range_that_is_trimmed_fails_and_one_that_begins_before_goes_on_and_says_so() -> None:
    spec = of_stream(since="1-0", until="5000-2")
    span = span_of(spec.spec, LAST)
    lost = reach(spec.spec, TRIMMED, span)
    found = plan(spec, reach=lost)
    assert (found.phase, ready(found)) == ("Failed", ("False", "OutsideRetention"))
    assert [event.reason for event in found.events] == [ConditionReason.REPLAY_FAILED]
    assert lost is not None
    partly = plan(spec, reach=lost._replace(outside=False))
    assert (partly.phase, ready(partly)) == ("Running", ("True", "Replaying"))
    kinds = {update.kind: update.reason for update in partly.conditions}
    assert kinds[ConditionType.RETENTION_HEALTHY] is ConditionReason.OUTSIDE_RETENTION
    # the next operator knows it from the status
    assert reported_reach(partly.conditions) == lost._replace(outside=False)
    # what was trimmed since a replay began does not end it
    assert plan(spec, BEGUN, reach=lost).phase == "Running"


def test_a_replay_begins_and_ends_once_and_says_who_asked_and_why() -> None:
    replay = a_replay(reason="INC-1", annotations={"agentstream.dev/requested-by": "jane\n\x1b[2J"})
    begins = plan(replay)
    assert begins.numbers["started_at"] == NOW
    (event,) = begins.events
    assert event.reason is ConditionReason.REPLAY_STARTED
    assert "jane" in event.message
    assert "INC-1" in event.message
    assert event.message.isprintable()
    assert plan(replay, BEGUN, progress=HALF).events == ()
    assert "started_at" not in plan(replay, BEGUN).numbers
    ends = plan(replay, BEGUN, progress=HALF, at_end=True)
    assert ends.numbers["finished_at"] == NOW
    assert [event.reason for event in ends.events] == [ConditionReason.REPLAY_FINISHED]
    assert "audit log" in asked_by(a_replay())


def test_numbers_are_those_of_the_server_and_absent_while_they_are_unknown() -> None:
    numbers = plan(status=BEGUN, progress=HALF).numbers
    assert numbers == {
        "matched": 5, "moved": 3, "handled": 1, "dead": 1, "skipped": {"expired": 2}, "cursor": "7-0",
    }  # fmt: skip
    assert plan(status=BEGUN).numbers == {}


def test_progress_is_said_as_one_says_it() -> None:
    spec = a_replay().spec
    assert summary(spec, HALF) == (
        "3 of 5 matching messages moved; 1 handled, 1 dead again; left out: 2 expired"
    )
    dry = a_replay(dryRun=True).spec
    assert summary(dry, replace(HALF, moved=0, handled=0, dead=0)) == (
        "3 of 5 matching messages would be moved; left out: 2 expired"
    )
    drop = a_replay(action="Drop", select={"reasons": ["X"]}).spec
    assert summary(drop, ReplayProgress("1-0", 2, 2)) == "2 of 2 matching messages removed"
    assert summary(spec, None) == "0 of 0 matching messages moved"


def test_moved_messages_are_followed_until_they_are_settled_or_a_week_is_over() -> None:
    def again(seconds: float, **numbers: int) -> float | None:
        status = StreamReplayStatus(finished_at=NOW, **numbers)
        return follow_again(a_replay(), status, NOW + timedelta(seconds=seconds), 5.0)

    assert again(0, moved=3, handled=1, dead=1) == 5
    assert again(100, moved=3) == 10
    assert again(10_000, moved=3) == 60
    assert again(8 * 86_400, moved=3) is None
    assert again(0, moved=3, handled=2, dead=1) is None
    drop = a_replay(action="Drop", select={"reasons": ["X"]})
    assert follow_again(drop, StreamReplayStatus(finished_at=NOW, moved=3), NOW, 5.0) is None


def test_an_ended_replay_is_kept_for_its_time() -> None:
    status = StreamReplayStatus(finished_at=NOW)
    assert expires_in(a_replay(), status, NOW) is None
    assert expires_in(a_replay(ttlSecondsAfterFinished=60), status, NOW + timedelta(seconds=20)) == 40
    assert expires_in(a_replay(ttlSecondsAfterFinished=60), status, NOW + timedelta(seconds=90)) == 0
