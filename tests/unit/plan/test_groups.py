"""What is to be done for a ConsumerGroup."""

from __future__ import annotations

from typing import Any

import pytest

from agentstream_operator.plan.actions import CreateGroup, DestroyGroup
from agentstream_operator.plan.conditions import ConditionUpdate, Plan
from agentstream_operator.plan.groups import GroupInput, plan_group, resume_at
from agentstream_operator.plan.observed import GroupSeen, JanitorReport, StreamSeen
from agentstream_operator.plan.retention import RetentionHistory
from agentstream_operator.plan.signal import Activity
from agentstream_operator.resources.agentstream import AgentStream
from agentstream_operator.resources.consumergroup import ConsumerGroup
from agentstream_operator.resources.meta import FORCE_DELETE_ANNOTATION, PAUSED_ANNOTATION, NamespaceSeen
from agentstream_operator.resources.status import ConditionReason, ConditionType
from support.resources import BORN, a_group, a_stream

KEY = "{team.tasks}"
PRESENT = GroupSeen(exists=True, retry_ready=True)
PAUSED = {PAUSED_ANNOTATION: "true"}
DELETED = {"deletionTimestamp": BORN}
STREAM = a_stream()


def stream(group: GroupSeen | None = None, *, last: str | None = "9-0", **meta: str) -> StreamSeen:
    groups = {"coder": group} if group is not None else {}
    fields = {name.replace("_", ":"): value for name, value in meta.items()}
    return StreamSeen(now=0, type="stream", last=last, meta=fields, groups=groups)


def planned(
    group: ConsumerGroup, seen: StreamSeen | None, of: AgentStream | None = STREAM, **given: Any
) -> Plan:
    winner, owner = given.pop("winner", group), given.pop("stream_winner", of)
    return plan_group(GroupInput(group, "ours", winner, of, owner, seen=seen, **given))


def ready(plan: Plan) -> tuple[str, ConditionReason]:
    return plan.conditions[0].status, plan.conditions[0].reason


def found(plan: Plan, kind: ConditionType) -> tuple[str, ConditionReason]:
    return next((f.status, f.reason) for f in plan.conditions if f.kind is kind)


def told(plan: Plan) -> list[ConditionReason]:
    return [event.reason for event in plan.events]


@pytest.mark.parametrize(
    ("start_from", "start"),
    [
        ("End", "$"),
        ("Beginning", "0"),
        ("5-1", "5-1"),
        ("1970-01-01T00:00:01Z", "999-18446744073709551615"),
    ],
)
def test_a_new_group_starts_where_it_is_to(start_from: str, start: str) -> None:
    plan = planned(a_group(startFrom=start_from), stream())
    assert plan.actions == (CreateGroup(KEY, "coder", start),)
    assert told(plan) == [ConditionReason.GROUP_CREATED]
    assert ready(plan) == ("True", ConditionReason.READY)


def test_a_group_as_declared_needs_nothing() -> None:
    plan = planned(a_group(), stream(PRESENT), established=True)
    assert plan == Plan(conditions=plan.conditions)


def test_a_group_without_its_retry_stream_gets_one() -> None:
    plan = planned(a_group(), stream(GroupSeen(exists=True)))
    assert plan.actions == (CreateGroup(KEY, "coder", "0"),)
    assert told(plan) == []


@pytest.mark.parametrize(
    ("seen", "established", "start"),
    [
        (stream(checkpoint_coder="4-2"), False, "4-2"),
        (stream(checkpoint_coder="4-2"), True, "4-2"),
        (stream(), True, "0"),
        (stream(last="3-0", checkpoint_coder="4-2"), True, "0"),
        (stream(last=None, checkpoint_coder="4-2"), True, "0"),
    ],
)
def test_a_group_that_was_there_never_starts_at_the_end(
    *, seen: StreamSeen, established: bool, start: str
) -> None:
    plan = planned(a_group(startFrom="End"), seen, established=established)
    assert plan.actions == (CreateGroup(KEY, "coder", start),)
    assert told(plan) == [ConditionReason.GROUP_RESTORED]


def test_what_went_with_its_stream_is_told() -> None:
    plan = planned(a_group(), stream(last="0-0"), established=True, stream_lost=True)
    assert told(plan) == [ConditionReason.DATA_LOST, ConditionReason.GROUP_RESTORED]


