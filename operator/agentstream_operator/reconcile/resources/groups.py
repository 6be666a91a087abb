"""Reconciles one ConsumerGroup: observe, plan, apply, consumers, status."""

from __future__ import annotations

from typing import Any

from agentstream_operator.plan.actions import ResetCounters
from agentstream_operator.plan.agents import agents_of
from agentstream_operator.plan.conditions import NO_CONFLICT, Plan
from agentstream_operator.plan.groups import STREAM_READY, GroupInput, plan_group
from agentstream_operator.plan.lag import since
from agentstream_operator.plan.observed import StreamSeen
from agentstream_operator.plan.retention import REMEMBERED
from agentstream_operator.plan.streams import managed
from agentstream_operator.reconcile.context import Context
from agentstream_operator.reconcile.queue import TryAgain
from agentstream_operator.reconcile.resources.consumers import (
    decide_replicas,
    delete_consumers,
    reconcile_consumers,
    scaling_active,
)
from agentstream_operator.reconcile.state.index import stream_of
from agentstream_operator.reconcile.state.memory import GroupMemory
from agentstream_operator.reconcile.state.state import State
from agentstream_operator.reconcile.status import rounded
from agentstream_operator.resources.agentstream import AgentStream
from agentstream_operator.resources.consumergroup import ConsumerGroup
from agentstream_operator.resources.meta import GROUP, NamespaceSeen, ResourceKey


async def reconcile_group(context: Context, key: ResourceKey) -> float | None:
    """Reconciles a group, its consumers and its status. Returns the seconds until the next time, if known.

    Raises:
        AgentStreamError: the server failed or refused.
    """
    group = context.state.resources.groups.get(key)
    if group is None:
        await delete_consumers(context.cluster, key)
        return None
    stream = context.state.resources.streams.get(stream_of(group))
    if stream is not None and _awaits_first_plan(context, stream):
        # planning the stream queues its groups
        return None
    return await _reconcile(context, group, stream)


async def _reconcile(context: Context, group: ConsumerGroup, stream: AgentStream | None) -> float | None:
    state, key = context.state, group.key
    namespace = await context.namespace(key.namespace)
    seen, plan = await context.observer.decide(
        stream, lambda seen: _plan(state, group, stream, seen, namespace)
    )
    if plan.finalizer:
        await context.set_finalizer(group, present=True)
    if plan.finished:
        await delete_consumers(context.cluster, key)
    events = await context.apply(stream_of(group), plan)
    if state.backend.outage is None:
        _remember(context, group, seen, plan)
    await context.emit(group, events)
    if not plan.finalizer:
        await context.set_finalizer(group, present=False)
    if plan.finished:
        return None
    memory = state.memory.groups[key]
    if not all(isinstance(action, ResetCounters) for action in plan.actions):
        return context.recheck(group)
    memory.reported.rounds = 0
    # a refused workload made the group not ready; it was in effect before, and the workload is retried
    in_effect = plan.conditions[0].status == "True" or memory.refused is not None
    if await reconcile_consumers(context, group, in_effect=in_effect):
        return 0.0
    numbers = numbers_of_group(group, memory, seen)
    again = await context.status.write(group, memory.reported, plan.conditions, numbers)
    if memory.refused is not None:
        raise TryAgain(memory.refused.message)
    return again


def _awaits_first_plan(context: Context, stream: AgentStream) -> bool:
    """Returns whether a stream waits for its first plan, before which nothing is known of its groups."""
    first = context.state.memory.streams[stream.key].usable is None
    return first and context.state.backend.outage is None and context.queue.failures(stream.key) == 0


def _plan(
    state: State,
    group: ConsumerGroup,
    stream: AgentStream | None,
    seen: StreamSeen | None,
    namespace: NamespaceSeen,
) -> Plan:
    memory = state.memory.groups[group.key]
    if seen is not None and group.has_workload:
        decide_replicas(state, group)
    return plan_group(
        GroupInput(
            group=group,
            installation=state.options.installation,
            winner=state.resources.group_winner(group),
            stream=stream,
            stream_winner=state.resources.winner(stream) if stream is not None else None,
            namespace=namespace,
            outage=state.backend.outage,
            seen=seen,
            established=memory.established,
            misread=memory.misread if seen is not None and seen.now - memory.misread_at <= REMEMBERED else "",
            stream_lost=memory.stream_lost,
            agents=state.memory.state_of(agents_of(group)),
            history=state.memory.streams[stream.key].history if stream is not None else None,
            totals=memory.counters,
            suspects=suspects(state, group, stream),
            work=memory.work,
            scaling=scaling_active(state, group, memory),
            refused=memory.refused,
            crashing=memory.workload.crashing if memory.workload is not None else None,
            deleted_for=state.deleted_for(group),
        )
    )


def suspects(state: State, group: ConsumerGroup, stream: AgentStream | None) -> tuple[str, ...]:
    """Returns the other agents that may use the group's stream."""
    agents = state.resources.agents_on(stream) if stream is not None else ()
    return tuple(sorted({name.agent for name in agents} - {group.agent_name}))


def _remember(context: Context, group: ConsumerGroup, seen: StreamSeen | None, plan: Plan) -> None:
    """Remembers the results of a plan, and queues the agent if its rights changed."""
    memory = context.state.memory.groups[group.key]
    found = seen.groups.get(group.group_name) if seen is not None else None
    stream = context.state.resources.streams.get(stream_of(group))
    if (
        (seen is not None and seen.type == "none")
        and (stream is not None and managed(stream))
        and context.state.memory.streams[stream.key].usable is not False
    ):
        # the stream is about to be created again, as no other has its key; its agents keep their rights
        return
    in_place = NO_CONFLICT in plan.conditions and STREAM_READY in plan.conditions
    serves = in_place and (bool(plan.actions) or (found is not None and found.exists))
    if serves:
        memory.established = True
        memory.stream_lost = memory.stream_lost and not plan.actions
    if serves != memory.serves:
        memory.serves = serves
        context.requeue_agents(agents_of(group))


def numbers_of_group(group: ConsumerGroup, memory: GroupMemory, seen: StreamSeen | None) -> dict[str, Any]:
    """Returns the fields of the status besides its conditions."""
    numbers: dict[str, Any] = {"group": group.group_name}
    numbers.update(selector=None, replicas=None, desired_replicas=None)
    if group.has_workload:
        numbers["selector"] = f"{GROUP}/group={group.metadata.name}"
        numbers["replicas"] = memory.workload.ready if memory.workload is not None else 0
        numbers["desired_replicas"] = _desired(memory)
    found = seen.groups.get(group.group_name) if seen is not None else None
    if found is not None and found.exists:
        numbers["backlog"] = rounded(found.backlog)
        numbers["pending"] = rounded(found.pending)
        numbers["dead_letters"] = rounded(found.dead)
        numbers["oldest"] = since(found, seen.now) if seen is not None else None
    return numbers


def _desired(memory: GroupMemory) -> int:
    """Returns the desired replicas, as decided by the operator or by an autoscaler."""
    if memory.workload is not None and memory.workload.autoscaler is not None:
        return memory.workload.replicas
    return memory.applied[0] if memory.applied is not None else 0
