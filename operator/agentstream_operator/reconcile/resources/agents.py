"""Reconciles one agent: its Secret, its ACL user and its route, from all resources that name it."""

from __future__ import annotations

import asyncio
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
    rotate,
    route_of,
    use_of,
)
from agentstream_operator.plan.conditions import ALL_WRITTEN, CREDENTIALS_APPLIED, Failure
from agentstream_operator.plan.groups import may_change
from agentstream_operator.plan.streams import managed
from agentstream_operator.reconcile.context import Context
from agentstream_operator.reconcile.queue import Priority
from agentstream_operator.reconcile.resources.signing import signing_entries
from agentstream_operator.reconcile.state.index import owner_of, stream_of
from agentstream_operator.reconcile.state.memory import AgentMemory
from agentstream_operator.reconcile.state.state import State
from agentstream_operator.resources.agentstream import AgentStream
from agentstream_operator.resources.meta import ResourceKey
from agentstream_operator.resources.parse import StreamOrGroup
from agentstream_operator.resources.reasons import ConditionReason

_PASSWORD_BYTES = 32


async def reconcile_agent(context: Context, key: ResourceKey) -> float | None:
    """Writes the Secret, user and route of an agent, or removes them if no resource names it any more.

    Returns the seconds until a former password ends.

    Raises:
        AgentStreamError: the server failed or refused.
    """
    name, state = AgentName(key.namespace, key.name), context.state
    resources = state.resources.named_by(name)
    if state.backend.outage is not None or not state.access.listed.is_set():
        return None
    if not resources:
        await _remove(context, name)
        return None
    memory = state.memory.agents[name]
    changes = memory.changes
    if any(_unplanned(state, resource) for resource in resources):
        # planning them queues the agent again
        return None
    if any(_may_change(state, resource) for resource in resources):
        try:
            done = await _write(context, name, memory, resources)
        except ConnectionLost:
            raise
        except (AgentStreamError, ClusterRefused) as error:
            refused = error.reason if isinstance(error, ClusterRefused) else None
            memory.failed = Failure(refused or ConditionReason.CREDENTIALS_FAILED, str(error))
            _requeue(context, resources)
            raise
        if not done:
            return None
    if memory.followed != changes or memory.failed is not None:
        memory.followed, memory.failed = changes, None
        _requeue(context, resources)
    passwords = memory.passwords
    if passwords is None or passwords.former is None:
        return None
    return max(0.0, passwords.until - asyncio.get_running_loop().time())


async def _write(
    context: Context, name: AgentName, memory: AgentMemory, resources: list[StreamOrGroup]
) -> bool:
    """Writes Secret, user and route. Returns whether all is written: rights shrink after a full list only."""
    state = context.state
    use = _use(state, name, resources)
    complete = state.resources.complete and name.namespace not in state.resources.unreadable_namespaces
    found = await context.cluster.credentials(*name)
    signing = signing_entries(state, use)
    credentials = await _credentials(context, name, resources, found, signing, complete=complete)
    digest = hashlib.sha256(credentials.password.encode()).hexdigest()
    now = asyncio.get_running_loop().time()
    # deleting the Secret is how somebody withdraws a password that leaked
    memory.passwords = rotate(memory.passwords, digest, now, revoked=found is None)
    hashes = memory.passwords.valid
    plan = plan_agent(
        AgentInput(
            installation=state.options.installation,
            use=use,
            password_hashes=hashes,
            written=memory.written,
            live=state.access.user(name),
            unclosed=memory.unclosed,
            route=state.access.route(name),
            placed=memory.placed,
            complete=complete,
        )
    )
    route = route_of(use, memory.written)
    for action in plan.actions:
        if isinstance(action, SetUser):
            memory.unclosed = action.disconnect
            user = await context.broker.apply(action)
            memory.unclosed = False
            state.access.user_set(name, user)
            memory.written = Written(use, hashes, user, route)
        elif isinstance(action, SetRoute):
            await context.broker.apply(action)
            state.access.route_set(name, action.route)
            await context.broker.nudge(*name, Nudge.ROUTES)
    if state.access.route(name) == route:
        memory.placed = route
    await context.emit(resources[0], plan.events)
    written = memory.written
    return written is not None and (written.use, written.password_hashes) == (use, hashes)


async def _credentials(
    context: Context,
    name: AgentName,
    resources: list[StreamOrGroup],
    found: Credentials | None,
    signing: dict[str, str],
    *,
    complete: bool,
) -> Credentials:
    """Writes the agent's Secret if it differs; an existing one keeps its password.

    Until every resource has been listed, it keeps its signing keys, too.
    """
    owners = tuple(owner_of(resource) for resource in resources)
    username = user_name(context.state.options.installation, *name)
    password = secrets.token_urlsafe(_PASSWORD_BYTES) if found is None else found.password
    if found is not None and not complete:
        signing = {**found.signing, **signing}
    wanted = Credentials(*name, username, password, frozenset(owner.uid for owner in owners), signing)
    if found != wanted:
        await context.cluster.apply_credentials(wanted, owners)
    return wanted


async def _remove(context: Context, name: AgentName) -> None:
    """Removes the Secret, user and route of an agent, if it is certain that no resource names it."""
    state, options = context.state, context.state.options
    watched = options.namespaces is None or name.namespace in options.namespaces
    if not (state.resources.complete and watched) or name.namespace in state.resources.unreadable_namespaces:
        return
    # the user goes last: as long as it exists, another process would continue the removal
    await context.cluster.delete_credentials(*name)
    for action in plan_removal(
        name, options.installation, live=state.access.user(name), route=state.access.route(name)
    ):
        await context.broker.apply(action)
    state.access.route_set(name, None)
    state.access.user_set(name, None)
    state.memory.agents.pop(name, None)


def _use(state: State, name: AgentName, resources: list[StreamOrGroup]) -> AgentUse:
    memory, streams = state.memory, state.resources.streams
    produces, consumes = [], []
    for resource in resources:
        if isinstance(resource, AgentStream):
            if memory.streams[resource.key].usable:
                groups = [declared.name for declared in state.resources.declared(resource.key)]
                produces.append((resource, groups))
        elif memory.groups[resource.key].serves and stream_of(resource) in streams:
            consumes.append((resource, streams[stream_of(resource)]))
    used = (*(stream for stream, _ in produces), *(stream for _, stream in consumes))
    contracts = {stream.metadata.name: memory.streams[stream.key].contracts for stream in used}
    return use_of(name, produces, consumes, contracts)


def _unplanned(state: State, resource: StreamOrGroup) -> bool:
    """Returns whether a resource has not been planned yet, so that the rights it grants are unknown."""
    if isinstance(resource, AgentStream):
        return state.memory.streams[resource.key].usable is None
    return state.memory.groups[resource.key].serves is None


def _may_change(state: State, resource: StreamOrGroup) -> bool:
    if isinstance(resource, AgentStream):
        return managed(resource)
    return may_change(resource, state.resources.streams.get(stream_of(resource)))


def _requeue(context: Context, resources: list[StreamOrGroup]) -> None:
    """Queues the resources whose status does not report the agent's credentials as applied yet."""
    memory = context.state.memory
    for resource in resources:
        reported = memory.reported(resource)
        if (
            CREDENTIALS_APPLIED not in reported.conditions
            or reported.transient_since is not None
            or memory.state_of(agents_of(resource)) is not ALL_WRITTEN
        ):
            context.queue.add(resource.key, Priority.EVENT)
