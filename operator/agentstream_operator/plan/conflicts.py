"""Decides which of several resources gets a stream key or a group: the oldest."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import TypeVar

from agentstream.protocol.keys import DNS_LABEL, StreamKeys
from agentstream_operator.plan.conditions import NO_CONFLICT, ConditionUpdate
from agentstream_operator.plan.observed import StreamSeen
from agentstream_operator.resources.agentstream import AgentStream
from agentstream_operator.resources.consumergroup import ConsumerGroup
from agentstream_operator.resources.meta import ADOPT_ANNOTATION, NamespaceSeen, Resource
from agentstream_operator.resources.status import ConditionReason, ConditionType

R = TypeVar("R", bound=Resource)
_OF_NAMESPACE = re.compile(rf"\{{(?P<owner>{DNS_LABEL})\.")
_NEVER = datetime.max.replace(tzinfo=UTC)


def seniority(resource: Resource) -> tuple[datetime, str, str]:
    """Sort key: the oldest resource first, then by namespace and name."""
    meta = resource.metadata
    return (meta.creation_timestamp or _NEVER, meta.namespace, meta.name)


def oldest(claimants: Iterable[R]) -> R | None:
    """Returns the oldest resource."""
    return min(claimants, key=seniority, default=None)


def may_claim(stream: AgentStream, allowed: Sequence[str]) -> bool:
    """Returns whether a stream's key begins with `{<namespace>.` or matches an allowed shell pattern.

    No pattern matches a key that begins so with another namespace; a key without braces that derives the
    same names as such a key is matched only by a pattern that spells its beginning out.
    """
    key, namespace = stream.stream_key, stream.metadata.namespace
    of_namespace = _OF_NAMESPACE.match(claim_of(stream))
    if of_namespace is None:
        return any(fnmatchcase(key, pattern) for pattern in allowed)
    owner, spelled = of_namespace["owner"], of_namespace[0]
    if key.startswith(spelled):
        return owner == namespace
    return any(
        fnmatchcase(key, pattern)
        for pattern in allowed
        if owner == namespace or pattern.startswith(spelled[1:])
    )


def claim_of(stream: AgentStream) -> str:
    """Returns the base of the keys derived from a stream's key; `a` and `{a}` derive the same."""
    return StreamKeys(stream.stream_key).base


def stream_conflict(stream: AgentStream, winner: AgentStream | None) -> ConditionUpdate:
    """Returns whether the key belongs to `winner`, an older AgentStream, or is not allowed (None)."""
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


def foreign(
    stream: AgentStream, seen: StreamSeen, installation: str, namespace: NamespaceSeen
) -> ConditionUpdate:
    """Returns whether the observed key belongs to another installation, or was left by another namespace.

    A namespace made again under its old name is another one, unless it is annotated to take over data.
    """
    key, here = stream.stream_key, stream.metadata.namespace
    owner = seen.meta.get("installation", installation)
    if owner != installation:
        return _conflict(ConditionReason.KEY_CLAIMED, f"{key} is already used by the installation {owner}")
    former, uid = seen.meta.get("namespace", here), seen.meta.get("namespace_uid", namespace.uid)
    if namespace.adopts or not namespace.uid or (former, uid) == (here, namespace.uid):
        return NO_CONFLICT
    whose = "a former" if former == here else "the"
    found = f"{key} holds {seen.length} messages of {whose} namespace {former}"
    remedy = f"annotate the namespace {here} with {ADOPT_ANNOTATION}=true to take them over"
    return _conflict(ConditionReason.KEY_OF_FORMER_NAMESPACE, f"{found}: {remedy}, or choose another key")


def group_conflict(group: ConsumerGroup, winner: ConsumerGroup) -> ConditionUpdate:
    """Returns whether the group belongs to `winner`, an older ConsumerGroup."""
    if winner.key == group.key:
        return NO_CONFLICT
    name = f"group {group.group_name} of {group.spec.stream_ref.name}"
    message = f"{name} is already used by the older ConsumerGroup {winner.metadata.name}"
    return _conflict(ConditionReason.GROUP_CLAIMED, message)


def _conflict(reason: ConditionReason, message: str) -> ConditionUpdate:
    return ConditionUpdate(ConditionType.CONFLICT, "True", reason, message)
