"""Reconciles one AgentStream: observe, plan, apply, status."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from agentstream_operator.plan.agents import agents_of
from agentstream_operator.plan.conditions import NO_CONFLICT, Plan
from agentstream_operator.plan.observed import StreamSeen
from agentstream_operator.plan.streams import StreamInput, digest_after, plan_stream
from agentstream_operator.reconcile.context import Context
from agentstream_operator.reconcile.queue import Priority
from agentstream_operator.reconcile.resources.signing import reconcile_signing_keys
from agentstream_operator.reconcile.state.state import State
from agentstream_operator.reconcile.status import rounded
from agentstream_operator.resources.agentstream import AgentStream
from agentstream_operator.resources.meta import NamespaceSeen, ResourceKey
from agentstream_operator.resources.status import ConditionReason

_ANNOTATED = 5.0
"""Seconds between two looks at the annotations of a namespace that decide on a stream."""


async def reconcile_stream(context: Context, key: ResourceKey) -> float | None:
    """Reconciles a stream. Returns the seconds until the next time, if known.

    Raises:
        AgentStreamError: the server failed or refused.
    """
    state = context.state
    stream = state.resources.streams.get(key)
    if stream is None:
        return None
    namespace = await context.namespace(stream.metadata.namespace)
    seen, plan = await context.observer.decide(stream, lambda seen: _plan(state, stream, seen, namespace))
    if plan.finalizer:
        await context.set_finalizer(stream, present=True)
    events = await context.apply(key, plan)
    rotation = None
    if seen is not None:
        if _usable(seen, plan):
            # before the agents are queued, so that they get stream and keys at once
            rotation = await reconcile_signing_keys(context, stream)
        _remember(context, stream, seen, plan)
    await context.emit(stream, events)
    if not plan.finalizer:
        await context.set_finalizer(stream, present=False)
    if plan.finished:
        return None
    reported = state.memory.streams[key].reported
    if plan.actions:
        return context.recheck(stream)
    reported.rounds = 0
    again = await context.status.write(
        stream, reported, plan.conditions, numbers_of_stream(state, stream, seen)
    )
    waits = [wait for wait in (again, rotation) if wait is not None]
    if any(condition.reason is ConditionReason.KEY_OF_FORMER_NAMESPACE for condition in plan.conditions):
        # nobody tells when the namespace is annotated
        state.memory.namespaces.pop(stream.metadata.namespace, None)
        waits.append(_ANNOTATED)
    return min(waits, default=None)


def _plan(state: State, stream: AgentStream, seen: StreamSeen | None, namespace: NamespaceSeen) -> Plan:
    memory = state.memory.streams[stream.key]
    agents = state.memory.state_of(agents_of(stream))
    if memory.keys_failure is not None:
        agents = replace(agents, failed=memory.keys_failure)
    return plan_stream(
        StreamInput(
            stream=stream,
            installation=state.options.installation,
            winner=state.resources.winner(stream),
            namespace=namespace,
            groups=tuple(declared.name for declared in state.resources.declared(stream.key)),
            seen=seen,
            added=memory.added,
            agents=agents,
            history=memory.history,
            eviction=state.backend.eviction,
            outage=state.backend.outage or "",
            deleted_for=state.deleted_for(stream),
        )
    )


def _remember(context: Context, stream: AgentStream, seen: StreamSeen, plan: Plan) -> None:
    """Remembers the results of a plan, and queues the groups and agents that depend on them."""
    resources, groups = context.state.resources, context.state.memory.groups
    memory = context.state.memory.streams[stream.key]
    usable = _usable(seen, plan)
    if usable:
        memory.added = seen.added
    elif NO_CONFLICT in plan.conditions:
        memory.added = None
    readers = resources.readers_of(stream.key)
    if any(event.reason is ConditionReason.DATA_LOST for event in plan.events):
        for reader in readers:
            groups[reader].stream_lost = True
    if usable != memory.usable or plan.actions:
        context.queue.add_all(readers, Priority.EVENT)
    contracts = digest_after(plan.actions, seen)
    if usable and contracts != memory.contracts:
        memory.contracts = contracts
        context.requeue_agents(resources.agents_on(stream))
    if usable != memory.usable:
        memory.usable = usable
        context.requeue_agents(agents_of(stream))


def _usable(seen: StreamSeen, plan: Plan) -> bool:
    """Returns whether agents may use the stream."""
    return NO_CONFLICT in plan.conditions and (seen.type == "stream" or bool(plan.actions))


def numbers_of_stream(state: State, stream: AgentStream, seen: StreamSeen | None) -> dict[str, Any]:
    """Returns the fields of the status besides its conditions."""
    if seen is None:
        return {"key": stream.stream_key}
    return {
        "key": stream.stream_key,
        "length": rounded(seen.length),
        "groups": len(state.resources.declared(stream.key)),
        "oldest_entry": seen.first,
    }
