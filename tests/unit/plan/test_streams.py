"""What is to be done for an AgentStream."""

from __future__ import annotations

from typing import Any

import pytest

from agentstream_operator.plan.actions import CreateStream, DeleteStream, RecordOwner
from agentstream_operator.plan.conditions import AgentsState, Failure, Plan
from agentstream_operator.plan.observed import GroupSeen, StreamSeen
from agentstream_operator.plan.streams import StreamInput, plan_stream
from agentstream_operator.resources.agentstream import AgentStream
from agentstream_operator.resources.meta import FORCE_DELETE_ANNOTATION, PAUSED_ANNOTATION, NamespaceSeen
from agentstream_operator.resources.status import ConditionReason, ConditionType
from support.resources import BORN, a_stream

KEY = "{team.tasks}"
OWNER = {"installation": "ours", "namespace": "team", "name": "tasks", "uid": "team-tasks"}
ABSENT = StreamSeen(now=0, type="none")
PRESENT = StreamSeen(now=0, type="stream", length=3, added=7, meta=OWNER)
PAUSED = {PAUSED_ANNOTATION: "true"}
DELETED = {"deletionTimestamp": BORN}


def planned(stream: AgentStream, seen: StreamSeen | None, **given: Any) -> Plan:
    return plan_stream(StreamInput(stream, "ours", given.pop("winner", stream), seen=seen, **given))


def ready(plan: Plan) -> tuple[str, ConditionReason]:
    return plan.conditions[0].status, plan.conditions[0].reason


def reason(plan: Plan, kind: ConditionType) -> ConditionReason:
    return next(condition.reason for condition in plan.conditions if condition.kind is kind)


def told(plan: Plan) -> list[ConditionReason]:
    return [event.reason for event in plan.events]


def test_a_stream_that_is_not_there_is_created() -> None:
    plan = planned(a_stream(), ABSENT)
    assert plan.actions == (CreateStream(KEY, OWNER),)
    assert told(plan) == [ConditionReason.STREAM_CREATED]
    assert ready(plan) == ("True", ConditionReason.READY)


def test_a_stream_as_declared_needs_nothing() -> None:
    plan = planned(a_stream(), PRESENT, added=7)
    assert plan == Plan(conditions=plan.conditions)
    assert ready(plan) == ("True", ConditionReason.READY)


def test_a_foreign_stream_is_adopted() -> None:
    plan = planned(a_stream(), StreamSeen(now=0, type="stream", length=3))
    assert plan.actions == (RecordOwner(KEY, OWNER),)
    assert told(plan) == [ConditionReason.STREAM_ADOPTED]


def test_a_forgotten_owner_is_recorded_again_without_a_word() -> None:
    plan = planned(a_stream(), StreamSeen(now=0, type="stream", added=7), added=7)
    assert plan.actions == (RecordOwner(KEY, OWNER),)
    assert told(plan) == []


def test_a_stream_of_an_earlier_resource_changes_its_owner_and_that_is_told() -> None:
    seen = StreamSeen(now=0, type="stream", length=3, meta={**OWNER, "uid": "earlier"})
    plan = planned(a_stream(), seen)
    assert plan.actions == (RecordOwner(KEY, OWNER),)
    assert told(plan) == [ConditionReason.STREAM_ADOPTED]
    assert plan.events[0].message == f"resumed the stream {KEY} with 3 messages"


HERE = NamespaceSeen("here")
RECORDED = {**OWNER, "namespace_uid": "here"}


