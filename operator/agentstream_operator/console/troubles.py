"""Says what is wrong, the worst first: why, and what to do about it. No input or output."""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from typing import Final, NamedTuple

from agentstream_operator.queue_api.documents import GroupNumbers, LagAnswer, ServerNumbers, StreamNumbers
from agentstream_operator.queue_api.figures import count, span

_ALMOST_FULL: Final = 0.9


class Severity(IntEnum):
    """How bad it is.

    Attributes:
        BROKEN: messages do not flow, or are in danger.
        WARNING: somebody has to decide something.
    """

    BROKEN = 0
    WARNING = 1


class Trouble(NamedTuple):
    """Something that is wrong.

    Attributes:
        severity: how bad it is.
        what: in a few words.
        why: in a sentence; may be a text of others.
        link: path of the page that shows it.
        remedy: what the link says.
    """

    severity: Severity
    what: str
    why: str
    link: str
    remedy: str


def troubles(lag: LagAnswer) -> list[Trouble]:
    """Returns what is wrong, the worst first."""
    found = [*_of_server(lag.server)]
    for stream in lag.streams:
        found += _of_stream(stream)
    for group in lag.groups:
        found += _of_group(group)
    return sorted(found, key=lambda each: each.severity)


def _of_server(server: ServerNumbers) -> Iterator[Trouble]:
    if not server.reachable:
        why = "numbers are unknown until it does; what was accepted before is kept by it"
        yield Trouble(
            Severity.BROKEN, "Redis or Valkey does not answer", why, "/console", "agentstream doctor"
        )
    elif server.used_memory is not None and server.max_memory:
        part = server.used_memory / server.max_memory
        if part >= _ALMOST_FULL:
            why = (
                f"{part:.0%} of {server.max_memory / 2**20:,.0f} MiB are in use: full, it takes nothing more"
            )
            yield Trouble(
                Severity.BROKEN, "The server is almost out of memory", why, "/console", "agentstream doctor"
            )


def _of_stream(stream: StreamNumbers) -> Iterator[Trouble]:
    name, link = f"{stream.namespace}/{stream.name}", f"/console/streams/{stream.namespace}/{stream.name}"
    if not stream.ready:
        yield Trouble(
            Severity.BROKEN, f"AgentStream {name}: {stream.reason}", _why(stream), link, "Conditions"
        )
    if stream.admission == "Closed":
        why = f"{count(stream.unsettled)} messages are unsettled: senders are refused until some are"
        yield Trouble(Severity.BROKEN, f"AgentStream {name} is full", why, link, "Who is behind")


def _of_group(group: GroupNumbers) -> Iterator[Trouble]:
    name, link = f"{group.namespace}/{group.name}", f"/console/groups/{group.namespace}/{group.name}"
    if not group.ready:
        yield Trouble(
            Severity.BROKEN, f"ConsumerGroup {name}: {group.reason}", _why(group), link, "Conditions"
        )
    elif group.backlog and group.consumers.wanted is not None and not group.consumers.running:
        why = f"{count(group.backlog)} messages wait, the oldest for {span(group.oldest_seconds)}"
        yield Trouble(Severity.BROKEN, f"ConsumerGroup {name} has no consumer", why, link, "Its consumers")
    if group.dead:
        letters = "dead letter" if group.dead == 1 else "dead letters"
        why = "messages that could not be handled wait for a decision: replay or drop them"
        what = f"ConsumerGroup {name} has {count(group.dead)} {letters}"
        yield Trouble(Severity.WARNING, what, why, f"{link}/deadletters", "What they died of")


def _why(resource: StreamNumbers | GroupNumbers) -> str:
    """What the condition `Ready` says."""
    said = [each.message for each in resource.conditions if each.type == "Ready" and each.message]
    return said[0] if said else "the operator has not said more"
