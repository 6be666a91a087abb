"""The status of resources: conditions and numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, WithJsonSchema

from .model import Int, Model
from .reasons import ConditionReason, ConditionType

__all__ = [
    "AgentStreamStatus",
    "AnyStatus",
    "Condition",
    "ConditionReason",
    "ConditionStatus",
    "ConditionType",
    "ConsumerGroupStatus",
    "ReplayPhase",
    "StreamReplayStatus",
    "find_condition",
    "set_condition",
]

ConditionStatus = Literal["True", "False", "Unknown"]

MAX_MESSAGE = 4_096
_ORDER = {kind: position for position, kind in enumerate(ConditionType)}
# the API server must take the words of a newer or older operator than its CRDs: no enum in the schema
_WORD = WithJsonSchema(
    {
        "type": "string",
        "minLength": 1,
        "maxLength": 128,
        "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
    }
)


class StatusPart(Model):
    """A part of a status; fields of other versions are ignored."""

    model_config = ConfigDict(extra="ignore")


class Condition(StatusPart):
    """A condition as in metav1.Condition."""

    type: Annotated[ConditionType, _WORD]
    """Type of the condition."""

    status: ConditionStatus
    """Status of the condition."""

    reason: Annotated[ConditionReason, _WORD]
    """Reason of the status, from the documented list."""

    message: Annotated[str, Field(max_length=MAX_MESSAGE)] = ""
    """Details of the reason."""

    observed_generation: Annotated[Int, Field(ge=0)] = 0
    """Generation of the resource that was observed."""

    last_transition_time: Annotated[datetime, Field(json_schema_extra={"maxLength": 64})]
    """Time of the last change of the status."""


_Conditions = Annotated[
    tuple[Condition, ...],
    Field(
        max_length=32,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    ),
]
_Count = Annotated[Int, Field(ge=0)]

UNOBSERVED = -1
"""The `observedGeneration` of a resource that no operator has seen.

By the rules of kstatus it is in progress; without this number and without conditions it would be done.
"""

_ObservedGeneration = Annotated[Int, Field(ge=UNOBSERVED)]
NO_STATUS = Field(json_schema_extra={"default": {"observedGeneration": UNOBSERVED}})
"""The status of a new resource: the API server's default."""


class AgentStreamStatus(StatusPart):
    """Observed state of a stream; numbers are rounded and up to half a minute old."""

    observed_generation: _ObservedGeneration = UNOBSERVED
    """Generation that was reconciled last; -1 before the first time."""

    conditions: _Conditions = Field(default_factory=tuple)
    """Conditions of the resource."""

    key: Annotated[str, Field(max_length=200)] | None = None
    """Key of the stream on the server."""

    length: _Count | None = None
    """Number of messages on the stream."""

    groups: _Count | None = None
    """Number of groups."""

    oldest_entry: Annotated[str, Field(max_length=64)] | None = None
    """Id of the oldest message; its first part is a time in milliseconds."""


class ConsumerGroupStatus(StatusPart):
    """Observed state of a group; numbers are rounded and up to half a minute old."""

    observed_generation: _ObservedGeneration = UNOBSERVED
    """Generation that was reconciled last; -1 before the first time."""

    conditions: _Conditions = Field(default_factory=tuple)
    """Conditions of the resource."""

    group: Annotated[str, Field(max_length=63)] | None = None
    """Name of the group on the server."""

    replicas: _Count | None = None
    """Number of ready replicas."""

    desired_replicas: _Count | None = None
    """Desired number of replicas."""

    selector: Annotated[str, Field(max_length=1_024)] | None = None
    """Label selector of the pods, for the scale subresource."""

    backlog: _Count | None = None
    """Number of unsettled messages; absent if unknown."""

    pending: _Count | None = None
    """Number of messages delivered to a consumer and not settled."""

    dead_letters: _Count | None = None
    """Number of dead letters."""

    oldest: Annotated[datetime, Field(json_schema_extra={"maxLength": 64})] | None = None
    """Time when the oldest unsettled message was added, once that is half a minute ago."""


class ReplayPhase(StrEnum):
    """How far a replay has come."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUSPENDED = "Suspended"
    COMPLETE = "Complete"
    FAILED = "Failed"


class StreamReplayStatus(StatusPart):
    """Observed state of a replay; some seconds old while it runs, exact once it has finished."""

    observed_generation: _ObservedGeneration = UNOBSERVED
    """Generation that was reconciled last; -1 before the first time."""

    conditions: _Conditions = Field(default_factory=tuple)
    """Conditions of the resource."""

    phase: Annotated[ReplayPhase, _WORD] | None = None
    """Pending, Running, Suspended, Complete or Failed."""

    matched: _Count | None = None
    """Number of messages looked at so far that match; in a dry run, of all that do."""

    moved: _Count | None = None
    """Number of messages delivered once more, or of dead letters removed."""

    handled: _Count | None = None
    """Number of the moved messages that the group has acknowledged."""

    dead: _Count | None = None
    """Number of the moved messages that became dead letters again."""

    skipped: Annotated[Mapping[str, _Count], Field(max_length=32)] | None = None
    """Numbers of messages that match and were not moved, by reason."""

    cursor: Annotated[str, Field(max_length=64)] | None = None
    """Id of the last entry that was looked at."""

    last: Annotated[str, Field(max_length=64)] | None = None
    """Id of the last entry that there was when the replay began: it looks at none after it."""

    started_at: Annotated[datetime, Field(json_schema_extra={"maxLength": 64})] | None = None
    """Time when the replay began."""

    finished_at: Annotated[datetime, Field(json_schema_extra={"maxLength": 64})] | None = None
    """Time when the replay ended, well or not."""


AnyStatus = AgentStreamStatus | ConsumerGroupStatus | StreamReplayStatus


def find_condition(conditions: Iterable[Condition], kind: ConditionType) -> Condition | None:
    """Returns the condition of a type, if there is one."""
    return next((condition for condition in conditions if condition.type is kind), None)


def set_condition(  # noqa: PLR0917 (a condition's fields, in the order of metav1.Condition)
    conditions: Iterable[Condition],
    kind: ConditionType,
    status: ConditionStatus,
    reason: ConditionReason,
    message: str,
    generation: int,
    now: datetime,
) -> tuple[Condition, ...]:
    """Returns the conditions with one of them set, in the order of `ConditionType`.

    A message is cut at 4096 characters. `now` becomes the transition time only if `status` changes.
    """
    before = find_condition(conditions, kind)
    # whole seconds, as Kubernetes writes times
    since = before.last_transition_time if before and before.status == status else now.replace(microsecond=0)
    after = Condition(
        type=kind,
        status=status,
        reason=reason,
        message=message if len(message) <= MAX_MESSAGE else f"{message[: MAX_MESSAGE - 1]}…",
        observed_generation=generation,
        last_transition_time=since,
    )
    others = (condition for condition in conditions if condition.type is not kind)
    return tuple(sorted((*others, after), key=lambda condition: _ORDER[condition.type]))
