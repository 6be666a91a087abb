"""Decides what others did to a stream and its groups that the server does not forbid, and how it heals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agentstream_operator.plan.accounting import GroupTotals
from agentstream_operator.plan.actions import HealGroup, HealIds
from agentstream_operator.plan.conditions import ConditionUpdate, EventNote
from agentstream_operator.plan.observed import GroupSeen, StreamSeen
from agentstream_operator.resources.agentstream import AgentStream
from agentstream_operator.resources.consumergroup import ConsumerGroup
from agentstream_operator.resources.status import ConditionReason, ConditionType

AHEAD = 60_000
"""By how many ms an id may be ahead of the server's clock; `as1_heal_ids` has the same bound."""

_LAST = 2**64 - 1
_NAMED = 10


@dataclass(frozen=True, slots=True)
class Healing:
    """Heals what was asked for: an action, and the event to emit afterwards."""

    action: HealGroup | HealIds
    event: EventNote


def ids_in_the_future(seen: StreamSeen) -> ConditionUpdate:
    """Returns whether the last id of a stream is of the future."""
    kind, (ms, sequence) = ConditionType.IDS_IN_THE_FUTURE, parts(seen.last or "0-0")
    if ms <= seen.now + AHEAD:
        return ConditionUpdate(kind, "False", ConditionReason.IDS_CURRENT)
    if ms == sequence == _LAST:
        message = f"the id {seen.last} was added, the highest that there is: the stream takes no more entries"
        return ConditionUpdate(kind, "True", ConditionReason.IDS_EXHAUSTED, message)
    message = f"the stream's ids are later than the server's clock: {seen.last} or a lower one was added"
    return ConditionUpdate(kind, "True", ConditionReason.IDS_IN_THE_FUTURE, message)


def heal_ids(stream: AgentStream, seen: StreamSeen, groups: Sequence[str]) -> Healing | None:
    """Returns how the ids of a stream are healed, if they need it and that is wanted."""
    if stream.heal != "ids" or ids_in_the_future(seen).status == "False":
        return None
    message = f"moved what was unsettled on {stream.stream_key} to retries, and began the stream anew"
    action = HealIds(stream.stream_key, tuple(groups))
    return Healing(action, EventNote(ConditionReason.IDS_HEALED, message, warning=True))


def messages_lost(
    stream: StreamSeen, group: GroupSeen, totals: GroupTotals | None, suspects: Sequence[str] = ()
) -> ConditionUpdate:
    """Returns whether others took messages from a group; `suspects` are the agents that could."""
    kind, taken = ConditionType.MESSAGES_LOST, totals.taken if totals is not None else 0
    if group.exists and stream.last is not None and parts(group.last or "0-0") > parts(stream.last):
        message = f"the group was moved to {group.last}, past the end of its stream, {stream.last}"
        return ConditionUpdate(kind, "True", ConditionReason.GROUP_MOVED_AHEAD, message + _by(suspects))
    if not taken:
        return ConditionUpdate(kind, "False", ConditionReason.NONE_LOST)
    message = f"{taken} unsettled messages were trimmed, deleted, or read or acknowledged in the group's name"
    return ConditionUpdate(kind, "True", ConditionReason.MESSAGES_VANISHED, message + _by(suspects))


def heal_group(group: ConsumerGroup, key: str, lost: ConditionUpdate) -> Healing | None:
    """Returns how a group of the stream with this key is healed, if it needs it and that is wanted."""
    if lost.status == "False" or group.heal not in {"repeat", "write-off"}:
        return None
    again = group.heal == "repeat"
    what = "delivered again what it was given since its checkpoint" if again else "written off"
    event = EventNote(ConditionReason.GROUP_HEALED, f"{lost.message}; {what}", warning=True)
    return Healing(HealGroup(key, group.group_name, again), event)


def parts(entry: str) -> tuple[int, int]:
    """Returns the two parts of an id; the second one may be left out."""
    ms, _, sequence = entry.partition("-")
    return int(ms), int(sequence or 0)


def _by(suspects: Sequence[str]) -> str:
    if not suspects:
        return ""
    more = f" and {len(suspects) - _NAMED} more" if len(suspects) > _NAMED else ""
    return f"; these agents could, beside administrators: {', '.join(suspects[:_NAMED])}{more}"
