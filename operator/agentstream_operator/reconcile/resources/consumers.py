"""Scales the consumers of a group, and reports how they are scaled."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter

from agentstream.errors import AgentStreamError
from agentstream_operator.broker.broker import Broker
from agentstream_operator.cluster.port import AutoscalerSeen, Cluster, ClusterRefused
from agentstream_operator.plan.conditions import ConditionUpdate, EventNote, Failure
from agentstream_operator.plan.groups import may_change
from agentstream_operator.plan.scaling import (
    Decision,
    Limits,
    ScalingInput,
    ScalingRule,
    autoscaling,
    decide,
    follow_replicas,
    hpa_or_zero,
)
from agentstream_operator.plan.signal import UNKNOWN, Signal, combine, follow_pace, read_signal
from agentstream_operator.reconcile.context import Context
from agentstream_operator.reconcile.state.index import stream_of
from agentstream_operator.reconcile.state.memory import GroupMemory
from agentstream_operator.reconcile.state.state import State
from agentstream_operator.resources.consumergroup import ConsumerGroup
from agentstream_operator.resources.meta import ResourceKey
from agentstream_operator.resources.status import ConditionReason, ConditionStatus, ConditionType

_log = logging.getLogger(__name__)

_MESSAGES = {
    ScalingRule.SUSPENDED: "",
    ScalingRule.FIXED: "",
    ScalingRule.UNKNOWN: "backlog unknown: keeping the last number of replicas",
    ScalingRule.IDLE: "no backlog",
    ScalingRule.BACKLOG: "scaled by targetBacklog",
    ScalingRule.ARRIVALS: "scale-down blocked: fewer replicas could not keep up with the arrival rate",
    ScalingRule.AGE: "scaled by targetAge",
    ScalingRule.STEP: "messages older than targetAge, rate per replica unknown: adding one at a time",
    ScalingRule.LATER: "scale-down pending: scaleDownAfter not elapsed",
    ScalingRule.MINIMUM: "scale-down limited by minReplicas",
    ScalingRule.MAXIMUM: "scale-up limited by maxReplicas",
    ScalingRule.FAILING: "scale-up stopped: the replicas added last are not ready",
}
"""The message of `ScalingActive` by rule."""

_IDLE_RULES = (ScalingRule.IDLE, ScalingRule.MINIMUM)


def decide_replicas(state: State, group: ConsumerGroup) -> Decision:
    """Decides anew how many consumers a group with a workload should have."""
    memory, now = state.memory.groups[group.key], asyncio.get_running_loop().time()
    signal, workload = workload_signal(state, group), memory.workload
    if workload is not None:
        crashing, ready = workload.crashing is not None, workload.ready
        memory.replicas = follow_replicas(memory.replicas, workload.replicas, ready, now, crashing=crashing)
        measured = state.memory.streams[stream_of(group)].seen_at
        memory.pace = follow_pace(memory.pace, signal, ready, measured)
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
    idle = memory.decision.rule in _IDLE_RULES and signal.backlog == 0 and len(memory.decision.needs) == 1
    memory.idle_inputs = _inputs(state, group) if idle else None
    return memory.decision


def is_still_idle(state: State, group: ConsumerGroup) -> bool:
    """Returns whether a group was idle at its latest decision, and the inputs are still the same."""
    inputs = state.memory.groups[group.key].idle_inputs
    return inputs is not None and inputs == _inputs(state, group)


def _inputs(state: State, group: ConsumerGroup) -> tuple[object, ...]:
    """Returns the inputs of a decision for a group without work."""
    seen = (state.memory.streams[stream_of(served)].seen for served in state.resources.served_by(group))
    digests = (stream.digest if stream is not None else None for stream in seen)
    return group, state.memory.groups[group.key].workload, *digests


def workload_signal(state: State, group: ConsumerGroup) -> Signal:
    """Returns the work of a group's consumers: of the group, and of its agent's groups without a workload."""
    if state.backend.outage is not None:
        return UNKNOWN
    groups = state.memory.groups
    served = (g for g in state.resources.served_by(group) if groups[g.key].serves is not False)
    return combine([group_signal(state, g) for g in served])


def group_signal(state: State, group: ConsumerGroup) -> Signal:
    """Returns the work of a group as of the latest observation."""
    memory = state.memory.streams[stream_of(group)]
    if state.backend.outage is not None or memory.seen is None:
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


def scaling_active(state: State, group: ConsumerGroup, memory: GroupMemory) -> ConditionUpdate:  # noqa: PLR0911 - one per case
    """Returns whether the number of consumers follows the backlog, and why not."""
    spec, decision = group.spec, memory.decision
    if not group.has_workload:
        return _scaling("False", ConditionReason.NOT_SCALED, "neither template nor deploymentRef is set")
    if spec.deployment_ref is not None:
        name, first = spec.deployment_ref.name, state.resources.scales_deployment(group)
        if first is not None and first is not group:
            message = f"Deployment {name} is already scaled by the older ConsumerGroup {first.metadata.name}"
            return _scaling("False", ConditionReason.DEPLOYMENT_CLAIMED, message)
        if memory.missing:
            message = f"Deployment {name} not found: create it, or correct deploymentRef"
            return _scaling("False", ConditionReason.DEPLOYMENT_MISSING, message)
    if spec.suspend:
        return _scaling("False", ConditionReason.SUSPENDED)
    if spec.autoscaling is None:
        replicas = "the Deployment's own" if _leaves_alone(group) else str(group.fixed_replicas)
        message = f"autoscaling is not set: replicas is {replicas}"
        return _scaling("False", ConditionReason.NOT_SCALED, message)
    if decision is None or decision.held:
        return _scaling("Unknown", ConditionReason.LAG_UNKNOWN, _MESSAGES[ScalingRule.UNKNOWN])
    autoscaler = _autoscaler(memory)
    if autoscaler is not None and _current(memory):
        return autoscaling(autoscaler.works, autoscaler.message)
    return _scaling("True", memory.moved, _MESSAGES[decision.rule])


async def reconcile_consumers(context: Context, group: ConsumerGroup, *, in_effect: bool) -> bool:
    """Applies the template and the number of replicas where they differ. Raises as the port.

    Consumers first start when the group is in effect, since they need its stream and their credentials; later
    they stay unchanged while it is not.

    Returns:
        Whether the group's conditions changed, so that it has to be planned again.
    """
    state, cluster = context.state, context.cluster
    memory = state.memory.groups[group.key]
    if not may_change(group, state.resources.streams.get(stream_of(group))):
        return False
    if group.spec.template is None:
        await cluster.delete_workload(group.key)
    if not (group.leaves_replicas and _is_first(state, group)):
        await cluster.delete_autoscaler(group.key)
    if not group.has_workload:
        memory.workload = memory.applied = memory.refused = None
        return False
    before = _reported(memory)
    try:
        await _scale(context, group, in_effect=in_effect)
    except ClusterRefused as error:
        memory.refused = Failure(error.reason, str(error))
    else:
        memory.refused = None
    unknown = memory.workload is None and memory.refused is None
    memory.missing = group.spec.deployment_ref is not None and unknown
    return before != _reported(memory)


def _reported(memory: GroupMemory) -> tuple[object, ...]:
    """Returns what conditions report of the consumers."""
    workload, reported = memory.workload, (memory.refused, memory.missing)
    if workload is None:
        return reported
    return *reported, workload.crashing, workload.autoscaler if workload.replicas else None


async def _scale(context: Context, group: ConsumerGroup, *, in_effect: bool) -> None:
    state, cluster = context.state, context.cluster
    memory = state.memory.groups[group.key]
    memory.workload = await cluster.workload(group)
    before = _current(memory)
    if not (in_effect or (group.spec.suspend and before)) or not controls_replicas(state, group):
        return
    decision = decide_replicas(state, group)
    if before == decision.replicas and _is_applied(memory, group):
        return
    if before is not None and 0 < decision.replicas < before:
        await set_deletion_costs(state, context.broker, cluster, group)
    await cluster.apply_workload(group, decision.replicas)
    memory.applied = (decision.replicas, group.spec)
    memory.workload = await cluster.workload(group)
    if group.spec.autoscaling is not None and before is not None and before != decision.replicas:
        up = decision.replicas > before
        memory.moved = ConditionReason.SCALED_UP if up else ConditionReason.SCALED_DOWN
        scaled = EventNote(memory.moved, f"from {before} to {decision.replicas} consumers")
        await context.emit(group, (scaled,))


def controls_replicas(state: State, group: ConsumerGroup) -> bool:
    """Returns whether there is a workload whose replicas this group decides."""
    if group.spec.deployment_ref is None:
        return group.spec.template is not None
    exists = state.memory.groups[group.key].workload is not None
    return _is_first(state, group) and exists and not _leaves_alone(group)


async def delete_consumers(cluster: Cluster, group: ResourceKey) -> None:
    """Deletes the workload and the autoscaler of a group that is gone. Raises as the port."""
    await cluster.delete_autoscaler(group)
    await cluster.delete_workload(group)


async def set_deletion_costs(state: State, broker: Broker, cluster: Cluster, group: ConsumerGroup) -> None:
    """Sets the pod deletion costs of a group, so that idle consumers go first when it is scaled in.

    A failure of the server is only logged: a consumer that stops hands back its messages anyway. Raises
    `ClusterUnavailable` as the port.
    """
    resources = state.resources
    holdings = [
        broker.holdings(stream.stream_key, other.group_name)
        for other in resources.groups_of_agent(group)
        if (stream := resources.streams.get(stream_of(other))) is not None
    ]
    try:
        held = await asyncio.gather(*holdings)
        await cluster.set_deletion_costs(group, sum(held, Counter[str]()))
    except (AgentStreamError, ClusterRefused) as error:
        what = "%s: could not set pod deletion costs; scale-in order is arbitrary: %s"
        _log.warning(what, group.key, error)


def _is_first(state: State, group: ConsumerGroup) -> bool:
    """Returns whether no older group scales the Deployment of deploymentRef."""
    return state.resources.scales_deployment(group) in (None, group)


def _leaves_alone(group: ConsumerGroup) -> bool:
    """Returns whether a group has a deploymentRef and does not set its replicas."""
    spec = group.spec
    unscaled = spec.replicas is None and spec.autoscaling is None and not spec.suspend
    return spec.deployment_ref is not None and unscaled


def _autoscaler(memory: GroupMemory) -> AutoscalerSeen | None:
    return memory.workload.autoscaler if memory.workload is not None else None


def _current(memory: GroupMemory) -> int | None:
    return memory.workload.replicas if memory.workload is not None else None


def _is_applied(memory: GroupMemory, group: ConsumerGroup) -> bool:
    """Returns whether the workload is as the spec says, but for its replicas."""
    if memory.applied is None or memory.workload is None or not memory.workload.current:
        return False
    then, now = memory.applied[1], group.spec
    same_workload = (then.template, then.deployment_ref) == (now.template, now.deployment_ref)
    return same_workload and then.delivery.lease == now.delivery.lease


def _scaling(status: ConditionStatus, reason: ConditionReason, message: str = "") -> ConditionUpdate:
    return ConditionUpdate(ConditionType.SCALING_ACTIVE, status, reason, message)
