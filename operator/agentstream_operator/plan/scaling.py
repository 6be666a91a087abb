"""The scaling rule: how many consumers a group should have. All history it needs is part of its input."""

from __future__ import annotations

import math
from enum import StrEnum
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from agentstream_operator.plan.conditions import ConditionUpdate
from agentstream_operator.plan.signal import UNKNOWN, Signal
from agentstream_operator.resources.consumergroup import Autoscaling
from agentstream_operator.resources.status import ConditionReason, ConditionType

Need = tuple[float, int]
"""When a number of replicas was needed last, in seconds, and the number."""

_SPARE = 1.1
"""Margin of scale-down: fewer replicas must be enough for that many times the work."""

_STEP = 10.0
"""Seconds between two scale-ups by one while the pace is unknown."""

_GRACE = 60.0
"""Seconds after which replicas that are not ready count as failing."""


class ScalingRule(StrEnum):
    """What decided the number of replicas."""

    SUSPENDED = "suspend"
    FIXED = "replicas"
    UNKNOWN = "unknown"
    IDLE = "idle"
    BACKLOG = "targetBacklog"
    ARRIVALS = "arrivals"
    AGE = "targetAge"
    STEP = "step"
    LATER = "scaleDownAfter"
    MINIMUM = "minReplicas"
    MAXIMUM = "maxReplicas"
    FAILING = "failing"


class Limits(msgspec.Struct, frozen=True):
    """The limits of autoscaling."""

    minimum: int
    maximum: int
    target_backlog: int  # unsettled entries per replica
    down_after: float  # seconds for which fewer replicas must have been enough
    target_age: float | None = None  # seconds for which an entry may wait


class Replicas(msgspec.Struct, frozen=True):
    """The state of the consumers."""

    wanted: int
    unready: int = 0  # of the wanted ones
    unready_since: float | None = None  # when one became ready last, on the decision's clock
    crashing: bool = False  # whether some crash repeatedly, or cannot be started


def follow_replicas(
    before: Replicas | None, wanted: int, ready: int, now: float, *, crashing: bool
) -> Replicas:
    """Returns the state of the consumers after one more observation."""
    unready = max(0, wanted - ready)
    since = before.unready_since if before is not None and before.wanted == wanted else None
    if since is None or (before is not None and unready < before.unready):
        since = now
    return Replicas(wanted, unready, since if unready else None, crashing)


class Growth(NamedTuple):
    """The latest scale-up: when, and by how many."""

    at: float
    by: int


class ScalingInput(msgspec.Struct, frozen=True):
    """The input of a decision."""

    now: float  # seconds on a steady clock, the same for all decisions of a group
    signal: Signal = UNKNOWN
    replicas: Replicas | None = None  # the present consumers, if known
    limits: Limits | None = None  # with autoscaling
    pace: float | None = None  # entries per second of a busy consumer, if known
    fixed: int = 1  # replicas without autoscaling
    suspended: bool = False  # whether to scale to zero
    before: Decision | None = None


class Decision(msgspec.Struct, frozen=True):
    """A decision on the number of consumers, with what the next one needs to know of the past."""

    replicas: int
    rule: ScalingRule
    needs: tuple[Need, ...] = ()  # the higher needs of the recent past, falling
    growth: Growth | None = None  # the latest scale-up
    settled: int | None = None  # entries settled so far

    @property
    def held(self) -> bool:
        """Whether the backlog is unknown, so that the last decision stays."""
        return self.rule is ScalingRule.UNKNOWN


def decide(given: ScalingInput) -> Decision:
    """Decides how many consumers a group should have.

    Scales up at once, unless the latest replicas fail. Scales down only after fewer were enough during all of
    `down_after`, so to zero only if nothing was undelivered, pending, due or settled for that long. Without
    history, as after a restart, the present replicas count as needed now.
    """
    if given.suspended:
        return Decision(0, ScalingRule.SUSPENDED)
    limits, there = given.limits, given.replicas
    if limits is None:
        return Decision(given.fixed, ScalingRule.FIXED)
    before = given.before or Decision(0, ScalingRule.UNKNOWN)
    current = there.wanted if there is not None else None
    if not given.signal.known:
        replicas = limits.minimum if current is None else current
        return replace(before, replicas=_within(limits, replicas), rule=ScalingRule.UNKNOWN)
    need, rule = _need(given, limits, before)
    past = before.needs
    if not past and current:
        past = ((given.now, current),)
    if past and _moved(given, before):
        # everything that arrived since the last decision is settled, which took a replica
        at, least = past[-1]
        past = (*(p for p in past[:-1] if p[1] > 1), (at, max(least, 1)))
    # a need hides earlier ones that are not higher
    recent = tuple(p for p in past if p[1] > need and p[0] + limits.down_after > given.now)
    needs = (*recent, (given.now, need))
    replicas = _within(limits, needs[0][1])
    if replicas > need:
        rule = ScalingRule.LATER
    growth = before.growth
    if there is not None and replicas > there.wanted:
        if _fails(there, growth, given.now):
            replicas, rule = _within(limits, there.wanted), ScalingRule.FAILING
        else:
            growth = Growth(given.now, replicas - there.wanted)
    return Decision(replicas, rule, needs, growth, given.signal.settled)


