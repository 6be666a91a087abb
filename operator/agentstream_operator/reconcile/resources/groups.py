"""Reconciles one ConsumerGroup: observe, plan, apply, consumers, status."""

from __future__ import annotations

from typing import Any

from agentstream_operator.plan.agents import agents_of
from agentstream_operator.plan.findings import NO_CONFLICT, Plan
from agentstream_operator.plan.groups import STREAM_READY, GroupInput, plan_group
from agentstream_operator.plan.observed import StreamSeen
from agentstream_operator.plan.streams import managed
from agentstream_operator.reconcile.context import Context
from agentstream_operator.reconcile.queue import TryAgain
from agentstream_operator.reconcile.resources.consumers import (
    end_consumers,
    measure_need,
    run_consumers,
    scaling_active,
)
from agentstream_operator.reconcile.state.index import stream_of
from agentstream_operator.reconcile.state.memory import GroupMemory
from agentstream_operator.reconcile.status import rounded
from agentstream_operator.resources.agentstream import AgentStream
from agentstream_operator.resources.consumergroup import ConsumerGroup
from agentstream_operator.resources.meta import GROUP, ResourceKey


async def reconcile_group(context: Context, key: ResourceKey) -> float | None:
    """Makes a group as it is declared, and has as many consumers run as it should have.

    Returns:
        The seconds after which to look again, if that is known.

    Raises:
        AgentStreamError: the server could not be asked, or refused.
    """
    group = context.store.groups.get(key)
    if group is None:
        await end_consumers(context, key)
        return None
    stream = context.store.streams.get(stream_of(group))
    if stream is not None and _is_about_to_be_looked_at(context, stream):
        # once it is, its groups are, too
        return None
    return await _reconcile(context, group, stream)


async def _reconcile(context: Context, group: ConsumerGroup, stream: AgentStream | None) -> float | None:
    key = group.key
    seen, plan = await context.decide(stream, lambda seen: _plan(context, group, stream, seen))
    if plan.finalizer:
        await context.hold(group, wanted=True)
    if plan.over:
        await end_consumers(context, key)
    notices = await context.apply(stream_of(group), plan)
    if context.backend.trouble is None:
        _remember(context, group, seen, plan)
    await context.tell(group, notices)
    if not plan.finalizer:
        await context.hold(group, wanted=False)
    if plan.over:
        return None
    memory = context.memory.groups[key]
    if plan.actions:
        return context.check_again(group)
    memory.reported.rounds = 0
    # what was refused made the group not ready; it was in effect before, and is tried again
    in_effect = plan.findings[0].status == "True" or memory.refused is not None
    if await run_consumers(context, group, in_effect=in_effect):
        return 0.0
    numbers = numbers_of_group(group, memory, seen)
    again = await context.status.write(group, memory.reported, plan.findings, numbers)
    if memory.refused is not None:
        raise TryAgain(memory.refused.message)
    return again


def _is_about_to_be_looked_at(context: Context, stream: AgentStream) -> bool:
    """Whether a stream waits for its first look, so that nothing can be said of its groups."""
    first = context.memory.streams[stream.key].usable is None
    return first and context.backend.trouble is None and context.queue.failures(stream.key) == 0


def _plan(
    context: Context, group: ConsumerGroup, stream: AgentStream | None, seen: StreamSeen | None
) -> Plan:
    memory = context.memory.groups[group.key]
    if seen is not None and group.has_workload:
        measure_need(context, group)
    return plan_group(
        GroupInput(
            group=group,
            installation=context.installation,
            winner=context.store.group_winner(group),
            stream=stream,
            stream_winner=context.store.winner(stream) if stream is not None else None,
            why_unreachable=context.backend.trouble,
            seen=seen,
            established=memory.established,
            stream_lost=memory.stream_lost,
            agents=context.memory.state_of(agents_of(group)),
            history=context.memory.streams[stream.key].history if stream is not None else None,
            stalled=memory.stalled,
            scaling=scaling_active(context, group, memory),
            refused=memory.refused,
            crashing=memory.workload.crashing if memory.workload is not None else None,
            deleted_for=context.deleted_for(group),
        )
    )


def _remember(context: Context, group: ConsumerGroup, seen: StreamSeen | None, plan: Plan) -> None:
    """Notes what came of a plan, and lets the agent be written if what it may do changed."""
    memory = context.memory.groups[group.key]
    found = seen.groups.get(group.group_name) if seen is not None else None
    stream = context.store.streams.get(stream_of(group))
    if seen is not None and seen.type == "none" and stream is not None and managed(stream):
        # the stream is about to be there again; until then its agents keep what they may do
        return
    in_place = NO_CONFLICT in plan.findings and STREAM_READY in plan.findings
    serves = in_place and (bool(plan.actions) or (found is not None and found.exists))
    if serves:
        memory.established = True
        memory.stream_lost = memory.stream_lost and not plan.actions
    if serves != memory.serves:
        memory.serves = serves
        context.touch(agents_of(group))


def numbers_of_group(group: ConsumerGroup, memory: GroupMemory, seen: StreamSeen | None) -> dict[str, Any]:
    """What the status says besides its conditions."""
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
    return numbers


def _desired(memory: GroupMemory) -> int:
    """How many consumers are wanted, by us or by an autoscaler."""
    if memory.workload is not None and memory.workload.autoscaler is not None:
        return memory.workload.replicas
    return memory.applied[0] if memory.applied is not None else 0
