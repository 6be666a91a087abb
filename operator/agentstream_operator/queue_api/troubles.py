"""Says what is wrong, the worst first: why, and what to do about it. No input or output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import IntEnum
from typing import Final, NamedTuple

from agentstream_operator.queue_api.documents import GroupNumbers, LagAnswer, StreamNumbers
from agentstream_operator.queue_api.figures import count, span
from agentstream_operator.resources.reasons import ConditionReason, ConditionType

_ALMOST_FULL: Final = 0.9
_ACTIONS: Final[Mapping[str, str]] = {reason: reason.action for reason in ConditionReason}


class Severity(IntEnum):
    """How bad it is.

    Attributes:
        BROKEN: messages do not flow, or are in danger.
        WARNING: somebody has to decide something.
    """

    BROKEN = 0
    WARNING = 1


_BESIDE_READY: Final[Mapping[ConditionType, Severity]] = {
    ConditionType.MESSAGES_LOST: Severity.BROKEN,
    ConditionType.CONSUMING: Severity.BROKEN,
    ConditionType.RETENTION_HEALTHY: Severity.WARNING,
    ConditionType.IDS_IN_THE_FUTURE: Severity.WARNING,
}
"""Conditions of a resource which is in effect that somebody has to look at, unless they are healthy."""

_SERVER: Final = "Redis or Valkey"


class Trouble(NamedTuple):
    """Something that is wrong.

    Attributes:
        severity: how bad it is.
        about: kind and name of the resource, or the server.
        what: in a few words, such as the reason of a condition.
        why: in a sentence; may be a text of others.
        action: what to do about it, in a sentence.
        page: path of the page of the console that shows it.
    """

    severity: Severity
    about: str
    what: str
    why: str
    action: str
    page: str = "/console"


def troubles(lag: LagAnswer) -> list[Trouble]:
    """Returns what is wrong, the worst first."""
    found = [*of_server(lag), *of_resources(lag)]
    return sorted(found, key=lambda each: each.severity)


def of_server(lag: LagAnswer) -> Iterator[Trouble]:
    """Returns what is wrong with the server."""
    server = lag.server
    if not server.reachable:
        action = ConditionReason.BACKEND_UNAVAILABLE.action
        yield Trouble(Severity.BROKEN, _SERVER, "does not answer", _outage(lag), action)
    elif server.used_memory is not None and server.max_memory:
        part = server.used_memory / server.max_memory
        if part >= _ALMOST_FULL:
            size = f"{server.max_memory / 2**20:,.0f} MiB"
            why = f"{part:.0%} of {size} are in use: full, it takes nothing more"
            action = "Let consumers catch up, or raise its `maxmemory`."
            yield Trouble(Severity.BROKEN, _SERVER, "almost out of memory", why, action)


def of_resources(lag: LagAnswer) -> Iterator[Trouble]:
    """Returns what is wrong with streams and groups; what is the server's fault is not repeated for each."""
    behind: dict[tuple[str, str], GroupNumbers] = {}
    for group in lag.groups:
        first = behind.setdefault((group.namespace, group.stream), group)
        if (group.backlog or 0) > (first.backlog or 0):
            behind[group.namespace, group.stream] = group
    for stream in lag.streams:
        if lag.server.reachable or stream.reason != ConditionReason.BACKEND_UNAVAILABLE:
            yield from _of_stream(stream, behind.get((stream.namespace, stream.name)))
    for group in lag.groups:
        if lag.server.reachable or group.reason != ConditionReason.BACKEND_UNAVAILABLE:
            yield from _of_group(group)


def state(resource: StreamNumbers | GroupNumbers) -> str:
    """Returns a resource's state in a word: the reason of the first condition that is not as it should be."""
    if not resource.ready:
        return resource.reason
    for _, reason, _ in _unhealthy(resource):
        return reason
    for each in resource.conditions:
        # nothing is wrong with handlers that take long; with those that hang, it is all that can be seen
        if each.reason in {ConditionReason.HANDLERS_RUNNING, ConditionReason.SUSPENDED}:
            return each.reason
    return resource.reason


def is_wrong(resource: StreamNumbers | GroupNumbers) -> bool:
    """Returns whether the state of a resource is one that somebody has to look at."""
    return not resource.ready or any(True for _ in _unhealthy(resource))


def _outage(lag: LagAnswer) -> str:
    """Why the server does not answer, as the operator has it from the server or from trying."""
    told = [resource.conditions for resource in lag.streams]
    for conditions in [*told, *(resource.conditions for resource in lag.groups)]:
        for each in conditions:
            if each.type == ConditionType.BACKEND_REACHABLE and each.status == "False" and each.message:
                return each.message
    return "numbers are unknown until it does; what was accepted before is kept by it"


def _of_stream(stream: StreamNumbers, behind: GroupNumbers | None) -> Iterator[Trouble]:
    about, page = _place("AgentStream", stream)
    for severity, reason, why in _unhealthy(stream):
        if reason != ConditionReason.ADMISSION_CLOSED or stream.admission != "Closed":
            yield Trouble(severity, about, reason, why, _action(reason), page)
    if stream.admission == "Closed":
        why = f"{count(stream.unsettled)} messages are unsettled, and senders are refused until some are"
        if behind is not None:
            why += f"; the group {behind.name} is furthest behind"
            _, page = _place("ConsumerGroup", behind)
        yield Trouble(Severity.BROKEN, about, "full", why, ConditionReason.ADMISSION_CLOSED.action, page)


def _of_group(group: GroupNumbers) -> Iterator[Trouble]:
    about, page = _place("ConsumerGroup", group)
    # who suspends a group wants no consumers
    consumed = state(group) != ConditionReason.SUSPENDED
    for severity, reason, why in _unhealthy(group):
        yield Trouble(severity, about, reason, why, _action(reason), page)
        consumed = False
    if consumed and group.backlog and group.consumers.wanted is not None and not group.consumers.running:
        why = f"{count(group.backlog)} unsettled, the oldest for {span(group.oldest_seconds)}"
        action = "See its pods, and why they are not ready."
        yield Trouble(Severity.BROKEN, about, "no consumer is ready", why, action, page)
    if group.dead:
        what = "1 dead letter" if group.dead == 1 else f"{count(group.dead)} dead letters"
        why = "messages that could not be handled wait for a decision"
        action = ConditionReason.DEAD_LETTERS.action
        yield Trouble(Severity.WARNING, about, what, why, action, f"{page}/deadletters")


def _unhealthy(resource: StreamNumbers | GroupNumbers) -> Iterator[tuple[Severity, str, str]]:
    """Severity, reason and message: why a resource is not in effect, or else what is beside that."""
    by_type = {each.type: each for each in resource.conditions}
    if not resource.ready:
        ready = by_type.get(ConditionType.READY)
        message = ready.message if ready is not None else ""
        yield Severity.BROKEN, resource.reason, message or "the operator has not said more"
        return
    for kind, severity in _BESIDE_READY.items():
        found = by_type.get(kind)
        if found is None or found.status in {kind.healthy, "Unknown"}:
            continue
        if found.reason != ConditionReason.SUSPENDED:
            yield severity, found.reason, found.message


def _place(kind: str, resource: StreamNumbers | GroupNumbers) -> tuple[str, str]:
    name = f"{resource.namespace}/{resource.name}"
    return f"{kind} {name}", f"/console/{'streams' if kind == 'AgentStream' else 'groups'}/{name}"


def _action(reason: str) -> str:
    return _ACTIONS.get(reason, "kubectl describe says why, under Conditions.")
