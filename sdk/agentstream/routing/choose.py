"""Chooses the stream for a message, and the group that an agent reads: pure decisions over routes."""

from __future__ import annotations

from collections.abc import Iterable

from agentstream.errors import NoConsumerGroup, NoRoute
from agentstream.protocol.envelope import BROADCAST
from agentstream.protocol.routes import Consumes, Produces, Route


class SeveralRoutes(NoRoute):
    """Several streams fit, so waiting for further declarations is of no use."""


def target(sender: str, own: Route | None, to: str, other: Route | None, stream: str | None) -> Produces:
    """Chooses the stream that leads to an addressee.

    Args:
        sender: name of the agent that sends.
        own: its route; None if it has none.
        to: the addressee, or `broadcast` for all groups of the stream.
        other: the addressee's route; None if it has none.
        stream: the stream that the sender asks for, if it does.

    Raises:
        NoRoute: none does, or several do; the message says what is declared.
    """
    produced = own.produces if own else ()
    if not produced:
        raise NoRoute(f"{sender} produces to no stream: name it in spec.producers of an AgentStream")
    found = [p for p in produced if stream in (None, p.stream)]
    if not found:
        raise NoRoute(f"{sender} does not produce to {stream}; it produces to {_names(produced)}")
    if to == BROADCAST:
        # a stream that is named need not be a broadcast stream
        found = [p for p in found if p.broadcast or stream is not None]
        if not found:
            raise NoRoute(f"{sender} produces to no broadcast stream; it produces to {_names(produced)}")
    else:
        consumed = other.consumes if other else ()
        found = [p for p in found if any(p.key == c.key for c in consumed)]
        if not found:
            where = f"on {stream}" if stream else f"on what {sender} produces to: {_names(produced)}"
            reads = f"it consumes {_names(consumed)}" if consumed else "it consumes nothing"
            raise NoRoute(f"no group of {to} reads {where}; {reads}")
        # a stream that only the addressee reads is better than a broadcast stream
        found = [p for p in found if not p.broadcast] or found
    if len(found) > 1:
        raise SeveralRoutes(f"several streams lead to {to}: {_names(found)}; name one with stream=")
    return found[0]


def consumed_group(agent: str, own: Route | None, stream: str | None, group: str | None) -> Consumes:
    """Chooses the group that an agent reads on a stream.

    Args:
        agent: its name.
        own: its route; None if it has none.
        stream: name of the AgentStream; None for the only one.
        group: name of the group, where there is more than one.

    Raises:
        NoConsumerGroup: there is none, or several are; the message says what is declared.
    """
    consumed = own.consumes if own else ()
    found = [c for c in consumed if stream in (None, c.stream) and group in (None, c.group)]
    if len(found) == 1:
        return found[0]
    declared = ", ".join(f"{c.stream} (group {c.group})" for c in consumed)
    if found and stream is None:
        raise NoConsumerGroup(
            f"{agent} consumes several groups: {declared}; name one with stream= and group="
        )
    if found:
        groups = ", ".join(c.group for c in found)
        raise NoConsumerGroup(f"{agent} consumes several groups of {stream}: {groups}; name one with group=")
    where = f"of {stream}" if stream else "of any stream"
    wanted = f"group {group} {where}" if group else f"no group {where}"
    verb = "does not consume" if group else "consumes"
    raise NoConsumerGroup(f"{agent} {verb} {wanted}; it consumes {declared or 'nothing'}")


def _names(streams: Iterable[Produces | Consumes]) -> str:
    return ", ".join(s.stream for s in streams)
