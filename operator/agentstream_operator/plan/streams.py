"""What is to be done for an AgentStream."""

from __future__ import annotations

from dataclasses import dataclass

from agentstream_operator.plan.actions import Action, CreateStream, DeleteStream, RecordOwner
from agentstream_operator.plan.conflicts import foreign, stream_conflict
from agentstream_operator.plan.contracts import invalid_contract, write_contracts
from agentstream_operator.plan.findings import (
    ALL_WRITTEN,
    IN_SYNC,
    NO_CONFLICT,
    REACHABLE,
    AgentsState,
    ConditionUpdate,
    EventNote,
    Plan,
    credentials,
    describe,
    unreachable,
    with_ready,
)
from agentstream_operator.plan.observed import StreamSeen
from agentstream_operator.plan.retention import RetentionHistory, retention_healthy
from agentstream_operator.resources.agentstream import AgentStream, ManagementPolicy, StreamDeletion
from agentstream_operator.resources.status import ConditionReason, ConditionType

GIVE_UP = 300.0
"""Seconds after a deletion from which on a server that does not answer holds it no longer."""


@dataclass(frozen=True, slots=True)
class StreamInput:
    """All that a plan for an AgentStream depends on.

    Attributes:
        stream: what is declared.
        installation: whose operator this is.
        winner: the oldest AgentStream that claims the key and may have it; see `conflicts`.
        groups: names of its declared groups.
        seen: the key, or None while the server does not answer.
        added: `seen.added` when it was last seen, or None if it never was there.
        agents: how far the users of its producers are.
        history: what the janitor said.
        eviction: the server's eviction policy, if it may evict streams.
        why_unreachable: what the server's silence looks like.
        deleted_for: seconds since the deletion.
    """

    stream: AgentStream
    installation: str
    winner: AgentStream | None
    groups: tuple[str, ...] = ()
    seen: StreamSeen | None = None
    added: int | None = None
    agents: AgentsState = ALL_WRITTEN
    history: RetentionHistory | None = None
    eviction: str | None = None
    why_unreachable: str = ""
    deleted_for: float = 0.0


def plan_stream(given: StreamInput) -> Plan:
    """Decides what is to be done for an AgentStream, and what its conditions say then."""
    stream, seen = given.stream, given.seen
    if stream.deleting:
        return _deletion(given)
    finalizer = destroys(stream)
    conflict = stream_conflict(stream, given.winner)
    if seen is None:
        return Plan(findings=unreachable(given.why_unreachable), finalizer=finalizer)
    if conflict is NO_CONFLICT:
        conflict = foreign(stream, seen, given.installation)
    if conflict is not NO_CONFLICT:
        return Plan(findings=with_ready((REACHABLE, conflict)), finalizer=finalizer)
    if seen.type not in ("none", "stream"):
        return Plan(
            findings=with_ready((REACHABLE, conflict, _wrong_type(stream, seen))), finalizer=finalizer
        )
    actions, notices = _create(given, seen)
    invalid = invalid_contract(stream)
    if invalid is None:
        actions += write_contracts(stream, seen)
    synced, actions, notices = _held_back(stream, actions, notices)
    if invalid is not None and managed(stream):
        synced = invalid
    lost = _lost(given, seen)
    return Plan(
        actions=actions,
        findings=with_ready(
            (
                REACHABLE,
                synced,
                credentials(given.agents),
                retention_healthy(stream, seen, given.history, given.eviction),
                conflict,
            )
        ),
        notices=(*lost, *notices),
        finalizer=finalizer,
    )


def destroys(stream: AgentStream) -> bool:
    """Whether deleting the resource must destroy something, and so has to wait for the operator."""
    return stream.spec.deletion_policy is not StreamDeletion.RETAIN


def managed(stream: AgentStream) -> bool:
    """Whether anything may be changed for the stream."""
    return not stream.paused and stream.spec.management_policy is ManagementPolicy.MANAGED


def owner_of(stream: AgentStream, installation: str) -> dict[str, str]:
    """What the stream's meta hash says of whose it is."""
    meta = stream.metadata
    return {
        "installation": installation,
        "namespace": meta.namespace,
        "name": meta.name,
        "uid": meta.uid,
    }


