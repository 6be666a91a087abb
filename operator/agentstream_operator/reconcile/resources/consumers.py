"""Has as many consumers of a group run as its backlog wants."""

from __future__ import annotations

import asyncio

from agentstream_operator.cluster.port import AutoscalerSeen, ClusterRefused
from agentstream_operator.plan.autoscaler import autoscaling, hpa_or_zero
from agentstream_operator.plan.findings import ConditionUpdate, EventNote, Failure
from agentstream_operator.plan.groups import may_change
from agentstream_operator.plan.scaling import (
    Decision,
    Limits,
    ScalingInput,
    ScalingRule,
    decide,
    follow_replicas,
)
from agentstream_operator.plan.signal import UNKNOWN, Signal, combine, follow_pace, read_signal
from agentstream_operator.reconcile.context import Context
from agentstream_operator.reconcile.resources.scalein import set_deletion_costs
from agentstream_operator.reconcile.state.index import stream_of
from agentstream_operator.reconcile.state.memory import GroupMemory
from agentstream_operator.resources.consumergroup import ConsumerGroup
from agentstream_operator.resources.meta import ResourceKey
from agentstream_operator.resources.status import ConditionReason, ConditionStatus, ConditionType

_SAID = {
    ScalingRule.SUSPENDED: "",
    ScalingRule.FIXED: "",
    ScalingRule.UNKNOWN: "the backlog is not known: the last decision stays",
    ScalingRule.IDLE: "nothing waits or runs",
    ScalingRule.BACKLOG: "as targetBacklog wants",
    ScalingRule.ARRIVALS: "fewer could not keep up with what arrives",
    ScalingRule.AGE: "as targetAge wants",
    ScalingRule.STEP: "messages older than targetAge, rate per replica unknown: adding one at a time",
    ScalingRule.LATER: "fewer would do, but not for as long as scaleDownAfter yet",
    ScalingRule.MINIMUM: "fewer would do; minReplicas are kept",
    ScalingRule.MAXIMUM: "more would be needed; there are maxReplicas",
    ScalingRule.FAILING: "more would be needed, but those that were added last do not run",
}
"""What a condition says of each rule."""

_AT_REST = (ScalingRule.IDLE, ScalingRule.MINIMUM)


def measure_need(context: Context, group: ConsumerGroup) -> Decision:
    """Decides anew how many consumers a group with a workload should have."""
    memory, now = context.memory.groups[group.key], asyncio.get_running_loop().time()
    signal, workload = work_of(context, group), memory.workload
    if workload is not None:
        crashing = workload.crashing is not None
        memory.replicas = follow_replicas(
            memory.replicas, workload.replicas, workload.ready, now, crashing=crashing
        )
        measured = context.memory.streams[stream_of(group)].seen_at
        memory.pace = follow_pace(memory.pace, signal, workload.ready, measured)
    else:
        memory.replicas = memory.pace = None
    memory.decision = decide(
        ScalingInput(
            now=now,
            signal=signal,
            replicas=memory.replicas,
            limits=_limits(group),
            pace=memory.pace.value if memory.pace is not None else None,
            fixed=group.fixed_replicas,
            suspended=group.spec.suspend,
            before=memory.decision,
        )
    )
    if group.leaves_replicas and _autoscaler(memory) is not None:
        memory.decision = hpa_or_zero(memory.decision, _current(memory))
    idle = memory.decision.rule in _AT_REST and signal.backlog == 0 and len(memory.decision.needs) == 1
    memory.rest = _state(context, group) if idle else None
    return memory.decision


def rests(context: Context, group: ConsumerGroup) -> bool:
    """Whether all is as it was when a group was found to have nothing to do: another decision is the same."""
    rest = context.memory.groups[group.key].rest
    return rest is not None and rest == _state(context, group)


def _state(context: Context, group: ConsumerGroup) -> tuple[object, ...]:
    """What a decision for a group without work depends on."""
    seen = (context.memory.streams[stream_of(served)].seen for served in context.store.served_by(group))
    digests = (stream.digest if stream is not None else None for stream in seen)
    return group, context.memory.groups[group.key].workload, *digests


def work_of(context: Context, group: ConsumerGroup) -> Signal:
    """What the consumers of a group have to do: its work, and that of its agent's groups without any."""
    if context.backend.trouble is not None:
        return UNKNOWN
    served = context.store.served_by(group)
    memory = context.memory.groups
    return combine([signal_of(context, g) for g in served if memory[g.key].serves is not False])


def signal_of(context: Context, group: ConsumerGroup) -> Signal:
    """The work of a group, as it was measured last."""
    memory = context.memory.streams[stream_of(group)]
    if context.backend.trouble is not None or memory.seen is None:
        return UNKNOWN
    return read_signal(memory.seen, group.group_name, memory.arrivals)


def _limits(group: ConsumerGroup) -> Limits | None:
    scaling = group.spec.autoscaling
    if scaling is None:
        return None
    return Limits(
        minimum=scaling.min_replicas,
        maximum=scaling.max_replicas,
        target_backlog=scaling.target_backlog,
        down_after=scaling.scale_down_after.seconds,
        target_age=scaling.target_age.seconds if scaling.target_age is not None else None,
    )


