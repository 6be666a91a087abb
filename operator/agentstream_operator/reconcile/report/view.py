"""The numbers of everything at one moment, for a table and for a final report."""

from __future__ import annotations

from dataclasses import dataclass

from agentstream_operator.plan.accounting import Account
from agentstream_operator.reconcile.state.index import stream_of
from agentstream_operator.reconcile.state.memory import StatusMemory
from agentstream_operator.reconcile.state.state import State
from agentstream_operator.resources.meta import ResourceKey
from agentstream_operator.resources.status import ConditionReason, ConditionType, find_condition


@dataclass(frozen=True, slots=True)
class StreamView:
    """An AgentStream; counts are None before it was observed."""

    resource: ResourceKey
    key: str  # on the server
    length: int | None
    added: int | None  # since it began
    rate: float  # entries added per second, lately
    ready: bool  # whether the resource is in effect
    reason: ConditionReason  # of `Ready`


@dataclass(frozen=True, slots=True)
class GroupView:
    """A ConsumerGroup; counts are None before it was observed."""

    resource: ResourceKey
    stream: str  # name of its AgentStream
    backlog: int | None  # unsettled entries, with due retries
    undelivered: int | None
    pending: int | None  # delivered and not settled
    delayed: int | None  # retries that are not due
    dead: int | None  # dead letters
    replicas: int | None  # desired consumers; None if they are not scaled
    running: int | None  # ready consumers
    crashing: str | None  # why the latest one ended, while restarts are delayed
    ready: bool  # whether the resource is in effect
    reason: ConditionReason  # of `Ready`
    account: Account  # since the engine started


@dataclass(frozen=True, slots=True)
class View:
    """Everything, sorted by name; `reachable` says whether the server answers."""

    reachable: bool
    streams: tuple[StreamView, ...]
    groups: tuple[GroupView, ...]


def view(state: State) -> View:
    """Returns the numbers as of the latest measurement."""
    resources = state.resources
    return View(
        reachable=state.backend.outage is None,
        streams=tuple(_stream(state, key) for key in sorted(resources.streams)),
        groups=tuple(_group(state, key) for key in sorted(resources.groups)),
    )


def _stream(state: State, key: ResourceKey) -> StreamView:
    memory, stream = state.memory.streams[key], state.resources.streams[key]
    seen = memory.shown
    return StreamView(
        key,
        stream.stream_key,
        seen.length if seen is not None else None,
        seen.added if seen is not None else None,
        memory.arrivals.value or 0.0 if memory.arrivals is not None else 0.0,
        *_ready(memory.reported),
    )


def _group(state: State, key: ResourceKey) -> GroupView:
    memory, group = state.memory.groups[key], state.resources.groups[key]
    stream = state.memory.streams.get(stream_of(group))
    shown = stream.shown if stream is not None else None
    seen = shown.groups.get(group.group_name) if shown is not None else None
    if seen is not None and not seen.exists:
        seen = None
    workload = memory.workload
    ready, reason = _ready(memory.reported)
    return GroupView(
        resource=key,
        stream=group.spec.stream_ref.name,
        backlog=seen.backlog if seen is not None else None,
        undelivered=seen.undelivered if seen is not None else None,
        pending=seen.pending if seen is not None else None,
        delayed=seen.delayed if seen is not None else None,
        dead=seen.dead if seen is not None else None,
        replicas=memory.applied[0] if memory.applied is not None else None,
        running=workload.ready if workload is not None else None,
        crashing=workload.crashing if workload is not None else None,
        ready=ready,
        reason=reason,
        account=memory.account,
    )


def _ready(reported: StatusMemory) -> tuple[bool, ConditionReason]:
    conditions = reported.status.conditions if reported.status is not None else ()
    found = find_condition(conditions, ConditionType.READY)
    return (found.status == "True", found.reason) if found else (False, ConditionReason.RECONCILING)