@pytest.mark.parametrize("left", [{"namespace_uid": "gone"}, {"namespace": "other"}])
def test_what_a_former_namespace_left_is_handed_to_nobody(left: dict[str, str]) -> None:
    seen = StreamSeen(now=0, type="stream", length=3, meta={**RECORDED, "uid": "earlier", **left})
    plan = planned(a_stream(), seen, namespace=HERE)
    assert plan.actions == ()
    assert ready(plan) == ("False", ConditionReason.KEY_OF_FORMER_NAMESPACE)
    whose = "the namespace other" if "namespace" in left else "a former namespace team"
    assert plan.conditions[0].message.startswith(f"{KEY} holds 3 messages of {whose}: annotate")
    assert "annotate the namespace team with agentstream.dev/adopt=true" in plan.conditions[0].message
    # retries and dead letters may be left without the stream itself
    gone = StreamSeen(now=0, type="none", meta=seen.meta)
    assert planned(a_stream(), gone, namespace=HERE).actions == ()
    # nor does a deletion touch it
    deletion = planned(deleted("Delete"), seen, namespace=HERE)
    assert (deletion.finished, deletion.actions) == (True, ())

    adopted = planned(a_stream(), seen, namespace=NamespaceSeen("here", adopts=True))
    assert adopted.actions == (RecordOwner(KEY, RECORDED),)
    assert told(adopted) == [ConditionReason.STREAM_ADOPTED]
    assert ready(adopted) == ("True", ConditionReason.READY)


def test_the_namespace_of_a_stream_is_recorded_and_then_needs_nothing() -> None:
    assert planned(a_stream(), PRESENT, namespace=HERE).actions == (RecordOwner(KEY, RECORDED),)
    assert told(planned(a_stream(), PRESENT, namespace=HERE)) == []
    seen = StreamSeen(now=0, type="stream", length=3, added=7, meta=RECORDED)
    assert planned(a_stream(), seen, namespace=HERE).actions == ()
    assert planned(a_stream(), ABSENT, namespace=HERE).actions == (CreateStream(KEY, RECORDED),)


@pytest.mark.parametrize(
    ("seen", "added", "expected"),
    [
        (ABSENT, 5, [ConditionReason.DATA_LOST, ConditionReason.STREAM_RECREATED]),
        (ABSENT, 0, [ConditionReason.STREAM_RECREATED]),
        (PRESENT, 8, [ConditionReason.DATA_LOST]),
        (PRESENT, 7, []),
        (PRESENT, None, []),
    ],
)
def test_a_loss_is_told(seen: StreamSeen, added: int | None, expected: list[ConditionReason]) -> None:
    assert told(planned(a_stream(), seen, added=added)) == expected


def test_a_key_of_another_type_is_not_touched() -> None:
    plan = planned(a_stream(), StreamSeen(now=0, type="hash"))
    assert plan.actions == ()
    assert ready(plan) == ("False", ConditionReason.WRONG_TYPE)


def test_a_conflict_is_not_touched() -> None:
    plan = planned(a_stream(), PRESENT, winner=a_stream("older"))
    assert plan.actions == ()
    assert ready(plan) == ("False", ConditionReason.KEY_CLAIMED)


def test_a_stream_of_another_installation_is_not_touched() -> None:
    seen = StreamSeen(now=0, type="stream", meta={"installation": "theirs"})
    assert planned(a_stream(), seen).actions == ()


def test_nothing_is_known_of_a_server_that_does_not_answer() -> None:
    plan = planned(a_stream(), None, outage="refused")
    assert {condition.kind for condition in plan.conditions} == {
        ConditionType.READY,
        ConditionType.BACKEND_REACHABLE,
    }
    assert ready(plan) == ("False", ConditionReason.BACKEND_UNAVAILABLE)


@pytest.mark.parametrize(
    ("agents", "expected"),
    [
        (AgentsState(), ConditionReason.CREDENTIALS_APPLIED),
        (AgentsState(waiting=("planner",)), ConditionReason.RECONCILING),
        (
            AgentsState(failed=Failure(ConditionReason.CREDENTIALS_FAILED, "no")),
            ConditionReason.CREDENTIALS_FAILED,
        ),
    ],
)
def test_agents_are_part_of_being_ready(agents: AgentsState, expected: ConditionReason) -> None:
    plan = planned(a_stream(), PRESENT, agents=agents)
    assert reason(plan, ConditionType.CREDENTIALS_SYNCED) is expected
    assert ready(plan)[0] == ("True" if expected is ConditionReason.CREDENTIALS_APPLIED else "False")


