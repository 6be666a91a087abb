"""Replays: what asks for one, what one would do, and what becomes of it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated

from pydantic import ConfigDict, Field

from agentstream_operator.queue_api.documents.common import Answer, Count, Looked, Seconds
from agentstream_operator.queue_api.documents.messages import MessageItem
from agentstream_operator.resources.model import Bool, DnsLabel, Int, Model
from agentstream_operator.resources.status import ReplayPhase, StreamReplayStatus
from agentstream_operator.resources.streamreplay import ReplaySource, StreamReplaySpec


class ReplayRequest(StreamReplaySpec):
    """Asks for a replay: the spec of a StreamReplay, and where to create it."""

    namespace: DnsLabel = "default"
    """Namespace of the group, and of the StreamReplay."""

    name: DnsLabel | None = None
    """Name of the StreamReplay; without one, and without an Idempotency-Key, it gets one."""

    @property
    def spec(self) -> StreamReplaySpec:
        """The spec alone."""
        fields = StreamReplaySpec.model_fields
        return StreamReplaySpec.model_construct(**{name: getattr(self, name) for name in fields})


class ReplayChange(Model):
    """Changes a replay; what is left out stays as it is."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})

    suspend: Bool | None = None
    """Whether the replay holds; it goes on where it was."""

    rate: Annotated[Int, Field(ge=1, le=100_000)] | None = None
    """Maximum number of messages per second."""

    window: Annotated[Int, Field(ge=1, le=1_000_000)] | None = None
    """Number of retries of the group above which the replay waits."""

    ttl_seconds_after_finished: Annotated[Int, Field(ge=0, le=31_536_000)] | None = None
    """Seconds after which the finished replay is deleted."""


class PreviewAnswer(Looked):
    """What a replay would do now; nothing was changed."""

    namespace: str
    """The namespace."""

    group: str
    """Name of the ConsumerGroup that would get the messages."""

    source: ReplaySource
    """Where they were looked for."""

    total: Count | None = None
    """Entries there altogether; null if unknown."""

    matched: Count
    """Messages that match, of those that were looked at."""

    would_move: Count
    """How many of them would be delivered once more, or removed."""

    skipped: Mapping[str, Count]
    """How many would not, by reason."""

    first: datetime | None = None
    """Time of the oldest one that matches."""

    last: datetime | None = None
    """Time of the newest one."""

    seconds: Seconds
    """How long it would take at the rate that was asked for."""

    sample: tuple[MessageItem, ...]
    """Some of the messages that match, without payloads."""

    warnings: tuple[str, ...]
    """What to think of before it is started."""


class ReplayAnswer(Answer):
    """A StreamReplay."""

    namespace: str
    """Its namespace."""

    name: str
    """Its name."""

    uid: str
    """Its uid; a later one of the same name has another."""

    created: datetime | None = None
    """When it was created."""

    requested_by: str | None = None
    """Who asked for it."""

    phase: ReplayPhase = ReplayPhase.PENDING
    """Pending: waits to begin, or for another replay of the group; Running; Suspended; Complete; Failed."""

    message: str = ""
    """What it waits for, or why it failed."""

    spec: StreamReplaySpec
    """What was asked for."""

    status: StreamReplayStatus | None = None
    """What became of it so far; null before it was looked at. Numbers are some seconds old while it runs."""


class ReplaysAnswer(Answer):
    """The StreamReplays that the caller may see."""

    replays: tuple[ReplayAnswer, ...]
    """The replays, the newest first."""
