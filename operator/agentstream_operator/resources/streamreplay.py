"""The StreamReplay resource: messages that a group is to get once more, or dead letters to remove."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from agentstream.protocol.keys import replay_id

from .contracts import MessageType
from .meta import API_VERSION, GROUP, Resource
from .model import Bool, DnsLabel, Int, Model, Text
from .rules import Rule, immutable
from .status import NO_STATUS, StreamReplayStatus
from .times import EXISTS, LAST_SEQUENCE, TIME, milliseconds, nanoseconds

REQUESTED_BY_ANNOTATION = f"{GROUP}/requested-by"
"""Who asked for a replay: the user of Kubernetes on whose behalf the queue server created it."""

MOST_IDS = 1_000
"""The most ids that a replay may select."""

# no leading zeros, so that CEL can compare them by length and letters; 19 digits are below 2^64
_NUMBER = "(0|[1-9][0-9]{0,18})"
_ENTRY_ID = f"{_NUMBER}-{_NUMBER}"
_UUID = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"


def _exists(bound: str) -> str:
    if "T" in bound:
        milliseconds(bound)
    return bound


Bound = Annotated[
    str,
    Text(
        pattern=f"^({_ENTRY_ID}|{TIME})$",
        max_length=64,
        what="a time (2026-01-31T12:00:00Z) or an entry id (1700000000000-0)",
    ),
    AfterValidator(_exists),
    EXISTS,
]


class ReplaySource(StrEnum):
    """Where the messages of a replay are read."""

    STREAM = "Stream"
    DEAD_LETTERS = "DeadLetters"


class ReplayAction(StrEnum):
    """What is done with the messages of a replay."""

    REDELIVER = "Redeliver"
    DROP = "Drop"


class ExpiredPolicy(StrEnum):
    """What is done with messages that have expired."""

    SKIP = "Skip"
    DELIVER = "Deliver"


class GroupRef(Model):
    """Reference to a ConsumerGroup of the same namespace."""

    name: DnsLabel
    """Name of the ConsumerGroup."""


def _position(bound: str) -> tuple[int, int]:
    ms, _, sequence = bound.partition("-")
    return int(ms), int(sequence)


def _times_in_order(origin: ReplayFrom) -> bool:
    since, until = origin.since, origin.until
    if since is None or until is None or "T" not in since or "T" not in until:
        return True
    return nanoseconds(since) <= nanoseconds(until)


def _ids_in_order(origin: ReplayFrom) -> bool:
    since, until = origin.since, origin.until
    if since is None or until is None or "T" in since or "T" in until:
        return True
    return _position(since) <= _position(until)


_BOTH = "!has(self.since) || !has(self.until) || "


def _not_above(part: int) -> str:
    """Compares numbers without leading zeros; CEL's own have too few digits for those of ids."""
    since, until = (f"self.{bound}.split('-')[{part}]" for bound in ("since", "until"))
    return f"({since}.size() < {until}.size() || ({since}.size() == {until}.size() && {since} <= {until}))"


class ReplayFrom(Model):
    """Where messages are read, and the range of entries."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel=(
                f"{_BOTH}!self.since.contains('T') || !self.until.contains('T')"
                " || timestamp(self.since) <= timestamp(self.until)"
            ),
            message="since must not be after until: exchange the two",
            holds=_times_in_order,
        ),
        Rule(
            cel=(
                f"{_BOTH}self.since.contains('T') || self.until.contains('T')"
                " || (self.since.split('-')[0] == self.until.split('-')[0]"
                f" ? {_not_above(1)} : {_not_above(0)})"
            ),
            message="since must not be after until: exchange the two",
            holds=_ids_in_order,
        ),
    )

    source: ReplaySource
    """Stream: messages of the group's stream, as far back as it reaches. DeadLetters: those of the group."""

    since: Bound | None = None
    """First entry: an RFC 3339 time or an entry id, included; the oldest one if absent. A dead letter has the
    time at which it became one."""

    until: Bound | None = None
    """Last entry: an RFC 3339 time or an entry id, included; if absent, the newest one when the replay
    begins."""

    @property
    def first_id(self) -> str:
        """First entry id of the range; `-` if it is open."""
        if self.since is None:
            return "-"
        return f"{milliseconds(self.since)}-0" if "T" in self.since else self.since

    @property
    def last_id(self) -> str:
        """Last entry id of the range, with all entries of the millisecond of a time; `+` if it is open."""
        if self.until is None:
            return "+"
        return f"{milliseconds(self.until)}-{LAST_SEQUENCE}" if "T" in self.until else self.until


SelectedId = Annotated[
    str,
    Text(
        pattern=f"^({_ENTRY_ID}|{_UUID})$",
        max_length=64,
        what="an entry id of the stream (1700000000000-0) or the id of a message (a UUID in lower case)",
    ),
]


DeadReason = Annotated[str, Field(min_length=1, max_length=256)]


