"""Decides how a stream that exists is declared, so that taking it over loses nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from agentstream.protocol.entry import position
from agentstream.protocol.keys import DNS_LABEL
from agentstream.protocol.reasons import Reason
from agentstream_operator.resources.duration import LONGEST, Duration, parse_duration
from agentstream_operator.resources.meta import API_VERSION
from agentstream_operator.resources.parse import parse_resource
from agentstream_operator.resources.reasons import ConditionReason

_KEEPS: Final = "minAge keeps everything that is there: lower it when the history is not needed"
_HOUR: Final = 3_600_000
LARGEST: Final = 17 << 20
"""Bytes above which an entry is removed at the ends of a stream; in the function library, too."""

_DEFAULT_LENGTH: Final = 1_000_000
_MOST: Final = 1_000_000_000
_DEFAULT_KEY = re.compile(rf"\{{({DNS_LABEL})\.({DNS_LABEL})\}}")
_LABEL = re.compile(DNS_LABEL)


class ExistingGroup(msgspec.Struct, frozen=True):
    """A group of a stream that no resource declares."""

    name: str
    last: str  # the last delivered entry
    pending: int = 0
    consumers: tuple[str, ...] = ()  # those that hold pending entries


class ExistingStream(msgspec.Struct, frozen=True):
    """A stream that no resource declares, and what its newest entries are like."""

    now: int  # ms of the server's clock
    length: int
    first: str | None
    groups: tuple[ExistingGroup, ...] = ()
    owner: Mapping[str, str] = {}  # what the operator's hash says of the resource that it belongs to
    looked: int = 0  # entries that were looked at
    foreign: int = 0  # those of them that are no messages of AgentStream
    oversized: int = 0  # those of them, or the first one, that are larger than any message
    senders: tuple[str, ...] = ()


class Declared(msgspec.Struct, frozen=True):
    """A manifest, and what to know about it; no manifest for what cannot be declared."""

    manifest: dict[str, Any] | None
    notes: tuple[str, ...] = ()


def take_over(existing: ExistingStream, key: str, namespace: str | None) -> tuple[Declared, ...]:
    """Returns an AgentStream and ConsumerGroups for a stream and its groups.

    Args:
        existing: the stream.
        key: its key.
        namespace: of the resources; that in the key, or `default`, if absent.

    Raises:
        InvalidResource: no AgentStream can have this key.
    """
    found = _DEFAULT_KEY.fullmatch(key)
    where = namespace or (found[1] if found else "default")
    name = found[3] if found else _label(key)
    spec: dict[str, Any] = {"key": key}
    if retention := _retention(existing):
        spec["retention"] = retention
    if senders := [sender for sender in existing.senders if _LABEL.fullmatch(sender)]:
        spec["producers"] = senders[:256]
    if _too_old(existing) or existing.oversized:
        spec["managementPolicy"] = "ObserveOnly"
    stream = _resource("AgentStream", where, name, spec)
    parse_resource(stream)
    notes = tuple(_notes(existing, key, where))
    return (Declared(stream, notes), *(_group(each, where, name) for each in existing.groups))


def _resource(kind: str, namespace: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": metadata, "spec": spec}


def _label(text: str) -> str:
    """A name that is made of a key."""
    return re.sub("[^a-z0-9]+", "-", text.lower()).strip("-")[:63].strip("-") or "stream"


def _age(existing: ExistingStream) -> int:
    """The age of the oldest message in ms; 0 if there is none, or its id is of the future."""
    return max(existing.now - position(existing.first)[0], 0) if existing.first is not None else 0


def _too_old(existing: ExistingStream) -> bool:
    """Whether its ids are older than any retention, as those that are no times."""
    return _age(existing) + 25 * _HOUR > parse_duration(LONGEST).milliseconds


def _retention(existing: ExistingStream) -> dict[str, Any]:
    retention: dict[str, Any] = {}
    age = _age(existing)
    if age and not _too_old(existing):
        retention["minAge"] = str(Duration((age // _HOUR + 25) * _HOUR))
    if 2 * existing.length > _DEFAULT_LENGTH:
        retention["maxLength"] = min(2 * existing.length, _MOST)
    return retention


def _notes(existing: ExistingStream, key: str, namespace: str) -> Iterator[str]:
    owner = existing.owner
    if owner:
        whose = f"{owner.get('namespace', '?')}/{owner.get('name', '?')}"
        yield f"it belongs to AgentStream {whose} of installation {owner.get('installation', '?')} already"
    if not key.startswith(f"{{{namespace}."):
        yield (
            f"the key does not begin with {{{namespace}.: in a cluster {ConditionReason.KEY_NOT_ALLOWED}"
            " unless allowKeys of the chart has it"
        )
    if _too_old(existing):
        yield (
            f"the ids are no times, or older than {LONGEST}: with Managed, all that every group has settled "
            "would be removed, so the operator only observes it"
        )
    elif existing.first is not None:
        yield _KEEPS
    if existing.oversized:
        size = f"larger than {LARGEST >> 20} MiB, more than any message may have: {existing.oversized:,}"
        yield f"entries {size}; at the ends of a stream they are removed, so the operator only observes it"
    if position(existing.first)[0] > existing.now:
        yield f"{ConditionReason.IDS_IN_THE_FUTURE}: {ConditionReason.IDS_IN_THE_FUTURE.meaning}"
    if existing.foreign:
        yield (
            f"{existing.foreign:,} of the newest {existing.looked:,} entries without a message of AgentStream"
            f" (no field m, or unreadable): consumers make dead letters of such ({Reason.MALFORMED})"
        )
    others = [sender for sender in existing.senders if not _LABEL.fullmatch(sender)]
    if others:
        yield f"senders whose names no agent can have: {', '.join(others)}"
    if len(others) == len(existing.senders):
        yield "no agent may send to it before spec.producers names it"


def _group(group: ExistingGroup, namespace: str, stream: str) -> Declared:
    held: tuple[str, ...] = ()
    if group.pending:
        names = ", ".join(group.consumers)
        then = "consumers of the group get them when their lease has ended"
        held = (f"pending: {group.pending:,}, held by {names}; {then}",)
    if not _LABEL.fullmatch(group.name):
        text = (
            f"the group {group.name} cannot be declared: its name is no DNS label. It stays where it is; "
            "what it has not settled is kept for it as long as one of its consumers comes each day"
        )
        return Declared(None, (text, *held))
    spec = {
        "streamRef": {"name": stream},
        "group": group.name,
        "startFrom": "Beginning" if position(group.last) == (0, 0) else group.last,
        "deliver": "All",
    }
    addressed = "deliver: All, as it is now: Addressed would leave out what is for other agents"
    return Declared(_resource("ConsumerGroup", namespace, group.name, spec), (addressed, *held))