def scaling_active(context: Context, group: ConsumerGroup, memory: GroupMemory) -> ConditionUpdate:  # noqa: PLR0911 - one per case
    """Whether the number of consumers follows the backlog."""
    spec, decision = group.spec, memory.decision
    if not group.has_workload:
        return _finding("False", ConditionReason.NOT_SCALED, "there is neither template nor deploymentRef")
    if spec.deployment_ref is not None:
        first = context.store.scales_deployment(group)
        if first is not None and first is not group:
            message = f"{spec.deployment_ref.name} is scaled by the older ConsumerGroup {first.metadata.name}"
            return _finding("False", ConditionReason.DEPLOYMENT_CLAIMED, message)
        if memory.missing:
            message = (
                f"there is no Deployment {spec.deployment_ref.name}: create it, or correct deploymentRef"
            )
            return _finding("False", ConditionReason.DEPLOYMENT_MISSING, message)
    if spec.suspend:
        return _finding("False", ConditionReason.SUSPENDED)
    if spec.autoscaling is None:
        replicas = "left as it is" if _leaves_alone(group) else str(group.fixed_replicas)
        return _finding("False", ConditionReason.NOT_SCALED, f"replicas is {replicas}")
    if decision is None or decision.held:
        return _finding("Unknown", ConditionReason.LAG_UNKNOWN, _SAID[ScalingRule.UNKNOWN])
    autoscaler = _autoscaler(memory)
    if autoscaler is not None and _current(memory):
        return autoscaling(autoscaler.works, autoscaler.message)
    return _finding("True", memory.moved, _SAID[decision.rule])


async def run_consumers(context: Context, group: ConsumerGroup, *, in_effect: bool) -> bool:
    """Applies the template and the number of replicas where they are not how they should be.

    Consumers first start when the group is in effect, since they need its stream and their credentials;
    afterwards they stay as they are while it is not.

    Returns:
        Whether the group's conditions are to say something else than what was planned before.

    Raises:
        ClusterUnavailable: as the port.
    """
    memory, cluster = context.memory.groups[group.key], context.cluster
    if not may_change(group, context.store.streams.get(stream_of(group))):
        return False
    if group.spec.template is None:
        await cluster.delete_workload(group.key)
    if not (group.leaves_replicas and _is_its_own(context, group)):
        await cluster.delete_autoscaler(group.key)
    if not group.has_workload:
        memory.workload = memory.applied = memory.refused = None
        return False
    before = _shown(memory)
    try:
        await _run(context, group, in_effect=in_effect)
    except ClusterRefused as error:
        memory.refused = Failure(error.reason, str(error))
    else:
        memory.refused = None
    unknown = memory.workload is None and memory.refused is None
    memory.missing = group.spec.deployment_ref is not None and unknown
    return before != _shown(memory)


def _shown(memory: GroupMemory) -> tuple[object, ...]:
    """What conditions say of the consumers."""
    workload = memory.workload
    if workload is None:
        return memory.refused, memory.missing
    decides = workload.autoscaler if workload.replicas else None
    return memory.refused, memory.missing, workload.crashing, decides


async def _run(context: Context, group: ConsumerGroup, *, in_effect: bool) -> None:
    memory, cluster = context.memory.groups[group.key], context.cluster
    memory.workload = await cluster.workload(group)
    before = _current(memory)
    if not (in_effect or (group.spec.suspend and before)) or not scales(context, group):
        return
    decision = measure_need(context, group)
    if before == decision.replicas and _is_applied(memory, group):
        return
    if before is not None and 0 < decision.replicas < before:
        await set_deletion_costs(context, group)
    await cluster.apply_workload(group, decision.replicas)
    memory.applied = (decision.replicas, group.spec)
    memory.workload = await cluster.workload(group)
    if group.spec.autoscaling is not None and before is not None and before != decision.replicas:
        memory.moved = (
            ConditionReason.SCALED_UP if decision.replicas > before else ConditionReason.SCALED_DOWN
        )
        notice = EventNote(memory.moved, f"from {before} to {decision.replicas} consumers")
        await context.tell(group, (notice,))


def scales(context: Context, group: ConsumerGroup) -> bool:
    """Whether there is something whose replicas are this group's to decide."""
    if group.spec.deployment_ref is None:
        return group.spec.template is not None
    there = context.memory.groups[group.key].workload is not None
    return _is_its_own(context, group) and there and not _leaves_alone(group)


async def end_consumers(context: Context, group: ResourceKey) -> None:
    """Stops the consumers of a group that is gone.

    Raises:
        ClusterUnavailable: as the port.
    """
    await context.cluster.delete_autoscaler(group)
    await context.cluster.delete_workload(group)


def _is_its_own(context: Context, group: ConsumerGroup) -> bool:
    """Whether no older group scales the Deployment that it names, if it names one."""
    return context.store.scales_deployment(group) in (None, group)


def _leaves_alone(group: ConsumerGroup) -> bool:
    """Whether a group names a Deployment and says nothing of its replicas."""
    spec = group.spec
    unscaled = spec.replicas is None and spec.autoscaling is None and not spec.suspend
    return spec.deployment_ref is not None and unscaled


def _autoscaler(memory: GroupMemory) -> AutoscalerSeen | None:
    return memory.workload.autoscaler if memory.workload is not None else None


def _current(memory: GroupMemory) -> int | None:
    return memory.workload.replicas if memory.workload is not None else None


def _is_applied(memory: GroupMemory, group: ConsumerGroup) -> bool:
    """Whether the consumers are as the spec says, but for their number."""
    if memory.applied is None or memory.workload is None or not memory.workload.current:
        return False
    then, now = memory.applied[1], group.spec
    return (then.template, then.deployment_ref, then.delivery.lease) == (
        now.template,
        now.deployment_ref,
        now.delivery.lease,
    )


def _finding(status: ConditionStatus, reason: ConditionReason, message: str = "") -> ConditionUpdate:
    return ConditionUpdate(ConditionType.SCALING_ACTIVE, status, reason, message)
