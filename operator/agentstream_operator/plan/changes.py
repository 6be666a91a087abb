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
from agentstream_operator.resources.meta import API_VERSION, ResourceKey
from agentstream_operator.resources.parse import AnyResource, InvalidResource, parse_resource
from agentstream_operator.resources.reasons import ConditionReason
from agentstream_operator.resources.streamreplay import ReplayAction, StreamReplay

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
        return PlannedResource(trial.key, Act.REMOVE, means=(_removed(_parsed(trial.key, before)),))
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
    known = {"apiVersion": API_VERSION, "kind": key.kind, "spec": (manifest or {}).get("spec")}
    whole = {**known, "metadata": {"name": key.name, "namespace": key.namespace}}
    try:
        return parse_resource(whole)
    except InvalidResource:
        return None


def _removed(resource: AnyResource | None) -> str:
    match resource:
        case AgentStream():
            return (
                f"the stream {resource.stream_key} "
                + {
                    StreamDeletion.DELETE: "is deleted with its messages",
                    StreamDeletion.DELETE_IF_EMPTY: "is deleted, unless a group has messages left",
                    StreamDeletion.RETAIN: "stays with its messages, and is trimmed no more",
                }[resource.spec.deletion_policy]
            )
        case ConsumerGroup():
            return (
                f"the group {resource.group_name} "
                + {
                    GroupDeletion.DELETE: "is deleted, and what it has not settled with it",
                    GroupDeletion.RETAIN: "stays where it is, and has no consumers any more",
                }[resource.spec.deletion_policy]
            )
    return "it is of another version"


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


def _start(group: ConsumerGroup, stream: StreamNow) -> str:
    count = f"{stream.length:,} " if stream.length else ""
    starts = {
        "End": "what is sent from now on (startFrom: End)",
        "Beginning": f"all {count}messages that the stream has (startFrom: Beginning)",
    }
    start = group.spec.start_from
    return starts.get(start, f"the messages of the stream from {start} on")


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
    gone = ", ".join(name for name in old.producers if name not in new.producers)
    more = ", ".join(name for name in new.producers if name not in old.producers)
    unsigned = "messages without a valid signature"
    signing = {
        SignaturePolicy.OFF: "messages are neither signed nor verified any more",
        SignaturePolicy.WARN: f"{unsigned} are delivered, counted and logged",
        SignaturePolicy.REQUIRE: f"{unsigned} become dead letters",
    }[after.signatures]
    observed = new.management_policy is ManagementPolicy.OBSERVE_ONLY
    larger = f"messages above {new.max_message_bytes:,} bytes are refused; those there become dead letters"
    casts = f"broadcasts are {'' if new.broadcast else 'not '}sent to it"
    destroys = old.deletion_policy is StreamDeletion.RETAIN is not new.deletion_policy
    yield from _told(
        (bool(gone), f"may not send any more: {gone}"),
        (bool(more), f"may send from now on: {more}"),
        (new.max_message_bytes < old.max_message_bytes, larger),
        (after.signatures is not before.signatures, signing),
        (new.contracts != old.contracts, "payloads that do not match their contract become dead letters"),
        (new.broadcast is not old.broadcast, casts),
        (
            observed and old.management_policy is not new.management_policy,
            ConditionReason.OBSERVE_ONLY.meaning,
        ),
        (destroys, "deleting the resource will delete its messages"),
    )


def _group(before: ConsumerGroup, after: ConsumerGroup) -> Iterator[str]:
    old, new = before.spec, after.spec
    attempts, kept = new.delivery.max_deliveries, new.dead_letter.min_age
    replaced = "its consumers are replaced; what they hold is handled, or delivered again"
    dead, was = new.dead_letter.enabled, old.dead_letter.enabled
    addressed = "it gets only what is addressed to it, and broadcasts"
    everything = new.deliver is DeliverPolicy.ALL
    destroys = old.deletion_policy is GroupDeletion.RETAIN is not new.deletion_policy
    yield from _told(
        (new.suspend and not old.suspend, "it has no consumers, and messages wait"),
        (old.suspend and not new.suspend, "its consumers start again"),
        (new.template != old.template, replaced),
        (new.deployment_ref != old.deployment_ref, "another Deployment is scaled"),
        (
            attempts < old.delivery.max_deliveries,
            f"what has failed {attempts} times is dead at its next failure",
        ),
        (dead and not was, "what fails for good becomes a dead letter again"),
        (was and not dead, "nothing becomes a dead letter: what fails is tried for ever"),
        (kept < old.dead_letter.min_age, f"dead letters older than {kept} are removed for good"),
        (new.deliver is not old.deliver, "it gets every message" if everything else addressed),
        (destroys, "deleting the resource will delete the group and what it has not settled"),
    )


def _told(*texts: tuple[bool, str]) -> Iterator[str]:
    return (text for holds, text in texts if holds)


def _age(seconds: float) -> str:
    whole = int(seconds) // _MINUTE * _MINUTE if seconds >= _MINUTE else int(seconds)
    return str(Duration(whole * 1_000))
