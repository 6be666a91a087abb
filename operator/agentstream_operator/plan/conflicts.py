"""Who has a stream key or a group when several resources claim it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import TypeVar

from agentstream.protocol.keys import StreamKeys
from agentstream_operator.plan.conditions import NO_CONFLICT, ConditionUpdate
from agentstream_operator.plan.observed import StreamSeen
from agentstream_operator.resources.agentstream import AgentStream
from agentstream_operator.resources.consumergroup import ConsumerGroup
from agentstream_operator.resources.meta import Resource
from agentstream_operator.resources.status import ConditionReason, ConditionType

R = TypeVar("R", bound=Resource)
_NEVER = datetime.max.replace(tzinfo=UTC)


def seniority(resource: Resource) -> tuple[datetime, str, str]:
    """Sorts the oldest resource first; of the same age, by namespace and name."""
    meta = resource.metadata
    return (meta.creation_timestamp or _NEVER, meta.namespace, meta.name)


def oldest(claimants: Iterable[R]) -> R | None:
    """The resource that has what all of them claim."""
    return min(claimants, key=seniority, default=None)


def may_claim(stream: AgentStream, allowed: Sequence[str]) -> bool:
    """Whether a namespace may have a key: its own keys begin with `{<namespace>.`.

    Args:
        stream: who claims.
        allowed: shell patterns of further keys that every namespace may claim.
    """
    key = stream.stream_key
    if key.startswith(f"{{{stream.metadata.namespace}."):
        return True
    return any(fnmatchcase(key, pattern) for pattern in allowed)


def claim_of(stream: AgentStream) -> str:
    """What an AgentStream claims: everything derived from its key. `a` and `{a}` derive the same names."""
    return StreamKeys(stream.stream_key).base


def stream_conflict(stream: AgentStream, winner: AgentStream | None) -> ConditionUpdate:
    """Whether a stream's key is that of another AgentStream, or of nobody in its namespace.

    Args:
        stream: who asks.
        winner: the oldest of those that claim the key and may have it.
    """
    key = stream.stream_key
    if winner is None:
        return _conflict(
            ConditionReason.KEY_NOT_ALLOWED,
            f"{key} is not allowed: keys of this namespace begin with {{{stream.metadata.namespace}.",
        )
    if winner.key != stream.key:
        other = f"{winner.metadata.namespace}/{winner.metadata.name}"
        return _conflict(
            ConditionReason.KEY_CLAIMED, f"{key} is already used by the older AgentStream {other}"
        )
    return NO_CONFLICT


def foreign(stream: AgentStream, seen: StreamSeen, installation: str) -> ConditionUpdate:
    """Whether a stream's key is that of another installation; `seen` is the key."""
    owner = seen.meta.get("installation", installation)
    if owner != installation:
        return _conflict(
            ConditionReason.KEY_CLAIMED, f"{stream.stream_key} is already used by the installation {owner}"
        )
    return NO_CONFLICT


def group_conflict(group: ConsumerGroup, winner: ConsumerGroup) -> ConditionUpdate:
    """Whether a group is somebody else's; `winner` is who has it."""
    if winner.key == group.key:
        return NO_CONFLICT
    name = f"group {group.group_name} of {group.spec.stream_ref.name}"
    message = f"{name} is already used by the older ConsumerGroup {winner.metadata.name}"
    return _conflict(ConditionReason.GROUP_CLAIMED, message)


def _conflict(reason: ConditionReason, message: str) -> ConditionUpdate:
    return ConditionUpdate(ConditionType.CONFLICT, "True", reason, message)