@pytest.mark.parametrize(
    ("checkpoint", "last", "expected"),
    [("5", "6-0", "5"), ("5-10", "5-9", "0"), ("5-9", "5-10", "5-9"), ("5-9", "5-9", "5-9")],
)
def test_checkpoints_are_compared_as_ids(checkpoint: str, last: str, expected: str) -> None:
    assert resume_at(stream(last=last), checkpoint) == expected


@pytest.mark.parametrize(
    ("of", "seen", "owner", "reason"),
    [
        (None, None, None, ConditionReason.STREAM_MISSING),
        (a_stream(meta=DELETED), stream(), STREAM, ConditionReason.STREAM_MISSING),
        (STREAM, stream(), a_stream("older"), ConditionReason.STREAM_MISSING),
        (STREAM, stream(), None, ConditionReason.STREAM_MISSING),
        (STREAM, StreamSeen(now=0, type="none"), STREAM, ConditionReason.STREAM_MISSING),
        (STREAM, StreamSeen(now=0, type="list"), STREAM, ConditionReason.WRONG_TYPE),
        (STREAM, stream(installation="theirs"), STREAM, ConditionReason.STREAM_MISSING),
    ],
)
def test_a_group_waits_for_a_usable_stream(
    of: AgentStream | None, seen: StreamSeen | None, owner: AgentStream | None, reason: ConditionReason
) -> None:
    plan = planned(a_group(), seen, of, stream_winner=owner)
    assert plan.actions == ()
    assert ready(plan) == ("False", reason)
    assert found(plan, ConditionType.STREAM_READY) == ("False", reason)


def test_a_conflict_is_not_touched() -> None:
    plan = planned(a_group(), stream(), winner=a_group("older", group="coder"))
    assert plan.actions == ()
    assert ready(plan) == ("False", ConditionReason.GROUP_CLAIMED)


def test_nothing_is_known_of_a_server_that_does_not_answer() -> None:
    plan = planned(a_group(), None, outage="refused")
    assert ready(plan) == ("False", ConditionReason.BACKEND_UNAVAILABLE)
    assert len(plan.conditions) == 2


@pytest.mark.parametrize(
    ("group", "of"),
    [
        (a_group(annotations=PAUSED), STREAM),
        (a_group(), a_stream(annotations=PAUSED)),
        (a_group(), a_stream(managementPolicy="ObserveOnly")),
    ],
)
def test_what_may_not_be_changed_is_only_looked_at(group: ConsumerGroup, of: AgentStream) -> None:
    missing = planned(group, stream(), of)
    assert missing.actions == ()
    assert found(missing, ConditionType.SYNCED) == ("False", ConditionReason.PAUSED)
    assert found(planned(group, stream(PRESENT), of), ConditionType.SYNCED) == (
        "True",
        ConditionReason.PAUSED,
    )


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (PRESENT, ("True", ConditionReason.LAG_EXACT)),
        (GroupSeen(exists=True, retry_ready=True, exact=False), ("True", ConditionReason.LAG_ESTIMATED)),
        (None, ("Unknown", ConditionReason.LAG_UNKNOWN)),
    ],
)
def test_whether_the_lag_is_known_is_said(
    seen: GroupSeen | None, expected: tuple[str, ConditionReason]
) -> None:
    assert found(planned(a_group(), stream(seen)), ConditionType.LAG_KNOWN) == expected


@pytest.mark.parametrize(
    ("given", "spec", "expected"),
    [
        ({}, {}, ("True", ConditionReason.PROGRESSING)),
        ({"work": Activity.STANDING}, {}, ("False", ConditionReason.NO_CONSUMERS)),
        ({"work": Activity.RUNNING}, {}, ("True", ConditionReason.HANDLERS_RUNNING)),
        ({"work": Activity.STANDING}, {"suspend": True}, ("False", ConditionReason.SUSPENDED)),
        ({"crashing": "exit 1"}, {}, ("False", ConditionReason.CRASH_LOOP)),
    ],
)
def test_whether_consumers_work_is_said(
    given: dict[str, Any], spec: dict[str, Any], expected: tuple[str, ConditionReason]
) -> None:
    plan = planned(a_group(**spec), stream(PRESENT), **given)
    assert found(plan, ConditionType.CONSUMING) == expected


