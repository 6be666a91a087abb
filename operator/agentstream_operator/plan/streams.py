"""Plans an AgentStream."""

from __future__ import annotations

from dataclasses import dataclass

from agentstream.protocol.contracts import contracts_digest
from agentstream_operator.plan.actions import Action, CreateStream, DeleteStream, RecordOwner, SetContracts
from agentstream_operator.plan.conditions import (
    ALL_WRITTEN,
    IN_SYNC,
    NO_CONFLICT,
    REACHABLE,
    AgentsState,
    ConditionUpdate,
    EventNote,
    Plan,
    credentials,
    unreachable,
    with_ready,
)
from agentstream_operator.plan.conflicts import foreign, stream_conflict
from agentstream_operator.plan.losses import heal_ids, ids_in_the_future
from agentstream_operator.plan.observed import StreamSeen
from agentstream_operator.plan.retention import RetentionHistory, retention_healthy
from agentstream_operator.resources.agentstream import AgentStream, ManagementPolicy, StreamDeletion
from agentstream_operator.resources.meta import NO_NAMESPACE, NamespaceSeen
from agentstream_operator.resources.status import ConditionReason, ConditionType

GIVE_UP = 300.0
"""Seconds after which a deletion no longer waits for an unreachable server."""


@dataclass(frozen=True, slots=True)
class StreamInput:
    """The input of a plan for an AgentStream."""

    stream: AgentStream
    installation: str
    winner: AgentStream | None  # the oldest that claims the key and may have it; see `conflicts`
    namespace: NamespaceSeen = NO_NAMESPACE
    groups: tuple[str, ...] = ()  # names of the declared ones
    seen: StreamSeen | None = None  # None during an outage
    added: int | None = None  # `seen.added` at the last observation; None if the stream never existed
    agents: AgentsState = ALL_WRITTEN  # of its producers
    history: RetentionHistory | None = None
    eviction: str | None = None  # the server's eviction policy, if it may evict streams
    outage: str = ""  # why the server is unreachable
    deleted_for: float = 0.0  # seconds since the deletion


def plan_stream(given: StreamInput) -> Plan:
    """Plans the changes of the server for an AgentStream, and its conditions."""
    stream, seen = given.stream, given.seen
    if stream.deleting:
        return _deletion(given)
    finalizer = destroys(stream)
    conflict = stream_conflict(stream, given.winner)
    if seen is None:
        return Plan(conditions=unreachable(given.outage), finalizer=finalizer)
    if conflict is NO_CONFLICT:
        conflict = foreign(stream, seen, given.installation, given.namespace)
    if conflict is not NO_CONFLICT:
        return Plan(conditions=with_ready((REACHABLE, conflict)), finalizer=finalizer)
    if seen.type not in ("none", "stream"):
        message = f"{stream.stream_key} is a {seen.type}, not a stream; left unchanged"
        wrong = ConditionUpdate(ConditionType.SYNCED, "False", ConditionReason.WRONG_TYPE, message)
        return Plan(conditions=with_ready((REACHABLE, conflict, wrong)), finalizer=finalizer)
    actions, events = _create(given, seen)
    invalid = invalid_contract(stream)
    if invalid is None and (contracts := published(stream)).digest != (seen.contracts or ""):
        actions += (contracts,)
    if seen.type == "stream" and (healing := heal_ids(stream, seen, given.groups)) is not None:
        actions, events = (*actions, healing.action), (*events, healing.event)
    synced, actions, events = _held_back(stream, actions, events)
    if invalid is not None and managed(stream):
        synced = invalid
    lost = _lost(given, seen)
    return Plan(
        actions=actions,
        conditions=with_ready(
            (
                REACHABLE,
                synced,
                credentials(given.agents),
                retention_healthy(stream, seen, given.history, given.eviction),
                conflict,
                ids_in_the_future(seen),
            )
        ),
        events=(*lost, *events),
        finalizer=finalizer,
    )


def destroys(stream: AgentStream) -> bool:
    """Returns whether the deletion destroys data, and so has to wait for the operator."""
    return stream.spec.deletion_policy is not StreamDeletion.RETAIN


def managed(stream: AgentStream) -> bool:
    """Returns whether the operator may change the stream."""
    return not stream.paused and stream.spec.management_policy is ManagementPolicy.MANAGED


def owner_of(stream: AgentStream, installation: str, namespace: NamespaceSeen) -> dict[str, str]:
    """Returns the owner's fields of the stream's meta hash."""
    meta = stream.metadata
    owner = {"installation": installation, "namespace": meta.namespace, "name": meta.name, "uid": meta.uid}
    return {**owner, "namespace_uid": namespace.uid} if namespace.uid else owner


def published(stream: AgentStream) -> SetContracts:
    """Builds the action that publishes a stream's contracts to its agents."""
    schemas = {contract.field: contract.json_schema.text for contract in stream.spec.contracts}
    return SetContracts(stream.stream_key, contracts_digest(schemas), schemas)