@pytest.mark.parametrize(
    ("changes", "seen", "expected"),
    [
        ({"managementPolicy": "ObserveOnly"}, ABSENT, ("False", ConditionReason.DRIFT)),
        (
            {"managementPolicy": "ObserveOnly"},
            StreamSeen(now=0, type="stream"),
            ("True", ConditionReason.OBSERVE_ONLY),
        ),
        ({"annotations": PAUSED}, ABSENT, ("False", ConditionReason.PAUSED)),
        ({"annotations": PAUSED}, StreamSeen(now=0, type="stream"), ("False", ConditionReason.PAUSED)),
        ({"annotations": PAUSED}, PRESENT, ("True", ConditionReason.PAUSED)),
    ],
)
def test_what_may_not_be_changed_is_only_looked_at(
    changes: dict[str, Any], seen: StreamSeen, expected: tuple[str, ConditionReason]
) -> None:
    plan = planned(a_stream(**changes), seen)
    synced = next(condition for condition in plan.conditions if condition.kind is ConditionType.SYNCED)
    assert plan.actions == ()
    assert told(plan) == []
    assert (synced.status, synced.reason) == expected


@pytest.mark.parametrize(
    ("policy", "expected"), [("Retain", False), ("Delete", True), ("DeleteIfEmpty", True)]
)
def test_only_what_destroys_something_has_a_finalizer(*, policy: str, expected: bool) -> None:
    stream = a_stream(deletionPolicy=policy)
    assert planned(stream, PRESENT).finalizer is expected
    assert planned(stream, None).finalizer is expected
    assert planned(stream, PRESENT, winner=a_stream("older")).finalizer is expected
    assert planned(stream, StreamSeen(now=0, type="hash")).finalizer is expected


def deleted(policy: str, **more: Any) -> AgentStream:
    return a_stream(deletionPolicy=policy, meta=DELETED, **more)


@pytest.mark.parametrize(("policy", "if_empty"), [("Delete", False), ("DeleteIfEmpty", True)])
def test_deleting_takes_all_groups_that_are_known(*, policy: str, if_empty: bool) -> None:
    seen = StreamSeen(now=0, type="stream", meta=OWNER, groups={"foreign": GroupSeen(exists=True)})
    plan = planned(deleted(policy), seen, groups=("coder",))
    assert plan.actions == (DeleteStream(KEY, ("coder", "foreign"), if_empty),)
    assert told(plan) == [ConditionReason.STREAM_DELETED]
    assert [event.reason for event in plan.refused] == [ConditionReason.RETAINED_NOT_EMPTY]
    assert plan.finished


def test_a_retained_stream_is_let_go() -> None:
    plan = planned(deleted("Retain"), PRESENT)
    assert plan.finished
    assert not plan.actions
    assert told(plan) == [ConditionReason.RETAINED]


@pytest.mark.parametrize(
    ("stream", "seen", "winner"),
    [
        (deleted("Delete", managementPolicy="ObserveOnly"), PRESENT, None),
        (deleted("Delete"), PRESENT, a_stream("older")),
        (deleted("Delete"), StreamSeen(now=0, type="hash"), None),
        (deleted("Delete"), StreamSeen(now=0, type="stream", meta={"installation": "theirs"}), None),
    ],
)
def test_what_is_not_ours_is_not_deleted(
    stream: AgentStream, seen: StreamSeen, winner: AgentStream | None
) -> None:
    plan = planned(stream, seen, winner=winner or stream)
    assert plan.finished
    assert not plan.actions


def test_a_paused_deletion_waits() -> None:
    plan = planned(deleted("Delete", annotations=PAUSED), PRESENT)
    assert plan.finalizer
    assert not plan.actions
    assert not plan.finished


def test_a_forced_deletion_does_not_mind_the_pause() -> None:
    forced = {**PAUSED, FORCE_DELETE_ANNOTATION: "true"}
    assert planned(deleted("Delete", annotations=forced), PRESENT).actions


@pytest.mark.parametrize(
    ("annotations", "seconds", "over"),
    [({}, 299, False), ({}, 300, True), ({FORCE_DELETE_ANNOTATION: "true"}, 0, True)],
)
def test_a_silent_server_holds_a_deletion_for_a_while(
    *, annotations: dict[str, str], seconds: float, over: bool
) -> None:
    plan = planned(deleted("Delete", annotations=annotations), None, deleted_for=seconds)
    assert plan.finished is over
    assert plan.finalizer is not over