class ReplaySelect(Model):
    """Selection of messages: all that match every given field, and in each of them any of its values."""

    types: Annotated[tuple[MessageType, ...], Field(min_length=1, max_length=10)] | None = None
    """Message types."""

    senders: Annotated[tuple[DnsLabel, ...], Field(min_length=1, max_length=100)] | None = None
    """Agents that sent the messages."""

    correlation: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    """Correlation id of the messages."""

    ids: Annotated[tuple[SelectedId, ...], Field(min_length=1, max_length=MOST_IDS)] | None = None
    """Ids of entries of the stream, also of those that became dead letters, or of messages."""

    reasons: Annotated[tuple[DeadReason, ...], Field(min_length=1, max_length=32)] | None = None
    """Reasons of dead letters, such as MaxDeliveries, or those that handlers gave."""

    @property
    def empty(self) -> bool:
        """Whether everything matches."""
        return self == ReplaySelect()


def _drops_dead_letters(spec: StreamReplaySpec) -> bool:
    return spec.action is not ReplayAction.DROP or spec.from_.source is ReplaySource.DEAD_LETTERS


def _drops_what_is_selected(spec: StreamReplaySpec) -> bool:
    return spec.action is not ReplayAction.DROP or not spec.select.empty


def _reasons_of_dead_letters(spec: StreamReplaySpec) -> bool:
    return spec.select.reasons is None or spec.from_.source is ReplaySource.DEAD_LETTERS


def _expired_are_delivered(spec: StreamReplaySpec) -> bool:
    return spec.action is not ReplayAction.DROP or spec.expired is ExpiredPolicy.SKIP


_SELECTED = " || ".join(f"has(self.select.{field.alias})" for field in ReplaySelect.model_fields.values())


class StreamReplaySpec(Model):
    """Desired replay."""

    rules: ClassVar[tuple[Rule, ...]] = (
        immutable("groupRef"),
        immutable("from", "from_"),
        immutable("select"),
        immutable("action"),
        immutable("limit"),
        immutable("expired"),
        immutable("dryRun"),
        immutable("reason"),
        Rule(
            cel="self.action != 'Drop' || self.from.source == 'DeadLetters'",
            message="Drop removes dead letters only: set from.source to DeadLetters, or action to Redeliver",
            holds=_drops_dead_letters,
        ),
        Rule(
            cel=f"self.action != 'Drop' || {_SELECTED}",
            message="Drop needs a select: say which dead letters to remove, such as by ids or reasons",
            holds=_drops_what_is_selected,
        ),
        Rule(
            cel="!has(self.select.reasons) || self.from.source == 'DeadLetters'",
            message="only dead letters have reasons: set from.source to DeadLetters, or leave reasons out",
            holds=_reasons_of_dead_letters,
        ),
        Rule(
            cel="self.action != 'Drop' || self.expired == 'Skip'",
            message="expired is for Redeliver: leave it out, since Drop removes expired dead letters, too",
            holds=_expired_are_delivered,
        ),
    )

    group_ref: GroupRef
    """ConsumerGroup that gets the messages; no other group sees them. Immutable."""

    from_: Annotated[ReplayFrom, Field(alias="from")]
    """Where messages are read. Immutable."""

    select: ReplaySelect = ReplaySelect()
    """Which messages are replayed; all of the range if absent. Immutable."""

    action: ReplayAction = ReplayAction.REDELIVER
    """Redeliver: the group gets the messages once more; dead letters are moved. Drop: the selected dead
    letters are removed. Immutable."""

    limit: Annotated[Int, Field(ge=1, le=1_000_000_000)] | None = None
    """Maximum number of messages that are replayed, the oldest first; no limit if absent. Immutable."""

    rate: Annotated[Int, Field(ge=1, le=100_000)] = 100
    """Maximum number of messages per second."""

    window: Annotated[Int, Field(ge=1, le=1_000_000)] = 1_000
    """Number of retries of the group above which the replay waits, so that its other messages do not."""

    expired: ExpiredPolicy = ExpiredPolicy.SKIP
    """What happens to messages that have expired. Skip: they are counted and left where they are. Deliver:
    they are delivered all the same. Immutable."""

    dry_run: Bool = False
    """Counts what the replay would do, and changes nothing. Immutable."""

    suspend: Bool = False
    """Holds the replay; it goes on where it was."""

    reason: Annotated[str, Field(max_length=256)] | None = None
    """Why the messages are replayed, for those who read events later. Immutable."""

    ttl_seconds_after_finished: Annotated[Int, Field(ge=0, le=31_536_000)] | None = None
    """Seconds after which the finished replay is deleted; it is kept if absent."""


class StreamReplay(Resource):
    """A replay of messages to one group, carried out once."""

    api_version: Literal["agentstream.dev/v1alpha1"] = API_VERSION
    kind: Literal["StreamReplay"] = "StreamReplay"
    spec: StreamReplaySpec
    status: Annotated[StreamReplayStatus | None, NO_STATUS] = None

    @property
    def replay_id(self) -> str:
        """Id of the replay on the server, which no later replay of this name has."""
        return replay_id(self.metadata.name, self.metadata.uid)

    @property
    def requested_by(self) -> str | None:
        """Who asked for the replay, if that was said."""
        return self.metadata.annotations.get(REQUESTED_BY_ANNOTATION)
