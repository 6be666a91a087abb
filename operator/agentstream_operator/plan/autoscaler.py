"""What is left to a HorizontalPodAutoscaler, and what its own conditions mean for a group's."""

from __future__ import annotations

import math

from msgspec.structs import replace

from agentstream_operator.plan.findings import ConditionUpdate
from agentstream_operator.plan.scaling import Decision
from agentstream_operator.plan.signal import Signal
from agentstream_operator.resources.consumergroup import Autoscaling
from agentstream_operator.resources.status import ConditionReason, ConditionType


def hpa_or_zero(decision: Decision, current: int | None) -> Decision:
    """A decision where an autoscaler decides the rest: it does nothing while there are no replicas.

    Args:
        decision: how many there are to be by the backlog.
        current: how many are wanted at present, or None if that was never decided.
    """
    if decision.replicas == 0 or not current:
        return decision
    return replace(decision, replicas=current)


def may_lower(replicas: int, signal: Signal, scaling: Autoscaling) -> bool:
    """Whether an autoscaler may be about to have fewer pods than there are, but not none.

    It takes the most that it wanted in all of `scaleDownAfter`: until then this was so for as long.

    Args:
        replicas: how many are wanted at present.
        signal: what they have to do. While that is not known, it does nothing.
        scaling: what it was made of.
    """
    if not signal.known or replicas <= 1:
        return False
    wanted = math.ceil(signal.backlog / scaling.target_backlog)
    return min(max(1, scaling.min_replicas, wanted), scaling.max_replicas) < replicas


def autoscaling(works: bool | None, message: str) -> ConditionUpdate:  # noqa: FBT001 - as it was seen
    """What `ScalingActive` says of an autoscaler with something to do.

    Args:
        works: whether it can do its work; None before it first tried.
        message: why it cannot.
    """
    kind = ConditionType.SCALING_ACTIVE
    if works is None:
        waits = "the HorizontalPodAutoscaler has not tried yet"
        return ConditionUpdate(kind, "Unknown", ConditionReason.RECONCILING, waits)
    if works:
        return ConditionUpdate(kind, "True", ConditionReason.AUTOSCALED)
    return ConditionUpdate(kind, "False", ConditionReason.AUTOSCALER_FAILING, message)
