"""What a plan consists of: actions, the conditions to report, and events. `with_ready` computes `Ready`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from agentstream_operator.plan.actions import Action
from agentstream_operator.resources.status import ConditionReason, ConditionStatus, ConditionType


class ConditionUpdate(NamedTuple):
    """The new state of a condition."""

    kind: ConditionType
    status: ConditionStatus
    reason: ConditionReason
    message: str = ""


class EventNote(NamedTuple):
    """An event to emit once its cause has happened."""

    reason: ConditionReason
    message: str
    warning: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """Lists what to do for a resource and what to report then.

    The conditions hold once the actions are done. While the server does not answer, conditions not listed
    stay as they are; otherwise the list is complete.
    """

    actions: tuple[Action, ...] = ()  # in this order
    conditions: tuple[ConditionUpdate, ...] = ()
    events: tuple[EventNote, ...] = ()  # emitted after the actions
    refused: tuple[EventNote, ...] = ()  # emitted instead if a deletion refused a stream that is not empty
    finalizer: bool = False  # whether the resource is to carry the finalizer
    finished: bool = False  # whether it is being deleted and nothing else remains to be done for it


class Failure(NamedTuple):
    """The reason and the message of a failure, for a condition."""

    reason: ConditionReason
    message: str


@dataclass(frozen=True, slots=True)
class AgentsState:
    """The progress of writing the users of a resource's agents."""

    waiting: tuple[str, ...] = ()  # agents whose user, rules or Secret are not written yet
    failed: Failure | None = None  # of one of them


ALL_WRITTEN = AgentsState()

REACHABLE = ConditionUpdate(ConditionType.BACKEND_REACHABLE, "True", ConditionReason.REACHABLE)
NO_CONFLICT = ConditionUpdate(ConditionType.CONFLICT, "False", ConditionReason.NO_CONFLICT)
IN_SYNC = ConditionUpdate(ConditionType.SYNCED, "True", ConditionReason.IN_SYNC)
CREDENTIALS_APPLIED = ConditionUpdate(
    ConditionType.CREDENTIALS_SYNCED, "True", ConditionReason.CREDENTIALS_APPLIED
)
READY = ConditionUpdate(ConditionType.READY, "True", ConditionReason.READY)

# the first one that is not met gives `Ready` its reason: causes come before their consequences
_REQUIRED = (
    (ConditionType.BACKEND_REACHABLE, "True"),
    (ConditionType.CONFLICT, "False"),
    (ConditionType.STREAM_READY, "True"),
    (ConditionType.SYNCED, "True"),
    (ConditionType.CREDENTIALS_SYNCED, "True"),
    (ConditionType.FAILED, "False"),
)

# what these say holds until the resource is changed
_FOR_GOOD = frozenset(
    {ConditionReason.KEY_NOT_ALLOWED, ConditionReason.CONTRACT_INVALID, ConditionReason.INVALID}
)


def with_ready(
    updates: Iterable[ConditionUpdate], ready: ConditionUpdate = READY
) -> tuple[ConditionUpdate, ...]:
    """Computes `Ready` and puts it first: `ready` if all required conditions are met, else why not.

    `Stalled` follows where waiting is of no use, as kstatus means it
    (https://pkg.go.dev/sigs.k8s.io/cli-utils/pkg/kstatus); it is absent otherwise.
    """
    others = tuple(updates)
    by_kind = {update.kind: update for update in others}
    for kind, required in _REQUIRED:
        update = by_kind.get(kind)
        if update is not None and update.status != required:
            why = (update.reason, update.message)
            for_good = update.kind is ConditionType.FAILED or update.reason in _FOR_GOOD
            ready = ConditionUpdate(ConditionType.READY, "False", *why)
            stalled = ConditionUpdate(ConditionType.STALLED, "True", *why)
            return (ready, stalled, *others) if for_good else (ready, *others)
    return (ready, *others)


def unreachable(outage: str) -> tuple[ConditionUpdate, ...]:
    """Returns the conditions to report while the server does not answer."""
    kind, reason = ConditionType.BACKEND_REACHABLE, ConditionReason.BACKEND_UNAVAILABLE
    return with_ready((ConditionUpdate(kind, "False", reason, outage),))


def credentials(agents: AgentsState) -> ConditionUpdate:
    """Returns whether the agents of a resource can log in and have their rights."""
    kind = ConditionType.CREDENTIALS_SYNCED
    if agents.failed is not None:
        return ConditionUpdate(kind, "False", *agents.failed)
    if agents.waiting:
        message = f"waiting for the ACL users of: {', '.join(agents.waiting)}"
        return ConditionUpdate(kind, "False", ConditionReason.RECONCILING, message)
    return CREDENTIALS_APPLIED
