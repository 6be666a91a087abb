"""Has as many consumers of a group run as its backlog wants."""

from __future__ import annotations

import asyncio

from agentstream_operator.plan.findings import Finding, Notice
from agentstream_operator.plan.groups import may_change
from agentstream_operator.plan.scaling import Decision, Limits, ScalingInput, decide
from agentstream_operator.reconcile.context import Context
from agentstream_operator.reconcile.memory import GroupMemory
from agentstream_operator.reconcile.store import stream_of
from agentstream_operator.resources.consumergroup import ConsumerGroup
from agentstream_operator.resources.status import ConditionStatus, ConditionType, Reason


def measure_need(context: Context, group: ConsumerGroup) -> Decision:
    """Decides anew how many consumers a group with a template should have."""
    memory = context.memory.groups[group.key]
    scaling = group.spec.autoscaling
    limits = None
    if scaling is not None:
        limits = Limits(
            minimum=scaling.min_replicas,
            maximum=scaling.max_replicas,
            target_backlog=scaling.target_backlog,
            down_after=scaling.scale_down_after.seconds,
        )
    memory.decision = decide(
        ScalingInput(
            now=asyncio.get_running_loop().time(),
            backlog=_backlog(context, group) if limits is not None else None,
            current=_current(memory),
            limits=limits,
            fixed=group.fixed_replicas,
            suspended=group.spec.suspend,
            needs=memory.decision.needs if memory.decision is not None else (),
        )
    )
    return memory.decision


def scaling_active(group: ConsumerGroup, memory: GroupMemory) -> Finding:
    """Whether the number of consumers follows the backlog."""
    spec, decision = group.spec, memory.decision
    if spec.template is None:
        return _finding("False", Reason.NOT_SCALED, "there is no template")
    if spec.suspend:
        return _finding("False", Reason.SUSPENDED)
    if spec.autoscaling is None:
        return _finding("False", Reason.NOT_SCALED, f"replicas is {group.fixed_replicas}")
    if decision is None or decision.held:
        return _finding("Unknown", Reason.LAG_UNKNOWN)
    return _finding("True", memory.moved)


async def run_consumers(context: Context, group: ConsumerGroup, *, in_effect: bool) -> None:
    """Applies the template and the number of replicas where they are not how they should be.

    Consumers first start when the group is in effect, since they need its stream and their credentials;
    afterwards they stay as they are while it is not.
    """
    memory, cluster, template = context.memory.groups[group.key], context.cluster, group.spec.template
    if not may_change(group, context.store.streams.get(stream_of(group))):
        return
    memory.workload = await cluster.workload(group.key)
    if template is None:
        if memory.workload is not None:
            await cluster.delete_workload(group.key)
            memory.workload = memory.applied = None
        return
    before = _current(memory)
    if not (in_effect or (group.spec.suspend and before)):
        return
    decision = measure_need(context, group)
    if before == decision.replicas and _is_applied(memory, group):
        return
    await cluster.apply_workload(group, decision.replicas)
    memory.applied = (decision.replicas, template)
    memory.workload = await cluster.workload(group.key)
    if group.spec.autoscaling is not None and before is not None and before != decision.replicas:
        memory.moved = Reason.SCALED_UP if decision.replicas > before else Reason.SCALED_DOWN
        notice = Notice(memory.moved, f"from {before} to {decision.replicas} consumers")
        await context.tell(group.key, (notice,))


def _current(memory: GroupMemory) -> int | None:
    return memory.workload.replicas if memory.workload is not None else None


def _is_applied(memory: GroupMemory, group: ConsumerGroup) -> bool:
    return memory.applied is not None and memory.applied[1] == group.spec.template


def _backlog(context: Context, group: ConsumerGroup) -> int | None:
    """What the consumers of a group have to do, or None if that is not known."""
    if context.backend.trouble is not None:
        return None
    backlog = 0
    for served in context.store.served_by(group):
        if context.memory.groups[served.key].serves is False:
            continue
        seen = context.memory.streams[stream_of(served)].seen
        found = seen.groups.get(served.group_name) if seen is not None else None
        if seen is None or found is None or not found.exists:
            return None
        due = found.next_due is not None and found.next_due <= seen.now
        backlog += found.backlog + int(due)
    return backlog


def _finding(status: ConditionStatus, reason: Reason, message: str = "") -> Finding:
    return Finding(ConditionType.SCALING_ACTIVE, status, reason, message)
