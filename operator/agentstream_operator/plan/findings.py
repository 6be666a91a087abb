"""What a plan consists of: actions, what the conditions are to say, and what to tell people."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from agentstream_operator.plan.actions import (
    Action,
    CreateGroup,
    CreateStream,
    DeleteRoute,
    DeleteStream,
    DeleteUser,
    DestroyGroup,
    RecordOwner,
    SetContracts,
    SetRoute,
    SetUser,
)
from agentstream_operator.resources.status import ConditionReason, ConditionStatus, ConditionType


class ConditionUpdate(NamedTuple):
    """What a condition is to say."""

    kind: ConditionType
    status: ConditionStatus
    reason: ConditionReason
    message: str = ""


class EventNote(NamedTuple):
    """Something to tell people once, when it has happened."""

    reason: ConditionReason
    message: str
    warning: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done for a resource.

    Attributes:
        actions: what to do on the server, in this order.
        findings: what its conditions are to say once that is done. While the server does not answer, those
            not named stay as they are; otherwise these are all.
        notices: what has then happened.
        refused: what has happened instead if an action found that it must not be done.
        finalizer: whether the resource is to carry the finalizer.
        over: whether the resource is being deleted and nothing else remains to be done for it.
    """

    actions: tuple[Action, ...] = ()
    findings: tuple[ConditionUpdate, ...] = ()
    notices: tuple[EventNote, ...] = ()
    refused: tuple[EventNote, ...] = ()
    finalizer: bool = False
    over: bool = False


class Failure(NamedTuple):
    """Why something could not be done: a word of the list, and a sentence."""

    reason: ConditionReason
    message: str


@dataclass(frozen=True, slots=True)
class AgentsState:
    """How far the users of the agents that a resource names are.

    Attributes:
        waiting: agents whose user, rules or Secret are still to be written.
        failed: why that failed for one of them.
    """

    waiting: tuple[str, ...] = ()
    failed: Failure | None = None


ALL_WRITTEN = AgentsState()

REACHABLE = ConditionUpdate(ConditionType.BACKEND_REACHABLE, "True", ConditionReason.REACHABLE)
NO_CONFLICT = ConditionUpdate(ConditionType.CONFLICT, "False", ConditionReason.NO_CONFLICT)
IN_SYNC = ConditionUpdate(ConditionType.SYNCED, "True", ConditionReason.IN_SYNC)
CREDENTIALS_APPLIED = ConditionUpdate(
    ConditionType.CREDENTIALS_SYNCED, "True", ConditionReason.CREDENTIALS_APPLIED
)
_READY = ConditionUpdate(ConditionType.READY, "True", ConditionReason.READY)

# in this order: what explains the others first
_NEEDED = (
    (ConditionType.BACKEND_REACHABLE, "True"),
    (ConditionType.CONFLICT, "False"),
    (ConditionType.STREAM_READY, "True"),
    (ConditionType.SYNCED, "True"),
    (ConditionType.CREDENTIALS_SYNCED, "True"),
)


def with_ready(findings: Iterable[ConditionUpdate]) -> tuple[ConditionUpdate, ...]:
    """The findings with `Ready` before them: true if the resource is in effect, else why it is not."""
    found = tuple(findings)
    by_kind = {finding.kind: finding for finding in found}
    for kind, wanted in _NEEDED:
        finding = by_kind.get(kind)
        if finding is not None and finding.status != wanted:
            return (ConditionUpdate(ConditionType.READY, "False", finding.reason, finding.message), *found)
    return (_READY, *found)


def unreachable(why: str) -> tuple[ConditionUpdate, ...]:
    """What is known while the server does not answer; everything else stays as it was found last."""
    return with_ready(
        (
            ConditionUpdate(
                ConditionType.BACKEND_REACHABLE, "False", ConditionReason.BACKEND_UNAVAILABLE, why
            ),
        ),
    )


def credentials(agents: AgentsState) -> ConditionUpdate:
    """Whether the agents of a resource can log in and do what they should."""
    if agents.failed is not None:
        return ConditionUpdate(ConditionType.CREDENTIALS_SYNCED, "False", *agents.failed)
    if agents.waiting:
        names = ", ".join(agents.waiting)
        return ConditionUpdate(
            ConditionType.CREDENTIALS_SYNCED,
            "False",
            ConditionReason.RECONCILING,
            f"users to be written: {names}",
        )
    return CREDENTIALS_APPLIED


def describe(actions: Iterable[Action]) -> str:
    """Says in words what actions would do."""
    return ", ".join(_describe(action) for action in actions)


def _describe(action: Action) -> str:  # noqa: PLR0911 - one per action
    match action:
        case CreateStream(key=key):
            return f"create the stream {key}"
        case RecordOwner(key=key):
            return f"record the owner of {key}"
        case SetContracts(key=key):
            return f"write the contracts of {key}"
        case CreateGroup(key=key, group=group):
            return f"create the group {group} on {key}"
        case DestroyGroup(key=key, group=group):
            return f"remove the group {group} from {key}"
        case DeleteStream(key=key):
            return f"delete the stream {key}"
        case SetRoute(agent=agent) | DeleteRoute(agent=agent):
            return f"write the route of {agent}"
        case SetUser(name=name):
            return f"write the user {name}"
        case DeleteUser(name=name):
            return f"remove the user {name}"
