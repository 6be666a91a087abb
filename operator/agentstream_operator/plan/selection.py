"""Selects the messages of a replay: the one matcher, for those who count and for those who move."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

import msgspec

from agentstream.errors import InvalidMessage
from agentstream.printable import printable
from agentstream.protocol.entry import Entry
from agentstream.protocol.envelope import BROADCAST, decode
from agentstream.protocol.replaying import Selected
from agentstream_operator.plan.letters import LONGEST_REASON, Letter, message_id
from agentstream_operator.resources.agentstream import AgentStream, SignaturePolicy
from agentstream_operator.resources.consumergroup import ConsumerGroup, DeliverPolicy
from agentstream_operator.resources.streamreplay import (
    ExpiredPolicy,
    ReplayAction,
    ReplaySelect,
    ReplaySource,
    StreamReplaySpec,
)


class Skipped(StrEnum):
    """Why a message that matches is not moved, as far as the message itself tells."""

    EXPIRED = "expired"
    NOT_ADDRESSED = "notAddressed"
    UNKNOWN_KEY = "unknownKey"
    INVALID = "invalid"


class _Envelope(msgspec.Struct, frozen=True, gc=False):
    """What is asked of an envelope; the rest of it may be anything."""

    id: str = ""
    sender: str = msgspec.field(name="from", default="")
    to: str = ""
    type: str = ""
    correlation_id: str | None = None
    expires_at: float | None = None
    key: str | None = None


_decoder = msgspec.json.Decoder(_Envelope)
_NO_ENVELOPE = _Envelope()
_EVERYTHING = ReplaySelect()


@dataclass(frozen=True)
class Selection:
    """What a replay selects, and which of that it leaves where it is.

    A message that cannot be read matches by the fields that can be. From the stream it is then skipped, since
    the group would only make it a dead letter; as a dead letter it is moved, since what could not read it may
    have been repaired.

    Attributes:
        select: what is asked for.
        drops: whether dead letters are removed: then nothing is skipped.
        delivers_expired: whether messages are delivered that have expired.
        agent: the agent of a group that gets only what is addressed to it; None for one that gets everything.
        keys: ids of the keys with which messages have to be signed; None where that is not asked for.
    """

    select: ReplaySelect = _EVERYTHING
    drops: bool = False
    delivers_expired: bool = False
    agent: str | None = None
    keys: frozenset[bytes] | None = None

    def verdict(self, found: Entry | Letter, now: float) -> Selected | None:
        """Decides about an entry of the stream or a dead letter; None if it does not match.

        `now` is in seconds since 1970.
        """
        letter = found if isinstance(found, Letter) else None
        entry = found if isinstance(found, Entry) else found.entry
        select = self.select
        if select.reasons is not None and (letter is None or letter.reason not in self._reasons):
            return None
        envelope = _envelope(entry.body)
        if not self._matches(entry.id if letter is None else letter.origin or letter.id, envelope, entry):
            return None
        if self.drops:
            return Selected(entry.id)
        key = envelope.key or "" if envelope is not None else entry.key
        return Selected(entry.id, self._skip(entry, envelope, now, is_dead=letter is not None), key)

    @cached_property
    def _reasons(self) -> frozenset[str]:
        # as letters are read
        return frozenset(printable(reason, LONGEST_REASON) for reason in self.select.reasons or ())

    @cached_property
    def _ids(self) -> frozenset[str]:
        return frozenset(self.select.ids or ())

    def _matches(self, origin: str, envelope: _Envelope | None, entry: Entry) -> bool:
        select, seen = self.select, envelope or _NO_ENVELOPE
        return (
            (select.types is None or seen.type in select.types)
            and (select.senders is None or seen.sender in select.senders)
            and (select.correlation is None or seen.correlation_id == select.correlation)
            and (
                select.ids is None
                or origin in self._ids
                or (seen.id if envelope is not None else message_id(entry.body)) in self._ids
            )
        )

    def _skip(self, entry: Entry, envelope: _Envelope | None, now: float, *, is_dead: bool) -> str:
        """Returns why a message is not moved; empty if it is."""
        if entry.withheld or (not is_dead and not _is_sound(entry)):
            return Skipped.INVALID
        if envelope is None:
            return ""
        if self.agent is not None and envelope.to not in (self.agent, BROADCAST, ""):
            return Skipped.NOT_ADDRESSED
        if not self.delivers_expired and envelope.expires_at is not None and envelope.expires_at <= now:
            return Skipped.EXPIRED
        return Skipped.UNKNOWN_KEY if self._names_no_key(entry.signature) else ""

    def _names_no_key(self, signature: bytes | None) -> bool:
        key, separator, _ = (signature or b"").partition(b":")
        return self.keys is not None and bool(separator) and key not in self.keys


def selection_of(
    spec: StreamReplaySpec, group: ConsumerGroup, stream: AgentStream, keys: Iterable[str] = ()
) -> Selection:
    """Returns what a replay selects.

    Args:
        spec: of the replay.
        group: the group that gets the messages.
        stream: its stream.
        keys: ids of the stream's signing keys, as far as they are known.
    """
    known = frozenset(key.encode() for key in keys)
    asked = known and stream.signatures is SignaturePolicy.REQUIRE
    return Selection(
        spec.select,
        spec.action is ReplayAction.DROP,
        spec.expired is ExpiredPolicy.DELIVER,
        None if group.spec.deliver is DeliverPolicy.ALL else group.agent_name,
        known if asked else None,
    )


def belongs(entry: Entry, correlation: str) -> bool:
    """Whether a message is one of a conversation: it refers to this id, or has it as its own."""
    envelope = _envelope(entry.body)
    return envelope is not None and correlation in (envelope.correlation_id, envelope.id)


def is_dead(spec: StreamReplaySpec) -> bool:
    """Whether a replay reads dead letters."""
    return spec.from_.source is ReplaySource.DEAD_LETTERS


def _envelope(body: bytes | None) -> _Envelope | None:
    try:
        return _decoder.decode(body or b"")
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def _is_sound(entry: Entry) -> bool:
    try:
        decode(entry.body or b"")
    except InvalidMessage:
        return False
    return True
