"""Decides what applying a manifest would change, and what that means for messages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any, NamedTuple

import msgspec

from agentstream_operator.resources.agentstream import (
    AgentStream,
    ManagementPolicy,
    OnFull,
    SignaturePolicy,
    StreamDeletion,
)
from agentstream_operator.resources.consumergroup import ConsumerGroup, DeliverPolicy, GroupDeletion
from agentstream_operator.resources.duration import Duration
from agentstream_operator.resources.meta import ResourceKey
from agentstream_operator.resources.parse import AnyResource, InvalidResource, parse_resource
from agentstream_operator.resources.reasons import ConditionReason
from agentstream_operator.resources.streamreplay import ReplayAction, StreamReplay

_MANIFEST = {"spec", "metadata"}
_METADATA = ("labels", "annotations")
_MINUTE = 60


class Act(StrEnum):
    """What applying a manifest does to a resource."""

    CREATE = "create"
    CHANGE = "change"
    REMOVE = "remove"
    REFUSE = "refused"
    NOTHING = "nothing"


class Trial(msgspec.Struct, frozen=True):
    """A resource before and after its manifest was applied for trial; None: it is not there."""

    key: ResourceKey
    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None
    refused: tuple[str, ...] = ()
    orphan: bool = False  # whether it is a group whose stream is neither there nor declared


class FieldChange(NamedTuple):
    """A field that changes; None: it is absent."""

    path: str
    before: Any
    after: Any


class StreamNow(NamedTuple):
    """A stream as it is just now; None: that is not known."""

    length: int | None = None
    history: float | None = None  # age of its oldest message, in seconds


class PlannedResource(msgspec.Struct, frozen=True):
    """What applying a manifest does to a resource, and what that means."""

    key: ResourceKey
    act: Act
    fields: tuple[FieldChange, ...] = ()
    means: tuple[str, ...] = ()


def change_of(trial: Trial, stream: StreamNow) -> PlannedResource:
    """Returns what a manifest changes; `stream` is that of the resource as it is now."""
    before, after = trial.before, trial.after
    if trial.refused:
        return PlannedResource(trial.key, Act.REFUSE, means=trial.refused)
    if after is None:
        return PlannedResource(trial.key, Act.REMOVE, means=tuple(_removed(_parsed(trial.key, before))))
    resource = _parsed(trial.key, after)
    if before is None:
        return PlannedResource(trial.key, Act.CREATE, means=(*_created(resource, stream), *_orphan(trial)))
    fields = tuple(_fields(before, after))
    if not fields:
        return PlannedResource(trial.key, Act.NOTHING)
    return PlannedResource(
        trial.key, Act.CHANGE, fields, tuple(_changed(_parsed(trial.key, before), resource, stream))
    )


def differences(before: Any, after: Any, path: str) -> Iterator[FieldChange]:
    """Yields the fields that differ, as deep as both are maps, or lists of one length."""
    if before == after:
        return
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for name in dict.fromkeys((*before, *after)):
            yield from differences(before.get(name), after.get(name), f"{path}.{name}")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for place, pair in enumerate(zip(before, after, strict=True)):
            yield from differences(*pair, f"{path}[{place}]")
    else:
        yield FieldChange(path, before, after)


def _fields(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[FieldChange]:
    yield from differences(before.get("spec") or {}, after.get("spec") or {}, "spec")
    for part in _METADATA:
        old, new = ((each.get("metadata") or {}).get(part) or {} for each in (before, after))
        yield from differences(old, new, f"metadata.{part}")


def _parsed(key: ResourceKey, manifest: Mapping[str, Any] | None) -> AnyResource | None:
    """The resource; None if this version cannot read it, as one of another version."""
    if manifest is None:
        return None
    known = {name: part for name, part in manifest.items() if name in _MANIFEST}
    metadata = {**(known.get("metadata") or {}), "name": key.name, "namespace": key.namespace}
    whole = {**known, "metadata": metadata, "apiVersion": "agentstream.dev/v1alpha1", "kind": key.kind}
    try:
        return parse_resource(whole)
    except InvalidResource:
        return None


def _removed(resource: AnyResource | None) -> Iterator[str]:
    match resource:
        case AgentStream() if resource.spec.deletion_policy is StreamDeletion.DELETE:
            yield f"the stream {resource.stream_key} is deleted with its messages"
        case AgentStream() if resource.spec.deletion_policy is StreamDeletion.DELETE_IF_EMPTY:
            yield f"the stream {resource.stream_key} is deleted, unless a group has messages left"
        case AgentStream():
            yield f"the stream {resource.stream_key} stays with its messages, and is trimmed no more"
        case ConsumerGroup() if resource.spec.deletion_policy is GroupDeletion.DELETE:
            yield f"the group {resource.group_name} is deleted, and what it has not settled with it"
        case ConsumerGroup():
            yield f"the group {resource.group_name} stays where it is, and has no consumers any more"
        case _:
            return


def _orphan(trial: Trial) -> Iterator[str]:
    if trial.orphan:
        reason = ConditionReason.STREAM_MISSING
        yield f"{reason}: {reason.meaning} {reason.action}"


def _created(resource: AnyResource | None, stream: StreamNow) -> Iterator[str]:
    match resource:
        case AgentStream():
            yield f"makes the stream {resource.stream_key}, or takes over one that is there with its messages"
            if resource.spec.management_policy is ManagementPolicy.OBSERVE_ONLY:
                yield ConditionReason.OBSERVE_ONLY.meaning
            if not resource.spec.producers:
                yield "no agent may send to it: spec.producers is empty"
        case ConsumerGroup():
            yield f"a new group gets {_start(resource, stream)}; one that is there goes on where it was"
            if resource.spec.deliver is DeliverPolicy.ALL:
                yield "it gets every message, also those for other agents"
        case StreamReplay() if resource.spec.action is ReplayAction.DROP:
            yield f"removes dead letters of {resource.spec.group_ref.name} for good"
        case StreamReplay():
            group = resource.spec.group_ref.name
            yield f"gives messages to {group} once more: `agentstream replay {group} --dry-run` counts them"
        case _:
            return


def _start(group: ConsumerGroup, stream: StreamNow) -> str:
    match group.spec.start_from:
        case "End":
            return "what is sent from now on (startFrom: End)"
        case "Beginning":
            number = "all messages" if not stream.length else f"all {stream.length:,} messages"
            return f"{number} that the stream has (startFrom: Beginning)"
        case start:
            return f"the messages of the stream from {start} on"


def _changed(before: AnyResource | None, after: AnyResource | None, now: StreamNow) -> Iterator[str]:
    if isinstance(before, AgentStream) and isinstance(after, AgentStream):
        yield from _retention(before, after, now)
        yield from _stream(before, after)
    elif isinstance(before, ConsumerGroup) and isinstance(after, ConsumerGroup):
        yield from _group(before, after)


def _retention(before: AgentStream, after: AgentStream, now: StreamNow) -> Iterator[str]:
    old, new = before.spec.retention, after.spec.retention
    if new.min_age < old.min_age:
        oldest = "" if now.history is None else f"; the oldest one is {_age(now.history)} old"
        yield f"settled messages older than {new.min_age} are removed for good{oldest}"
    if new.max_length < old.max_length or (new.max_bytes or 0) < (old.max_bytes or 0):
        have = "" if now.length is None else f"; the stream has {now.length:,} messages"
        yield f"the smaller limit holds at once, by onFull: {new.on_full}{have}"
    if new.on_full is not old.on_full:
        yield {
            OnFull.TRIM_ACKNOWLEDGED: "at a limit, settled messages are removed before minAge",
            OnFull.BACKPRESSURE: "at a limit, new messages are refused, and senders wait",
            OnFull.TRIM_OLDEST: "at a limit, the oldest messages are removed, also those nobody has handled",
        }[new.on_full]


def _stream(before: AgentStream, after: AgentStream) -> Iterator[str]:
    old, new = before.spec, after.spec
    if gone := [name for name in old.producers if name not in new.producers]:
        yield f"may not send any more: {', '.join(gone)}"
    if more := [name for name in new.producers if name not in old.producers]:
        yield f"may send from now on: {', '.join(more)}"
    if new.max_message_bytes < old.max_message_bytes:
        yield f"messages above {new.max_message_bytes:,} bytes are refused; those there become dead letters"
    if after.signatures is not before.signatures:
        yield {
            SignaturePolicy.OFF: "messages are neither signed nor verified any more",
            SignaturePolicy.WARN: "messages without a valid signature are delivered, counted and logged",
            SignaturePolicy.REQUIRE: "messages without a valid signature become dead letters",
        }[after.signatures]
    if new.contracts != old.contracts:
        yield "payloads that do not match their contract are refused, or become dead letters"
    if new.broadcast is not old.broadcast:
        yield "broadcasts are sent to it" if new.broadcast else "broadcasts are not sent to it any more"
    if new.management_policy is not old.management_policy:
        observes = new.management_policy is ManagementPolicy.OBSERVE_ONLY
        yield ConditionReason.OBSERVE_ONLY.meaning if observes else "the operator changes the server again"
    if new.deletion_policy is not old.deletion_policy and new.deletion_policy is not StreamDeletion.RETAIN:
        yield "deleting the resource will delete its messages"


def _group(before: ConsumerGroup, after: ConsumerGroup) -> Iterator[str]:
    old, new = before.spec, after.spec
    if new.suspend is not old.suspend:
        yield "it has no consumers, and messages wait" if new.suspend else "its consumers start again"
    if new.template != old.template:
        yield "its consumers are replaced; what they hold is handled, or delivered again"
    if new.deployment_ref != old.deployment_ref:
        yield "another Deployment is scaled"
    if new.delivery.max_deliveries < old.delivery.max_deliveries:
        yield f"what has failed {new.delivery.max_deliveries} times becomes a dead letter at its next failure"
    if new.dead_letter.enabled is not old.dead_letter.enabled:
        yield (
            "what fails for good becomes a dead letter again"
            if new.dead_letter.enabled
            else "nothing becomes a dead letter: what fails is tried for ever"
        )
    if new.dead_letter.min_age < old.dead_letter.min_age:
        yield f"dead letters older than {new.dead_letter.min_age} are removed for good"
    if new.deliver is not old.deliver:
        everything = new.deliver is DeliverPolicy.ALL
        yield (
            "it gets every message" if everything else "it gets only what is addressed to it, and broadcasts"
        )
    if new.deletion_policy is not old.deletion_policy and new.deletion_policy is GroupDeletion.DELETE:
        yield "deleting the resource will delete the group and what it has not settled"


def _age(seconds: float) -> str:
    whole = int(seconds) // _MINUTE * _MINUTE if seconds >= _MINUTE else int(seconds)
    return str(Duration(whole * 1_000))
