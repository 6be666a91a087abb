"""Reconciles one agent: its Secret, its user, and its route, from all resources that name it."""

from __future__ import annotations

import hashlib
import secrets

from agentstream.errors import AgentStreamError, ConnectionLost
from agentstream.protocol.keys import Nudge, user_name
from agentstream_operator.cluster.port import ClusterRefused, Credentials
from agentstream_operator.plan.access import AgentUse
from agentstream_operator.plan.actions import SetRoute, SetUser
from agentstream_operator.plan.agents import (
    AgentInput,
    AgentName,
    Written,
    agents_of,
    plan_agent,
    plan_removal,
    route_of,
    use_of,
)
from agentstream_operator.plan.findings import ALL_WRITTEN, CREDENTIALS_APPLIED, Failure
from agentstream_operator.plan.groups import may_change
from agentstream_operator.plan.streams import managed
from agentstream_operator.reconcile.context import Context
from agentstream_operator.reconcile.queue import Priority
from agentstream_operator.reconcile.resources.signing import entries_of
from agentstream_operator.reconcile.state.index import Known, owner_of, stream_of
from agentstream_operator.reconcile.state.memory import AgentMemory
from agentstream_operator.resources.agentstream import AgentStream
from agentstream_operator.resources.meta import ResourceKey
from agentstream_operator.resources.reasons import ConditionReason

_PASSWORD_BYTES = 32


async def reconcile_agent(context: Context, key: ResourceKey) -> None:
    """Writes what an agent needs, or removes what an agent had that no resource names any more.

    Raises:
        AgentStreamError: the server could not be asked, or refused.
    """
    name = AgentName(key.namespace, key.name)
    resources = context.store.named_by(name)
    if context.backend.trouble is not None or not context.access.listed.is_set():
        return
    if not resources:
        await _remove(context, name)
        return
    memory = context.memory.agents[name]
    changes = memory.changes
    if any(_unknown(context, resource) for resource in resources):
        # it is called again once they have been looked at
        return
    if any(_may_change(context, resource) for resource in resources):
        try:
            done = await _write(context, name, memory, resources)
        except ConnectionLost:
            raise
        except AgentStreamError as error:
            memory.failed = Failure(ConditionReason.CREDENTIALS_FAILED, str(error))
            _let_look(context, resources)
            raise
        except ClusterRefused as error:
            memory.failed = Failure(error.reason, str(error))
            _let_look(context, resources)
            raise
        if not done:
            return
    if memory.followed != changes or memory.failed is not None:
        memory.followed, memory.failed = changes, None
        _let_look(context, resources)


async def _write(context: Context, name: AgentName, memory: AgentMemory, resources: list[Known]) -> bool:
    """Writes Secret, user and route. Returns whether they are there: rights only shrink after a full list."""
    use = _use(context, name, resources)
    complete = context.complete and name.namespace not in context.store.unreadable_namespaces
    credentials = await _credentials(context, name, resources, entries_of(context, use), complete=complete)
    hashes = (hashlib.sha256(credentials.password.encode()).hexdigest(),)
    plan = plan_agent(
        AgentInput(
            installation=context.installation,
            use=use,
            password_hashes=hashes,
            written=memory.written,
            live=context.access.user(name),
            route=context.access.route(name),
            complete=complete,
        )
    )
    route = route_of(use, memory.written)
    for action in plan.actions:
        fingerprint = await context.broker.apply(action)
        if isinstance(action, SetUser):
            context.access.user_set(name, fingerprint)
            memory.written = Written(use, hashes, fingerprint, route)
        elif isinstance(action, SetRoute):
            context.access.route_set(name, action.route)
            await context.broker.nudge(*name, Nudge.ROUTES)
    await context.tell(resources[0], plan.notices)
    return memory.written is not None and (memory.written.use, memory.written.password_hashes) == (
        use,
        hashes,
    )


async def _credentials(
    context: Context, name: AgentName, resources: list[Known], signing: dict[str, str], *, complete: bool
) -> Credentials:
    """The agent's Secret, which is made if there is none; one that exists keeps its password.

    Until every resource has been listed, it keeps its signing keys, too.
    """
    owners = tuple(owner_of(resource) for resource in resources)
    username = user_name(context.installation, *name)
    found = await context.cluster.credentials(*name)
    password = secrets.token_urlsafe(_PASSWORD_BYTES) if found is None else found.password
    if found is not None and not complete:
        signing = {**found.signing, **signing}
    wanted = Credentials(*name, username, password, frozenset(owner.uid for owner in owners), signing)
    if found != wanted:
        await context.cluster.apply_credentials(wanted, owners)
    return wanted


async def _remove(context: Context, name: AgentName) -> None:
    """Removes what an agent had, if it is sure that no resource names it."""
    watched = context.namespaces is None or name.namespace in context.namespaces
    if not (context.complete and watched) or name.namespace in context.store.unreadable_namespaces:
        return
    # the user goes last: as long as it is there, another process would take this up again
    await context.cluster.delete_credentials(*name)
    for action in plan_removal(
        name, context.installation, live=context.access.user(name), route=context.access.route(name)
    ):
        await context.broker.apply(action)
    context.access.route_set(name, None)
    context.access.user_set(name, None)
    context.memory.agents.pop(name, None)


def _use(context: Context, name: AgentName, resources: list[Known]) -> AgentUse:
    memory, streams = context.memory, context.store.streams
    produces, consumes = [], []
    for resource in resources:
        if isinstance(resource, AgentStream):
            if memory.streams[resource.key].usable:
                groups = [declared.name for declared in context.store.declared(resource.key)]
                produces.append((resource, groups))
        elif memory.groups[resource.key].serves and stream_of(resource) in streams:
            consumes.append((resource, streams[stream_of(resource)]))
    used = (*(stream for stream, _ in produces), *(stream for _, stream in consumes))
    contracts = {stream.metadata.name: memory.streams[stream.key].contracts for stream in used}
    return use_of(name, produces, consumes, contracts)


def _unknown(context: Context, resource: Known) -> bool:
    """Whether a resource was not looked at yet, so that it is not known what it lets its agents do."""
    if isinstance(resource, AgentStream):
        return context.memory.streams[resource.key].usable is None
    return context.memory.groups[resource.key].serves is None


def _may_change(context: Context, resource: Known) -> bool:
    if isinstance(resource, AgentStream):
        return managed(resource)
    return may_change(resource, context.store.streams.get(stream_of(resource)))


def _let_look(context: Context, resources: list[Known]) -> None:
    """Lets those resources look again that do not say, or wait to say, that credentials are in place."""
    for resource in resources:
        if (
            CREDENTIALS_APPLIED not in context.reported(resource).findings
            or context.reported(resource).passing_since is not None
            or context.memory.state_of(agents_of(resource)) is not ALL_WRITTEN
        ):
            context.queue.add(resource.key, Priority.EVENT)
