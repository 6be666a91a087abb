"""What the janitor is to do, and what its reports say."""

from __future__ import annotations

import pytest

from agentstream_operator.plan.observed import JanitorReport, StreamSeen
from agentstream_operator.plan.retention import (
    JanitorSpec,
    RetentionHistory,
    group_retention,
    janitor_spec,
    remember,
    retention_healthy,
)
from agentstream_operator.resources.status import ConditionReason
from support.resources import a_group, a_stream

SEEN = StreamSeen(now=1_000_000, type="stream", first="700000-0")


def test_the_spec_has_what_is_declared() -> None:
    stream = a_stream(
        retention={"minAge": "1h", "maxLength": 7, "maxBytes": 2_000_000, "onFull": "Backpressure"},
        broadcast=True,
    )
    groups = [
        a_group("b", delivery={"lease": "5s"}, deadLetter={"minAge": "2h"}),
        a_group("a", deadLetter={"enabled": False}),
    ]
    assert janitor_spec(stream, groups) == JanitorSpec(
        key="{team.tasks}",
        min_age=3_600_000,
        max_length=7,
        max_bytes=2_000_000,
        on_full="Backpressure",
        groups=(("a", 10_000, 0), ("b", 5_000, 7_200_000)),
        broadcast=True,
    )


def test_no_limit_in_bytes_is_zero() -> None:
    assert janitor_spec(a_stream(), ()).max_bytes == 0


def test_losses_are_remembered_beyond_the_report_that_had_them() -> None:
    history = remember(None, JanitorReport("stream", overrun=3), 100)
    history = remember(history, JanitorReport("stream", shortened=True), 200)
    quiet = JanitorReport("stream")
    assert remember(history, quiet, 300) == RetentionHistory(quiet, overrun_at=100, shortened_at=200)


@pytest.mark.parametrize(
    ("history", "reason"),
    [
        (None, ConditionReason.WITHIN_LIMITS),
        (RetentionHistory(JanitorReport("stream")), ConditionReason.WITHIN_LIMITS),
        (RetentionHistory(JanitorReport("stream"), overrun_at=999_000), ConditionReason.TRIMMED_UNSETTLED),
        (RetentionHistory(JanitorReport("stream"), overrun_at=900_000), ConditionReason.WITHIN_LIMITS),
        (RetentionHistory(JanitorReport("stream", refusing=True)), ConditionReason.ADMISSION_CLOSED),
        (RetentionHistory(JanitorReport("stream", held_by="g")), ConditionReason.HELD_BY_GROUP),
        (RetentionHistory(JanitorReport("stream"), shortened_at=999_000), ConditionReason.HISTORY_SHORTENED),
        (RetentionHistory(JanitorReport("stream"), shortened_at=900_000), ConditionReason.WITHIN_LIMITS),
    ],
)
def test_the_condition_says_what_is_worst(history: RetentionHistory | None, reason: ConditionReason) -> None:
    condition = retention_healthy(a_stream(), SEEN, history, None)
    assert (condition.reason, condition.status) == (
        reason,
        "True" if reason is ConditionReason.WITHIN_LIMITS else "False",
    )


def test_a_server_that_may_evict_streams_comes_before_everything() -> None:
    history = RetentionHistory(JanitorReport("stream", refusing=True))
    condition = retention_healthy(a_stream(), SEEN, history, "allkeys-lru")
    assert condition.message == "maxmemory-policy is allkeys-lru, not noeviction"


@pytest.mark.parametrize(("first", "minutes"), [("700000-0", 5), (None, 0), ("99999999999999-0", 0)])
def test_a_shortened_history_says_how_far_it_reaches(first: str | None, minutes: int) -> None:
    seen = StreamSeen(now=1_000_000, type="stream", first=first)
    condition = retention_healthy(
        a_stream(), seen, RetentionHistory(JanitorReport("stream"), None, 999_999), None
    )
    assert condition.message == f"stream full: settled messages are kept for {minutes} minutes only"


def test_the_group_that_holds_a_stream_back_says_so() -> None:
    history = RetentionHistory(JanitorReport("stream", held_by="g"))
    assert group_retention("g", history).reason is ConditionReason.HELD_BY_GROUP
    assert group_retention("other", history).reason is ConditionReason.WITHIN_LIMITS
    assert group_retention("g", None).reason is ConditionReason.WITHIN_LIMITS
