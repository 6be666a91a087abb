"""Decides which rights and routes agents get, and what to write for them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import NamedTuple

from agentstream.errors import ProtocolError
from agentstream.protocol.keys import routes_key, user_name
from agentstream.protocol.routes import Consumes, Produces, Route, decode_route, encode_route
from agentstream_operator.plan import access
from agentstream_operator.plan.access import AgentUse, set_user
from agentstream_operator.plan.actions import Action, DeleteRoute, DeleteUser, SetRoute
from agentstream_operator.plan.conditions import EventNote, Plan
from agentstream_operator.plan.observed import UserSeen
from agentstream_operator.resources.agentstream import AgentStream
from agentstream_operator.resources.consumergroup import ConsumerGroup, DeliverPolicy
from agentstream_operator.resources.status import ConditionReason

_by_stream, _by_group = attrgetter("stream"), attrgetter("stream", "group")


GRACE = 300.0
"""Seconds for which a former password stays valid: kubelets update mounted Secrets within two minutes."""


class AgentName(NamedTuple):
    """Namespace and name of an agent."""

    namespace: str
    agent: str


class Passwords(NamedTuple):
    """The passwords of an agent (SHA-256 in hex): the current one and, until a time, the former one."""

    current: str
    former: str | None = None
    until: float = 0.0  # on the loop's clock

    @property
    def valid(self) -> tuple[str, ...]:
        """Both, or the current one."""
        return (self.current,) if self.former is None else (self.current, self.former)


def rotate(known: Passwords | None, current: str, now: float, *, revoked: bool) -> Passwords:
    """Returns the passwords after the current one was read; `revoked`: the former one leaked and ends now."""
    if known is None or revoked:
        return Passwords(current)
    if current != known.current:
        return Passwords(current, known.current, now + GRACE)
    return known if now < known.until else Passwords(current)


@dataclass(frozen=True, slots=True)
class Written:
    """What this process wrote for an agent."""

    use: AgentUse
    password_hashes: tuple[str, ...]  # SHA-256 in hex
    user: UserSeen | None  # as seen then
    route: bytes  # the field of the routes hash


@dataclass(frozen=True, slots=True)
class AgentInput:
    """The input of a plan for an agent."""

    installation: str
    use: AgentUse
    password_hashes: tuple[str, ...]  # of its Secret; SHA-256 in hex
    written: Written | None = None  # by this process, before
    live: UserSeen | None = None  # the user on the server
    unclosed: bool = False  # whether connections of an earlier password have still to be closed
    route: bytes | None = None  # the live field of the routes hash
    placed: bytes | None = None  # what this process left there
    complete: bool = True  # whether every resource has been listed, so that `use` is complete


def agents_of(resource: AgentStream | ConsumerGroup) -> tuple[AgentName, ...]:
    """Returns the agents that a resource names."""
    namespace = resource.metadata.namespace
    if isinstance(resource, AgentStream):
        return tuple(AgentName(namespace, producer) for producer in resource.spec.producers)
    return (AgentName(namespace, resource.agent_name),)


def use_of(
    name: AgentName,
    produces: Iterable[tuple[AgentStream, Iterable[str]]],
    consumes: Iterable[tuple[ConsumerGroup, AgentStream]],
    contracts: Mapping[str, str],
) -> AgentUse:
    """Returns what an agent does: streams with the names of their groups, groups with their streams.

    `contracts` are digests by the streams' names.
    """
    return AgentUse(
        namespace=name.namespace,
        agent=name.agent,
        produces=tuple(sorted((_produces(*use, contracts) for use in produces), key=_by_stream)),
        consumes=tuple(sorted((_consumes(*use, contracts) for use in consumes), key=_by_group)),
    )


def _produces(stream: AgentStream, groups: Iterable[str], contracts: Mapping[str, str]) -> Produces:
    broadcast = stream.spec.broadcast
    return Produces(
        stream=stream.metadata.name,
        key=stream.stream_key,
        broadcast=broadcast,
        # only senders of broadcasts wait for groups
        groups=tuple(sorted(groups)) if broadcast else (),
        signatures=stream.signatures,
        contracts=contracts.get(stream.metadata.name, ""),
        max_message_bytes=stream.spec.max_message_bytes,
    )


def _consumes(group: ConsumerGroup, stream: AgentStream, contracts: Mapping[str, str]) -> Consumes:
    delivery = group.spec.delivery
    return Consumes(
        stream=stream.metadata.name,
        key=stream.stream_key,
        group=group.group_name,
        broadcast=stream.spec.broadcast,
        deliver_all=group.spec.deliver is DeliverPolicy.ALL,
        lease=delivery.lease.milliseconds,
        max_deliveries=delivery.max_deliveries,
        backoff_initial=delivery.backoff.initial.milliseconds,
        backoff_factor=delivery.backoff.factor,
        backoff_max=delivery.backoff.max.milliseconds,
        dead_letters=group.spec.dead_letter.enabled,
        deadline=0 if delivery.deadline is None else delivery.deadline.milliseconds,
        signatures=stream.signatures,
        contracts=contracts.get(stream.metadata.name, ""),
        max_message_bytes=stream.spec.max_message_bytes,
    )


def plan_agent(given: AgentInput) -> Plan:
    """Plans the user and route of an agent; an existing user changes only once all resources are listed."""
    use, written = given.use, given.written
    actions: list[Action] = []
    events: tuple[EventNote, ...] = ()
    drifted = written is not None and written.user != given.live
    withdrawn = given.live is not None and not given.live.passwords <= {*given.password_hashes}
    current = written is not None and (written.use, written.password_hashes) == (use, given.password_hashes)
    if (drifted or not current) and (given.complete or given.live is None):
        disconnect = withdrawn or given.unclosed
        wanted = set_user(use, given.installation, given.password_hashes, disconnect=disconnect)
        actions.append(wanted)
        if drifted:
            what = "was missing" if given.live is None else "had been changed"
            message = f"restored the ACL user {wanted.name}: it {what} on the server"
            events = (EventNote(ConditionReason.CREDENTIALS_RESTORED, message, warning=True),)
        elif disconnect:
            message = (
                f"the former password of the agent {use.agent} has ended, and its connections were closed"
            )
            events = (EventNote(ConditionReason.CREDENTIALS_ROTATED, message),)
        elif written is not None and len(given.password_hashes) > len(written.password_hashes):
            message = f"the agent {use.agent} has a new password; the former one ends in {GRACE:.0f} s"
            events = (EventNote(ConditionReason.CREDENTIALS_ROTATED, message),)
    encoded = route_of(use, written)
    if encoded != given.route and (given.complete or given.route is None):
        actions.append(SetRoute(routes_key(given.installation, use.namespace), use.agent, encoded))
        if given.placed not in (None, given.route):
            message = f"restored the route of {use.agent}: {_change(given.placed, given.route)} on the server"
            events += (EventNote(ConditionReason.ROUTE_RESTORED, message, warning=True),)
    return Plan(actions=tuple(actions), events=events)


def _change(placed: bytes, live: bytes | None) -> str:
    """Tells what somebody changed in a route, in names that are not theirs."""
    if live is None:
        return "it was missing"
    try:
        found = decode_route(live)
    except (ProtocolError, RecursionError, ValueError):
        return "it had become unreadable"
    wanted = decode_route(placed)
    changed: set[str] = set()
    for role in Route.__struct_fields__:
        entries = {_identity(entry): entry for entry in getattr(found, role)}
        for entry in getattr(wanted, role):
            other = entries.pop(_identity(entry), None)
            fields = ["entry"] if other is None else _differing(entry, other)
            changed.update(f"{entry.stream}: {field}" for field in fields)
        changed.update(["other streams"] if entries else ())
    return f"it had been changed ({', '.join(sorted(changed)) or 'its form'})"


def _identity(entry: Produces | Consumes) -> tuple[str, str]:
    return entry.stream, entry.group if isinstance(entry, Consumes) else ""


def _differing(entry: Produces | Consumes, other: Produces | Consumes) -> list[str]:
    return [name for name in entry.__struct_fields__ if getattr(entry, name) != getattr(other, name)]


def route_of(use: AgentUse, written: Written | None) -> bytes:
    """Returns the agent's field of the routes hash; the written one if the use is unchanged."""
    if written is not None and written.use == use:
        return written.route
    return encode_route(access.route(use))


def plan_removal(
    name: AgentName, installation: str, *, live: UserSeen | None, route: bytes | None
) -> tuple[Action, ...]:
    """Plans the removal of an agent that no resource names, given its live user and route."""
    actions: list[Action] = []
    if route is not None:
        actions.append(DeleteRoute(routes_key(installation, name.namespace), name.agent))
    if live is not None:
        actions.append(DeleteUser(user_name(installation, *name)))
    return tuple(actions)


def strays(
    users: Iterable[str],
    installation: str,
    named: Collection[AgentName],
    watched: Collection[str] | None,
    unreadable: Collection[str],
) -> list[AgentName]:
    """Returns the agents with a user or Secret that no resource names.

    `watched` are the watched namespaces (None: all); the agents of `unreadable` ones, which have an
    invalid resource, are unknown.
    """
    found = []
    for user in users:
        owner, namespace, agent = user.rsplit(".", 2)
        name = AgentName(namespace, agent)
        if owner != installation or name in named or name.namespace in unreadable:
            continue
        if watched is None or name.namespace in watched:
            found.append(name)
    return found
