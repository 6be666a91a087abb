"""The status of resources: conditions that say why, and numbers that say how much."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, WithJsonSchema

from .model import Int, Model
from .reasons import ConditionReason, ConditionType

__all__ = [
    "AgentStreamStatus",
    "Condition",
    "ConditionReason",
    "ConditionStatus",
    "ConditionType",
    "ConsumerGroupStatus",
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
    """A part of a status: fields that another version wrote are ignored."""

    model_config = ConfigDict(extra="ignore")


class Condition(StatusPart):
    """One aspect of the resource's state, as in metav1.Condition."""

    type: Annotated[ConditionType, _WORD]
    """What it is about."""

    status: ConditionStatus
    """Whether it holds."""

    reason: Annotated[ConditionReason, _WORD]
    """Why, in one word of the documented list."""

    message: Annotated[str, Field(max_length=MAX_MESSAGE)] = ""
    """Why, in a sentence."""

    observed_generation: Annotated[Int, Field(ge=0)] = 0
    """The generation of the resource that this is about."""

    last_transition_time: Annotated[datetime, Field(json_schema_extra={"maxLength": 64})]
    """Since when the status is what it is."""


_Conditions = Annotated[
    tuple[Condition, ...],
    Field(
        max_length=32,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    ),
]
_Count = Annotated[Int, Field(ge=0)]


class AgentStreamStatus(StatusPart):
    """What was last seen of a stream; the numbers are rounded and may be half a minute old."""

    observed_generation: _Count | None = None
    """The generation that was acted on last."""

    conditions: _Conditions = Field(default_factory=tuple)
    """Why the resource is ready or not."""

    key: Annotated[str, Field(max_length=200)] | None = None
    """The stream's key on the server."""

    length: _Count | None = None
    """How many messages the stream holds."""

    groups: _Count | None = None
    """How many groups read it."""

    oldest_entry: Annotated[str, Field(max_length=64)] | None = None
    """Id of the oldest message; its first part is a time in milliseconds."""


class ConsumerGroupStatus(StatusPart):
    """What was last seen of a group; the numbers are rounded and may be half a minute old."""

    observed_generation: _Count | None = None
    """The generation that was acted on last."""

    conditions: _Conditions = Field(default_factory=tuple)
    """Why the resource is ready or not."""

    group: Annotated[str, Field(max_length=63)] | None = None
    """The group's name on the server."""

    replicas: _Count | None = None
    """How many pods there are."""

    desired_replicas: _Count | None = None
    """How many pods are wanted."""

    selector: Annotated[str, Field(max_length=1_024)] | None = None
    """Label selector of the pods, for the scale subresource."""

    backlog: _Count | None = None
    """How many messages wait or run; absent if it is not known."""

    pending: _Count | None = None
    """How many of them have been handed to a consumer."""

    dead_letters: _Count | None = None
    """How many messages have been given up and are kept."""


def find_condition(conditions: Iterable[Condition], kind: ConditionType) -> Condition | None:
    """The condition of this type, if there is one."""
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
    """The conditions with one of them set, ordered as `ConditionType` is.

    Args:
        conditions: those there are; one per type.
        kind: which to set.
        status: whether it holds.
        reason: why, in one word.
        message: why, in a sentence; what exceeds 4096 characters is cut off.
        generation: the resource's generation that this is about.
        now: the present time, with a time zone. It becomes the transition time only if `status` changes.
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
