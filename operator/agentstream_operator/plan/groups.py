"""Plans a ConsumerGroup."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from agentstream_operator.plan.accounting import GroupTotals
from agentstream_operator.plan.actions import Action, CreateGroup, DestroyGroup, ResetCounters
from agentstream_operator.plan.conditions import (
    ALL_WRITTEN,
    IN_SYNC,
    NO_CONFLICT,
    REACHABLE,
    AgentsState,
    ConditionUpdate,
    EventNote,
    Failure,
    Plan,
    credentials,
    unreachable,
    with_ready,
)
from agentstream_operator.plan.conflicts import foreign, group_conflict, stream_conflict
from agentstream_operator.plan.losses import heal_group, messages_lost, parts
from agentstream_operator.plan.observed import GroupSeen, StreamSeen
from agentstream_operator.plan.retention import RetentionHistory, group_retention
from agentstream_operator.plan.signal import Activity
from agentstream_operator.plan.streams import GIVE_UP, managed
from agentstream_operator.resources.agentstream import AgentStream
from agentstream_operator.resources.consumergroup import ConsumerGroup, GroupDeletion
from agentstream_operator.resources.meta import NO_NAMESPACE, NamespaceSeen
from agentstream_operator.resources.status import ConditionReason, ConditionType


@dataclass(frozen=True, slots=True)
class GroupInput:
    """The input of a plan for a ConsumerGroup."""

    group: ConsumerGroup
    installation: str
    winner: ConsumerGroup  # the oldest that names the same group of the same stream
    stream: AgentStream | None
    stream_winner: AgentStream | None = None  # the oldest that claims the key and may have it
    namespace: NamespaceSeen = NO_NAMESPACE
    outage: str | None = None  # why the server is unreachable
    seen: StreamSeen | None = None  # None without a stream and during an outage
    established: bool = False  # whether the group existed before
    misread: str = ""  # what of its keys could not be read lately
    stream_lost: bool = False  # whether the stream lost entries since
    agents: AgentsState = ALL_WRITTEN
    history: RetentionHistory | None = None  # of the stream
    totals: GroupTotals | None = None  # its counters
    suspects: tuple[str, ...] = ()  # the other agents that may use the stream
    work: Activity = Activity.SETTLING  # what becomes of its messages
    scaling: ConditionUpdate | None = None  # the condition `ScalingActive`
    crashing: str | None = None  # why the consumers' processes end, if they do
    refused: Failure | None = None  # why the workload could not be applied
    deleted_for: float = 0.0  # seconds since the deletion


def plan_group(given: GroupInput) -> Plan:
    """Plans the changes of the server for a ConsumerGroup, and its conditions."""
    group = given.group
    if group.deleting:
        return _deletion(given)
    finalizer = destroys(group)
    if given.outage is not None:
        return Plan(conditions=unreachable(given.outage), finalizer=finalizer)
    conflict = group_conflict(group, given.winner)
    stream_ready = _stream_ready(given)
    stream = given.stream
    if conflict is not NO_CONFLICT or stream_ready is not STREAM_READY or not (stream and given.seen):
        return Plan(conditions=with_ready((REACHABLE, conflict, stream_ready)), finalizer=finalizer)
    seen = given.seen.groups.get(group.group_name, _ABSENT)
    actions, events = _create(given, stream.stream_key, given.seen, seen)
    if seen.misread:
        # of those that never held a number, nothing is known
        values = {name: seen.stats.get(name, 0) for name in seen.misread}
        actions += (ResetCounters(stream.stream_key, group.group_name, values),)
    lost = messages_lost(given.seen, seen, given.totals, given.suspects)
    if (healing := heal_group(group, stream.stream_key, lost)) is not None:
        actions, events = (*actions, healing.action), (*events, healing.event)
    synced = (
        IN_SYNC if given.refused is None else ConditionUpdate(ConditionType.SYNCED, "False", *given.refused)
    )
    if not may_change(group, given.stream):
        synced = _held_back(actions)
        actions, events = (), ()
    return Plan(
        actions=actions,
        conditions=with_ready(
            (
                REACHABLE,
                synced,
                credentials(given.agents),
                group_retention(group.group_name, given.history, seen.consumers if seen.crowded else 0),
                stream_ready,
                _lag_known(seen, given.misread),
                *((given.scaling,) if given.scaling else ()),
                conflict,
                lost,
                consuming(given.group, seen, given.work, given.crashing),
                _dead_lettering(group, seen),
            )
        ),
        events=events,
        finalizer=finalizer,
    )


def destroys(group: ConsumerGroup) -> bool:
    """Returns whether the deletion destroys data, and so has to wait for the operator."""
    return group.spec.deletion_policy is GroupDeletion.DELETE


def may_change(group: ConsumerGroup, stream: AgentStream | None) -> bool:
    """Returns whether the operator may change the group on the server."""
    return not group.paused and (stream is None or managed(stream))


_ABSENT = GroupSeen(exists=False)
_LATEST = 253_402_300_799_000  # the latest time of a date, in ms; clients may choose any id
STREAM_READY = ConditionUpdate(ConditionType.STREAM_READY, "True", ConditionReason.READY)


def _stream_ready(given: GroupInput) -> ConditionUpdate:
    name, stream = given.group.spec.stream_ref.name, given.stream
    if stream is None:
        return _no_stream(f"AgentStream {name} not found")
    if stream.deleting:
        return _no_stream(f"AgentStream {name} is being deleted")
    return _on_server(given, stream)


def _on_server(given: GroupInput, stream: AgentStream) -> ConditionUpdate:
    """Returns whether the stream exists on the server and belongs to this installation."""
    name, seen = stream.metadata.name, given.seen
    if stream_conflict(stream, given.stream_winner) is not NO_CONFLICT:
        return _no_stream(f"AgentStream {name} has a conflict")
    if seen is None or seen.type == "none":
        return _no_stream(f"the stream {stream.stream_key} does not exist yet")
    if seen.type != "stream":
        message = f"{stream.stream_key} is a {seen.type}, not a stream"
        return ConditionUpdate(ConditionType.STREAM_READY, "False", ConditionReason.WRONG_TYPE, message)
    if foreign(stream, seen, given.installation, given.namespace) is not NO_CONFLICT:
        return _no_stream(f"AgentStream {name} has a conflict")
    return STREAM_READY


def _no_stream(message: str) -> ConditionUpdate:
    return ConditionUpdate(ConditionType.STREAM_READY, "False", ConditionReason.STREAM_MISSING, message)


def _create(
    given: GroupInput, key: str, stream: StreamSeen, seen: GroupSeen
) -> tuple[tuple[Action, ...], tuple[EventNote, ...]]:
    group, name = given.group, given.group.group_name
    checkpoint = stream.checkpoint(name)
    if seen.exists:
        if seen.retry_ready:
            return (), ()
        # the group exists, so its start makes no difference
        return (CreateGroup(key, name, "0"),), ()
    if checkpoint is None and not given.established:
        created = EventNote(ConditionReason.GROUP_CREATED, f"created the group {name} on {key}")
        return (CreateGroup(key, name, group.start_id),), (created,)
    start = resume_at(stream, checkpoint)
    where = "its beginning" if start == "0" else f"its checkpoint {start}"
    message = f"recreated the group {name} on {key} at {where}"
    restored = EventNote(ConditionReason.GROUP_RESTORED, message, warning=True)
    if not given.stream_lost:
        return (CreateGroup(key, name, start),), (restored,)
    message = f"messages that the group {name} had not settled were lost with the stream {key}"
    lost = EventNote(ConditionReason.DATA_LOST, message, warning=True)
    return (CreateGroup(key, name, start),), (lost, restored)


def resume_at(stream: StreamSeen, checkpoint: str | None) -> str:
    """Returns where a lost group resumes: at its checkpoint, or at `0` if the stream ends before that."""
    if checkpoint is None or stream.last is None or parts(checkpoint) > parts(stream.last):
        return "0"
    return checkpoint


def _held_back(actions: tuple[Action, ...]) -> ConditionUpdate:
    if not actions:
        return ConditionUpdate(ConditionType.SYNCED, "True", ConditionReason.PAUSED)
    message = f"would {', '.join(map(str, actions))}"
    return ConditionUpdate(ConditionType.SYNCED, "False", ConditionReason.PAUSED, message)


def _lag_known(seen: GroupSeen, misread: str) -> ConditionUpdate:
    kind = ConditionType.LAG_KNOWN
    if misread:
        return ConditionUpdate(kind, "False", ConditionReason.STATS_UNREADABLE, misread)
    if not seen.exists:
        return ConditionUpdate(kind, "Unknown", ConditionReason.LAG_UNKNOWN, "the group does not exist")
    reason = ConditionReason.LAG_EXACT if seen.exact else ConditionReason.LAG_ESTIMATED
    return ConditionUpdate(kind, "True", reason)


def consuming(group: ConsumerGroup, seen: GroupSeen, work: Activity, crashing: str | None) -> ConditionUpdate:
    """Returns whether the group's messages are being handled, as far as there are any.

    Args:
        group: the group.
        seen: the group on the server.
        work: what becomes of its messages.
        crashing: why its consumers' processes end, if they do.
    """
    kind = ConditionType.CONSUMING
    if crashing is not None:
        return ConditionUpdate(kind, "False", ConditionReason.CRASH_LOOP, crashing)
    if group.spec.suspend:
        message = "messages wait until `suspend` is false"
        return ConditionUpdate(kind, "False", ConditionReason.SUSPENDED, message)
    if not seen.exists or seen.unreadable:
        message = "the group does not exist, or its counters cannot be read"
        return ConditionUpdate(kind, "Unknown", ConditionReason.LAG_UNKNOWN, message)
    if work is Activity.STANDING:
        return ConditionUpdate(kind, "False", *_standing(seen))
    if work is Activity.RUNNING:
        deadline = group.spec.delivery.deadline
        ends = f"`delivery.deadline` ends a handler after {deadline}" if deadline is not None else (
            "no `delivery.deadline` is set to end a handler that hangs"
        )  # fmt: skip
        message = f"consumers renew what they hold, and settled nothing lately{_held_since(seen)}; {ends}"
        return ConditionUpdate(kind, "True", ConditionReason.HANDLERS_RUNNING, message)
    return ConditionUpdate(kind, "True", ConditionReason.PROGRESSING)


def _standing(seen: GroupSeen) -> tuple[ConditionReason, str]:
    if seen.pending + seen.retry_pending == 0:
        message = (
            "messages wait, and no consumer takes them: start consumers, or read the logs of those there are"
        )
        return ConditionReason.NO_CONSUMERS, message
    message = (
        "messages wait, but none was settled, nor its lease renewed, for three leases (at least one minute)"
        f"{_held_since(seen)}; read the consumers' logs, and delete the pod that holds them if it hangs"
    )
    return ConditionReason.NO_PROGRESS, message


def _held_since(seen: GroupSeen) -> str:
    """When the oldest message in hand was added: a duration would change the status every second."""
    if seen.oldest_pending is None:
        return ""
    ms = min(parts(seen.oldest_pending)[0], _LATEST)
    return f"; the oldest in hand was added at {datetime.fromtimestamp(ms // 1000, UTC):%Y-%m-%dT%H:%M:%SZ}"


def _dead_lettering(group: ConsumerGroup, seen: GroupSeen) -> ConditionUpdate:
    if seen.dead == 0:
        return ConditionUpdate(ConditionType.DEAD_LETTERING, "False", ConditionReason.NO_DEAD_LETTERS)
    limit = group.spec.dead_letter.max_length
    count = f"more than {limit}" if seen.dead > limit else "some"
    message = f"the group has {count} dead letters"
    return ConditionUpdate(ConditionType.DEAD_LETTERING, "True", ConditionReason.DEAD_LETTERS, message)


def _deletion(given: GroupInput) -> Plan:  # noqa: PLR0911 - one per case
    group, name = given.group, given.group.group_name
    stays = EventNote(ConditionReason.RETAINED, f"kept the group {name} on the server")
    if group_conflict(group, given.winner) is not NO_CONFLICT:
        return Plan(finished=True)
    if not destroys(group):
        return Plan(events=(stays,), finished=True)
    if given.outage is not None:
        if group.force_delete or given.deleted_for >= GIVE_UP:
            message = f"server unreachable: the group {name}, if it exists, was not deleted"
            return Plan(events=(EventNote(ConditionReason.RETAINED, message, warning=True),), finished=True)
        return Plan(conditions=unreachable(given.outage), finalizer=True)
    stream = given.stream
    if stream is None or _on_server(given, stream) is not STREAM_READY:
        # keys derived from a deleted stream are deleted with it, and those of others are kept
        return Plan(finished=True)
    action = DestroyGroup(stream.stream_key, name)
    if not may_change(group, stream) and not group.force_delete:
        paused = ConditionUpdate(ConditionType.SYNCED, "False", ConditionReason.PAUSED, f"would {action}")
        return Plan(conditions=with_ready((REACHABLE, paused)), finalizer=True)
    deleted = EventNote(ConditionReason.GROUP_DELETED, f"deleted the group {name} and its retries")
    return Plan(actions=(action,), events=(deleted,), finished=True)
