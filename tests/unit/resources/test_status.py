"""Conditions: transition times, order, and the vocabulary."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from agentstream_operator.resources.status import (
    AgentStreamStatus,
    ConditionReason,
    ConditionType,
    ConsumerGroupStatus,
    find_condition,
    set_condition,
)
from unit.resources.api_server import refusals
from unit.resources.manifests import a_group, a_stream

NOW = datetime(2026, 11, 22, 10, 0, 0, 123_456, tzinfo=UTC)
LATER = NOW + timedelta(minutes=5)


def ready(conditions=(), *, status="True", reason=ConditionReason.READY, message="", generation=1, now=NOW):
    return set_condition(conditions, ConditionType.READY, status, reason, message, generation, now)


def test_a_new_condition_begins_now_in_whole_seconds():
    (condition,) = ready()
    assert condition.last_transition_time == NOW.replace(microsecond=0)


def test_the_transition_time_stays_while_the_status_does():
    (condition,) = ready(
        ready(status="False", reason=ConditionReason.RECONCILING),
        status="False",
        reason=ConditionReason.BACKEND_UNAVAILABLE,
        message="connection refused",
        generation=2,
        now=LATER,
    )
    assert condition.last_transition_time == NOW.replace(microsecond=0)
    assert (condition.reason, condition.message) == (
        ConditionReason.BACKEND_UNAVAILABLE,
        "connection refused",
    )
    assert condition.observed_generation == 2


@pytest.mark.parametrize("status", ["False", "Unknown"])
def test_the_transition_time_moves_with_the_status(status):
    (condition,) = ready(ready(), status=status, reason=ConditionReason.RECONCILING, now=LATER)
    assert condition.last_transition_time == LATER.replace(microsecond=0)


def test_setting_a_condition_again_changes_nothing():
    once = ready()
    assert ready(once, now=LATER) == once


def test_the_order_does_not_depend_on_what_was_set_first():
    def conflict(conditions=()):
        return set_condition(
            conditions, ConditionType.CONFLICT, "False", ConditionReason.NO_CONFLICT, "", 1, NOW
        )

    assert ready(conflict()) == conflict(ready())
    assert [condition.type for condition in ready(conflict())] == ["Ready", "Conflict"]


def test_other_conditions_stay_as_they_are():
    (before,) = ready()
    after = set_condition((before,), ConditionType.SYNCED, "True", ConditionReason.IN_SYNC, "", 2, LATER)
    assert find_condition(after, ConditionType.READY) is before
    assert find_condition(after, ConditionType.CONFLICT) is None


def test_a_message_that_is_too_long_is_cut_to_what_the_schema_takes():
    (condition,) = ready(message="x" * 5_000)
    assert len(condition.message) == 4_096
    assert condition.message.endswith("x…")


def test_a_status_is_written_as_kubernetes_writes_times_and_names():
    status = AgentStreamStatus(
        observed_generation=1, conditions=ready(message="in effect"), key="{a.b}", length=0
    )
    assert status.as_manifest() == {
        "observedGeneration": 1,
        "conditions": [
            {
                "type": "Ready",
                "status": "True",
                "reason": "Ready",
                "message": "in effect",
                "observedGeneration": 1,
                "lastTransitionTime": "2026-11-22T10:00:00Z",
            }
        ],
        "key": "{a.b}",
        "length": 0,
    }


def test_the_schema_takes_every_word_of_the_vocabulary():
    conditions = [
        set_condition((), kind, "Unknown", reason, "", 1, NOW)[0]
        for kind in ConditionType
        for reason in ConditionReason
    ]
    for condition in conditions:
        stream = AgentStreamStatus(conditions=(condition,), key="a", length=1, groups=2, oldest_entry="1-0")
        assert refusals({**a_stream(), "status": stream.as_manifest()}) == []
    group = ConsumerGroupStatus(
        conditions=conditions[:1],
        group="coder",
        replicas=1,
        desired_replicas=2,
        selector="a=b",
        backlog=3,
        pending=1,
        dead_letters=0,
    )
    assert refusals({**a_group(), "status": group.as_manifest()}) == []


def test_every_word_is_explained_in_a_sentence():
    sentences = [text for reason in ConditionReason for text in (reason.meaning, reason.action)]
    sentences += [kind.meaning for kind in ConditionType]
    assert all(text.endswith(".") and "|" not in text and "\n" not in text for text in sentences)


def test_a_word_and_its_name_in_code_are_the_same():
    for word in (*ConditionType, *ConditionReason):
        assert word.name.replace("_", "").lower() == word.value.lower()
