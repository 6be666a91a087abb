"""Contracts: when they are written, and what becomes of those that cannot be."""

from __future__ import annotations

from typing import Any

import msgspec

from agentstream_operator.plan.actions import CreateStream, SetContracts
from agentstream_operator.plan.conditions import Plan
from agentstream_operator.plan.observed import StreamSeen
from agentstream_operator.plan.streams import StreamInput, digest_after, plan_stream, published
from agentstream_operator.resources.agentstream import AgentStream
from agentstream_operator.resources.meta import PAUSED_ANNOTATION
from agentstream_operator.resources.status import ConditionReason, ConditionType
from support.resources import KEY, a_stream

OWNER = {"installation": "ours", "namespace": "team", "name": "tasks", "uid": "team-tasks"}
PRESENT = StreamSeen(now=0, type="stream", meta=OWNER)
EVENT = {"type": "event", "schema": {"type": "object", "required": ["doc"]}}
REQUEST = {"type": "task_request", "version": 2, "schema": {"type": "object"}}
BROKEN = {"type": "event", "schema": {"type": "object", "required": "doc"}}


def planned(stream: AgentStream, seen: StreamSeen) -> Plan:
    return plan_stream(StreamInput(stream, "ours", stream, seen=seen))


def digest(*contracts: dict[str, Any]) -> str:
    return published(a_stream(contracts=contracts)).digest


def written(*contracts: dict[str, Any]) -> StreamSeen:
    return msgspec.structs.replace(PRESENT, contracts=digest(*contracts) or None)


def test_contracts_that_are_not_there_are_written() -> None:
    plan = planned(a_stream(contracts=[EVENT, REQUEST]), PRESENT)
    schemas = {"event@1": '{"required":["doc"],"type":"object"}', "task_request@2": '{"type":"object"}'}
    assert plan.actions == (SetContracts(KEY, digest(EVENT, REQUEST), schemas),)
    assert plan.conditions[0].status == "True"


def test_they_are_written_with_a_new_stream() -> None:
    plan = planned(a_stream(contracts=[EVENT]), StreamSeen(now=0, type="none"))
    assert [type(action) for action in plan.actions] == [CreateStream, SetContracts]


def test_contracts_that_are_there_need_nothing() -> None:
    assert planned(a_stream(contracts=[EVENT, REQUEST]), written(REQUEST, EVENT)).actions == ()
    assert planned(a_stream(), written()).actions == ()


def test_contracts_that_are_not_declared_any_more_are_removed() -> None:
    assert planned(a_stream(), written(EVENT)).actions == (SetContracts(KEY, "", {}),)


def test_another_digest_means_other_contracts() -> None:
    different = [
        digest(),
        digest(EVENT),
        digest(REQUEST),
        digest(EVENT, REQUEST),
        digest({**EVENT, "version": 2}),
        digest({**EVENT, "schema": {"type": "object"}}),
    ]
    assert len(set(different)) == len(different)
    assert digest(EVENT, REQUEST) == digest(REQUEST, EVENT)


def test_what_is_no_contract_leaves_those_before_in_force_and_says_so() -> None:
    plan = planned(a_stream(contracts=[REQUEST, BROKEN]), written(EVENT))
    assert plan.actions == ()
    assert (plan.conditions[0].status, plan.conditions[0].reason) == (
        "False",
        ConditionReason.CONTRACT_INVALID,
    )
    assert plan.conditions[0].message.startswith(
        "spec.contracts[1]: the schema of event@1 is not a valid JSON Schema"
    )
    synced = next(condition for condition in plan.conditions if condition.kind is ConditionType.SYNCED)
    assert synced.reason is ConditionReason.CONTRACT_INVALID


def test_what_is_no_contract_does_not_keep_the_stream_from_being_made() -> None:
    plan = planned(a_stream(contracts=[BROKEN]), StreamSeen(now=0, type="none"))
    assert [type(action) for action in plan.actions] == [CreateStream]


def test_contracts_of_a_stream_that_is_only_watched_stay() -> None:
    observed = a_stream(contracts=[EVENT], managementPolicy="ObserveOnly")
    plan = planned(observed, PRESENT)
    assert plan.actions == ()
    assert plan.conditions[0].message == f"would write the contracts of {KEY}"
    paused = a_stream(contracts=[BROKEN], annotations={PAUSED_ANNOTATION: "true"})
    assert planned(paused, PRESENT).conditions[0].status == "True"


def test_agents_are_told_of_what_is_on_the_server() -> None:
    there = written(EVENT)
    assert digest_after((), PRESENT) == ""
    assert digest_after((), there) == digest(EVENT)
    assert digest_after((SetContracts(KEY, "", {}),), there) == ""
    assert digest_after((SetContracts(KEY, "1f", {}),), PRESENT) == "1f"