def test_it_says_how_old_is_what_hands_hold_and_what_ends_a_handler_that_hangs() -> None:
    held = stream(GroupSeen(exists=True, retry_ready=True, pending=1, oldest_pending="1767225600000-0"))
    for spec, end in (({}, "no `delivery.deadline` is set"), ({"deadline": "1h"}, "after 1h")):
        plan = planned(a_group(delivery=spec), held, work=Activity.RUNNING)
        said = next(f.message for f in plan.conditions if f.kind is ConditionType.CONSUMING)
        assert end in said
        assert "the oldest in hand was added at 2026-01-01T00:00:00Z" in said
    plan = planned(a_group(), held, work=Activity.STANDING)
    assert found(plan, ConditionType.CONSUMING) == ("False", ConditionReason.NO_PROGRESS)


@pytest.mark.parametrize(
    ("dead", "message"),
    [(0, ""), (1, "the group has some dead letters"), (3, "the group has more than 2 dead letters")],
)
def test_dead_letters_are_said(dead: int, message: str) -> None:
    seen = stream(GroupSeen(exists=True, retry_ready=True, dead=dead))
    plan = planned(a_group(deadLetter={"maxLength": 2}), seen)
    condition = next(f for f in plan.conditions if f.kind is ConditionType.DEAD_LETTERING)
    assert (condition.status, condition.message) == ("True" if dead else "False", message)


def test_what_scaling_and_retention_say_is_passed_on() -> None:
    scaling = ConditionUpdate(ConditionType.SCALING_ACTIVE, "True", ConditionReason.SCALED_UP)
    history = RetentionHistory(JanitorReport("stream", held_by="coder"))
    plan = planned(a_group(), stream(PRESENT), scaling=scaling, history=history)
    assert scaling in plan.conditions
    assert found(plan, ConditionType.RETENTION_HEALTHY) == ("False", ConditionReason.HELD_BY_GROUP)


def deleted(policy: str = "Delete", **more: Any) -> ConsumerGroup:
    return a_group(deletionPolicy=policy, meta=DELETED, **more)


def test_a_deleted_group_is_destroyed_if_that_is_asked_for() -> None:
    assert planned(a_group(deletionPolicy="Delete"), stream(PRESENT)).finalizer
    plan = planned(deleted(), stream(PRESENT))
    assert plan.actions == (DestroyGroup(KEY, "coder"),)
    assert plan.finished
    assert told(plan) == [ConditionReason.GROUP_DELETED]


def test_a_retained_group_stays() -> None:
    plan = planned(deleted("Retain"), stream(PRESENT))
    assert plan.finished
    assert not plan.actions
    assert told(plan) == [ConditionReason.RETAINED]


@pytest.mark.parametrize(
    ("given", "of"),
    [
        ({"winner": a_group("older", group="coder")}, STREAM),
        ({"stream_winner": a_stream("older")}, STREAM),
        ({}, None),
    ],
)
def test_what_is_not_ours_is_not_destroyed(given: dict[str, Any], of: AgentStream | None) -> None:
    plan = planned(deleted(), stream(PRESENT), of, **given)
    assert plan.finished
    assert not plan.actions


def test_a_group_is_destroyed_while_its_stream_waits_to_be_deleted() -> None:
    assert planned(deleted(), stream(PRESENT), a_stream(meta=DELETED)).actions


def test_a_paused_deletion_waits_unless_it_is_forced() -> None:
    plan = planned(deleted(annotations=PAUSED), stream(PRESENT))
    assert plan.finalizer
    assert not plan.actions
    forced = {**PAUSED, FORCE_DELETE_ANNOTATION: "true"}
    assert planned(deleted(annotations=forced), stream(PRESENT)).actions


@pytest.mark.parametrize(
    ("annotations", "seconds", "over"),
    [({}, 299, False), ({}, 300, True), ({FORCE_DELETE_ANNOTATION: "true"}, 0, True)],
)
def test_a_silent_server_holds_a_deletion_for_a_while(
    *, annotations: dict[str, str], seconds: float, over: bool
) -> None:
    plan = planned(deleted(annotations=annotations), None, outage="refused", deleted_for=seconds)
    assert plan.finished is over
    assert plan.finalizer is not over


def test_a_stream_that_a_former_namespace_left_is_no_stream_for_a_group() -> None:
    seen = StreamSeen(now=0, type="stream", last="9-0", meta={"namespace": "team", "namespace_uid": "gone"})
    here, adopting = NamespaceSeen("here"), NamespaceSeen("here", adopts=True)
    for group in (a_group(), a_group(deletionPolicy="Delete", meta={"deletionTimestamp": BORN})):
        assert planned(group, seen, namespace=here).actions == ()
        assert planned(group, seen, namespace=adopting).actions != ()
    assert found(planned(a_group(), seen, namespace=here), ConditionType.STREAM_READY)[0] == "False"