def _need(given: ScalingInput, limits: Limits, before: Decision) -> tuple[int, ScalingRule]:
    """Returns the number of consumers for the present work, within the limits, and the rule."""
    signal, current = given.signal, given.replicas.wanted if given.replicas is not None else 0
    work = [(0.0, ScalingRule.IDLE)]
    if signal.backlog:
        work.append((signal.backlog / limits.target_backlog, ScalingRule.BACKLOG))
    busy = signal.backlog > 0 or _moved(given, before)
    if busy and given.pace is not None:
        # below the arrival rate the backlog would only grow until the next scale-up
        work.append((min(signal.arrival / given.pace, current), ScalingRule.ARRIVALS))
    if busy and limits.target_age is not None:
        if given.pace is not None:
            # pending entries do not wait any more
            speed = signal.arrival + signal.waiting / limits.target_age
            work.append((speed / given.pace, ScalingRule.AGE))
        elif signal.oldest > limits.target_age:
            work.append((_stepped(given, before.growth), ScalingRule.STEP))
    exact, rule = max(work)
    need = math.ceil(exact)
    if need < current:
        need = min(current, math.ceil(exact * _SPARE))
    if need > limits.maximum:
        return limits.maximum, ScalingRule.MAXIMUM
    if need < limits.minimum:
        return limits.minimum, ScalingRule.MINIMUM
    return need, rule


def _moved(given: ScalingInput, before: Decision) -> bool:
    """Returns whether anything was settled since the last decision."""
    present = bool(given.replicas and given.replicas.wanted)
    return present and before.settled not in (None, given.signal.settled)


def _stepped(given: ScalingInput, growth: Growth | None) -> int:
    """Returns one more than the present replicas, once these had time to show their rate."""
    if given.replicas is None:
        return 1
    soon = growth is not None and given.now - growth.at < _STEP
    return given.replicas.wanted + (0 if soon or given.replicas.unready else 1)


def _fails(there: Replicas, growth: Growth | None, now: float) -> bool:
    """Returns whether the replicas of the latest scale-up do not become ready."""
    late = there.unready_since is not None and now - there.unready_since >= _GRACE
    added = growth.by if growth is not None else 1
    return (there.crashing or late) and there.unready >= added


def _within(limits: Limits, replicas: int) -> int:
    return max(limits.minimum, min(limits.maximum, replicas))


def hpa_or_zero(decision: Decision, current: int | None) -> Decision:
    """Returns a decision for mode HPA: the operator decides between zero and some, the HPA the rest."""
    if decision.replicas == 0 or not current:
        return decision
    return replace(decision, replicas=current)


def may_lower(replicas: int, signal: Signal, scaling: Autoscaling) -> bool:
    """Returns whether an HPA may be about to scale in, but not to zero.

    It uses the maximum of all desired numbers during `scaleDownAfter`.
    """
    if not signal.known or replicas <= 1:
        return False
    wanted = math.ceil(signal.backlog / scaling.target_backlog)
    return min(max(1, scaling.min_replicas, wanted), scaling.max_replicas) < replicas


def autoscaling(works: bool | None, message: str) -> ConditionUpdate:  # noqa: FBT001 - as it was seen
    """Returns `ScalingActive` for an HPA that works, fails (with its message), or was not evaluated yet."""
    kind = ConditionType.SCALING_ACTIVE
    if works is None:
        waits = "waiting for the first evaluation of the HorizontalPodAutoscaler"
        return ConditionUpdate(kind, "Unknown", ConditionReason.RECONCILING, waits)
    if works:
        return ConditionUpdate(kind, "True", ConditionReason.AUTOSCALED)
    return ConditionUpdate(kind, "False", ConditionReason.AUTOSCALER_FAILING, message)