def invalid_contract(stream: AgentStream) -> ConditionUpdate | None:
    """Returns the condition for the first invalid contract; None if all are valid."""
    for position, contract in enumerate(stream.spec.contracts):
        if contract.problem is not None:
            message = f"spec.contracts[{position}]: {contract.problem}"
            return ConditionUpdate(ConditionType.SYNCED, "False", ConditionReason.CONTRACT_INVALID, message)
    return None


def digest_after(actions: tuple[Action, ...], seen: StreamSeen) -> str:
    """Returns the digest of the contracts on the server after the actions."""
    written = (action.digest for action in actions if isinstance(action, SetContracts))
    return next(written, seen.contracts or "")


def _create(given: StreamInput, seen: StreamSeen) -> tuple[tuple[Action, ...], tuple[EventNote, ...]]:
    stream = given.stream
    key, owner = stream.stream_key, owner_of(stream, given.installation, given.namespace)
    if seen.type == "none":
        event = EventNote(ConditionReason.STREAM_CREATED, f"created the stream {key}")
        if given.added is not None:
            message = f"recreated the stream {key}, empty"
            event = EventNote(ConditionReason.STREAM_RECREATED, message, warning=True)
        return (CreateStream(key, owner),), (event,)
    if any(seen.meta.get(name) != value for name, value in owner.items()):
        adopted = "installation" not in seen.meta and given.added is None
        resumed = seen.meta.get("uid", stream.metadata.uid) != stream.metadata.uid
        message = f"{'resumed' if resumed else 'adopted'} the stream {key} with {seen.length} messages"
        events = (EventNote(ConditionReason.STREAM_ADOPTED, message),) if adopted or resumed else ()
        return (RecordOwner(key, owner),), events
    return (), ()


def _lost(given: StreamInput, seen: StreamSeen) -> tuple[EventNote, ...]:
    if given.added is None or seen.added >= given.added:
        return ()
    key, lost = given.stream.stream_key, given.added - seen.added
    what = "vanished from the server" if seen.type == "none" else "was reset"
    message = f"the stream {key} {what}: {lost} added messages are missing"
    return (EventNote(ConditionReason.DATA_LOST, message, warning=True),)


def _held_back(
    stream: AgentStream, actions: tuple[Action, ...], events: tuple[EventNote, ...]
) -> tuple[ConditionUpdate, tuple[Action, ...], tuple[EventNote, ...]]:
    """Returns `Synced` and the remaining actions and events of a stream that may not be changed."""
    if managed(stream):
        return IN_SYNC, actions, events
    observing = stream.spec.management_policy is ManagementPolicy.OBSERVE_ONLY
    reason = ConditionReason.OBSERVE_ONLY if observing else ConditionReason.PAUSED
    if observing:
        # no owner is recorded for an observed stream
        actions = tuple(action for action in actions if not isinstance(action, RecordOwner))
    if not actions:
        return ConditionUpdate(ConditionType.SYNCED, "True", reason), (), ()
    reason = ConditionReason.DRIFT if observing else reason
    message = f"would {', '.join(map(str, actions))}"
    return ConditionUpdate(ConditionType.SYNCED, "False", reason, message), (), ()


def _deletion(given: StreamInput) -> Plan:
    stream, seen, key = given.stream, given.seen, given.stream.stream_key
    stays = EventNote(ConditionReason.RETAINED, f"kept the stream {key} on the server")
    not_ours = stream_conflict(stream, given.winner) is not NO_CONFLICT
    if not destroys(stream) or not_ours or stream.spec.management_policy is ManagementPolicy.OBSERVE_ONLY:
        return Plan(events=() if not_ours else (stays,), finished=True)
    if seen is None:
        if stream.force_delete or given.deleted_for >= GIVE_UP:
            message = f"server unreachable: the stream {key}, if it exists, was not deleted"
            return Plan(events=(EventNote(ConditionReason.RETAINED, message, warning=True),), finished=True)
        return Plan(conditions=unreachable(given.outage), finalizer=True)
    if stream.paused and not stream.force_delete:
        message = f"would delete the stream {key}"
        paused = ConditionUpdate(ConditionType.SYNCED, "False", ConditionReason.PAUSED, message)
        return Plan(conditions=with_ready((REACHABLE, paused)), finalizer=True)
    if (
        seen.type not in ("none", "stream")
        or foreign(stream, seen, given.installation, given.namespace) is not NO_CONFLICT
    ):
        return Plan(finished=True)
    if_empty = stream.spec.deletion_policy is StreamDeletion.DELETE_IF_EMPTY
    groups = tuple(sorted({*given.groups, *seen.groups}))
    message = f"kept the stream {key}: a group has unsettled messages or dead letters"
    return Plan(
        actions=(DeleteStream(key, groups, if_empty),),
        events=(EventNote(ConditionReason.STREAM_DELETED, f"deleted the stream {key}"),),
        refused=(EventNote(ConditionReason.RETAINED_NOT_EMPTY, message, warning=True),),
        finished=True,
    )