def _create(given: StreamInput, seen: StreamSeen) -> tuple[tuple[Action, ...], tuple[EventNote, ...]]:
    stream = given.stream
    key, owner = stream.stream_key, owner_of(stream, given.installation)
    if seen.type == "none":
        notice = (
            EventNote(ConditionReason.STREAM_CREATED, f"created the stream {key}")
            if given.added is None
            else EventNote(
                ConditionReason.STREAM_RECREATED, f"created the stream {key} again, empty", warning=True
            )
        )
        return (CreateStream(key, owner),), (notice,)
    if any(seen.meta.get(name) != value for name, value in owner.items()):
        adopted = "installation" not in seen.meta and given.added is None
        notices = (
            EventNote(
                ConditionReason.STREAM_ADOPTED, f"adopted the stream {key} with {seen.length} messages"
            ),
        )
        return (RecordOwner(key, owner),), notices if adopted else ()
    return (), ()


def _lost(given: StreamInput, seen: StreamSeen) -> tuple[EventNote, ...]:
    if given.added is None or seen.added >= given.added:
        return ()
    key, lost = given.stream.stream_key, given.added - seen.added
    what = "vanished" if seen.type == "none" else "began anew"
    return (
        EventNote(
            ConditionReason.DATA_LOST,
            f"the stream {key} {what}: {lost} messages had been added",
            warning=True,
        ),
    )


def _held_back(
    stream: AgentStream, actions: tuple[Action, ...], notices: tuple[EventNote, ...]
) -> tuple[ConditionUpdate, tuple[Action, ...], tuple[EventNote, ...]]:
    """What remains of the actions where nothing may be changed, and what `Synced` says of the rest."""
    if managed(stream):
        return IN_SYNC, actions, notices
    observing = stream.spec.management_policy is ManagementPolicy.OBSERVE_ONLY
    reason = ConditionReason.OBSERVE_ONLY if observing else ConditionReason.PAUSED
    if observing:
        # whose a stream is that is only watched stays unrecorded
        actions = tuple(action for action in actions if not isinstance(action, RecordOwner))
    if not actions:
        return ConditionUpdate(ConditionType.SYNCED, "True", reason), (), ()
    reason = ConditionReason.DRIFT if observing else reason
    return ConditionUpdate(ConditionType.SYNCED, "False", reason, f"would {describe(actions)}"), (), ()


def _wrong_type(stream: AgentStream, seen: StreamSeen) -> ConditionUpdate:
    return ConditionUpdate(
        ConditionType.SYNCED,
        "False",
        ConditionReason.WRONG_TYPE,
        f"{stream.stream_key} is a {seen.type}, not a stream; it stays untouched",
    )


def _deletion(given: StreamInput) -> Plan:
    stream, seen, key = given.stream, given.seen, given.stream.stream_key
    stays = EventNote(ConditionReason.RETAINED, f"the stream {key} stays on the server")
    not_ours = stream_conflict(stream, given.winner) is not NO_CONFLICT
    if not destroys(stream) or not_ours or stream.spec.management_policy is ManagementPolicy.OBSERVE_ONLY:
        return Plan(notices=() if not_ours else (stays,), over=True)
    if seen is None:
        if stream.force_delete or given.deleted_for >= GIVE_UP:
            message = f"the server does not answer; the stream {key}, if it is there, stays"
            return Plan(notices=(EventNote(ConditionReason.RETAINED, message, warning=True),), over=True)
        return Plan(findings=unreachable(given.why_unreachable), finalizer=True)
    if stream.paused and not stream.force_delete:
        paused = ConditionUpdate(
            ConditionType.SYNCED, "False", ConditionReason.PAUSED, f"would delete the stream {key}"
        )
        return Plan(findings=with_ready((REACHABLE, paused)), finalizer=True)
    if seen.type not in ("none", "stream") or foreign(stream, seen, given.installation) is not NO_CONFLICT:
        return Plan(over=True)
    if_empty = stream.spec.deletion_policy is StreamDeletion.DELETE_IF_EMPTY
    groups = tuple(sorted({*given.groups, *seen.groups}))
    return Plan(
        actions=(DeleteStream(key, groups, if_empty),),
        notices=(EventNote(ConditionReason.STREAM_DELETED, f"deleted the stream {key}"),),
        refused=(
            EventNote(
                ConditionReason.RETAINED_NOT_EMPTY,
                f"the stream {key} stays: something in it is unsettled",
                warning=True,
            ),
        ),
        over=True,
    )
