"""How many consumers a group should have. The whole history that the decision needs is part of its input."""

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
"""When so many replicas were needed last, in seconds, and how many."""

_SPARE = 1.1
"""Fewer consumers must do even for so many times the work before there are fewer."""

_STEP = 10.0
"""Seconds between two consumers that are added while nobody knows how fast they are."""

_GRACE = 60.0
"""Seconds that new consumers get to become ready before they count as failing."""


class ScalingRule(StrEnum):
    """What decided how many consumers there are to be."""

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
    """How far and how fast the number of replicas may move.

    Attributes:
        minimum: the least replicas; 0 lets an idle group have none.
        maximum: the most.
        target_backlog: unsettled entries that one replica is to have at most.
        down_after: seconds for which fewer must do before there are fewer.
        target_age: seconds for which an entry may wait; None for any time.
    """

    minimum: int
    maximum: int
    target_backlog: int
    down_after: float
    target_age: float | None = None


class Replicas(msgspec.Struct, frozen=True):
    """How the consumers are.

    Attributes:
        wanted: how many are wanted at present.
        unready: how many of them are not ready.
        unready_since: since when no more of them have become ready, on the clock of the decision.
        crashing: whether some end again and again, or cannot be started.
    """

    wanted: int
    unready: int = 0
    unready_since: float | None = None
    crashing: bool = False


def follow_replicas(
    before: Replicas | None, wanted: int, ready: int, now: float, *, crashing: bool
) -> Replicas:
    """How the consumers are after one more look at them."""
    unready = max(0, wanted - ready)
    since = before.unready_since if before is not None and before.wanted == wanted else None
    if since is None or (before is not None and unready < before.unready):
        since = now
    return Replicas(wanted, unready, since if unready else None, crashing)


class Growth(NamedTuple):
    """When there came to be more consumers last, and how many more."""

    at: float
    by: int


class ScalingInput(msgspec.Struct, frozen=True):
    """All that a decision depends on.

    Attributes:
        now: seconds on any steady clock, the same for one group's decisions.
        signal: the work that there is, and whether that is known.
        replicas: those that there are, or None if there never was a decision.
        limits: with autoscaling, else None.
        pace: entries that a busy consumer settles in a second; None if that is not known.
        fixed: replicas without autoscaling.
        suspended: whether there are to be none.
        before: the previous decision.
    """

    now: float
    signal: Signal = UNKNOWN
    replicas: Replicas | None = None
    limits: Limits | None = None
    pace: float | None = None
    fixed: int = 1
    suspended: bool = False
    before: Decision | None = None


class Decision(msgspec.Struct, frozen=True):
    """What is decided.

    Attributes:
        replicas: how many consumers there are to be.
        rule: what decided it.
        needs: the higher needs of the recent past, falling, for the next decision.
        growth: when there came to be more last, for the next decision.
        settled: entries that were settled by then, for the next decision.
    """

    replicas: int
    rule: ScalingRule
    needs: tuple[Need, ...] = ()
    growth: Growth | None = None
    settled: int | None = None

    @property
    def held(self) -> bool:
        """Unknown backlog: the last decision stays."""
        return self.rule is ScalingRule.UNKNOWN


def decide(given: ScalingInput) -> Decision:
    """Decides how many consumers a group should have.

    More are had at once, but for those that would only fail like the latest. Fewer only after fewer would
    have done for all of `down_after`, so a group goes to zero only when nothing has been undelivered,
    pending, due or settled for that long. Where there is no history, as after a restart, what runs counts as
    needed now.
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
        # all that came since the last look is settled; somebody was needed for it
        at, least = past[-1]
        past = (*(p for p in past[:-1] if p[1] > 1), (at, max(least, 1)))
    # of two equal needs the later one counts, and one that is higher hides those before it
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
    """How many consumers the work needs now, within the limits, and what says so."""
    signal, current = given.signal, given.replicas.wanted if given.replicas is not None else 0
    work = [(0.0, ScalingRule.IDLE)]
    if signal.backlog:
        work.append((signal.backlog / limits.target_backlog, ScalingRule.BACKLOG))
    busy = signal.backlog > 0 or _moved(given, before)
    if busy and given.pace is not None:
        # fewer than what arrives takes would only let the backlog grow until there are more again
        work.append((min(signal.arrival / given.pace, current), ScalingRule.ARRIVALS))
    if busy and limits.target_age is not None:
        if given.pace is not None:
            # what consumers have already waits no longer
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
    """Whether the consumers have settled anything since the last look."""
    return bool(given.replicas and given.replicas.wanted) and before.settled not in (
        None,
        given.signal.settled,
    )


def _stepped(given: ScalingInput, growth: Growth | None) -> int:
    """One more than there are, once those had the time to show what they can do."""
    if given.replicas is None:
        return 1
    soon = growth is not None and given.now - growth.at < _STEP
    return given.replicas.wanted + (0 if soon or given.replicas.unready else 1)


def _fails(there: Replicas, growth: Growth | None, now: float) -> bool:
    """Whether what was added last does not come to run."""
    late = there.unready_since is not None and now - there.unready_since >= _GRACE
    added = growth.by if growth is not None else 1
    return (there.crashing or late) and there.unready >= added


def _within(limits: Limits, replicas: int) -> int:
    return max(limits.minimum, min(limits.maximum, replicas))


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
        waits = "waiting for the first evaluation of the HorizontalPodAutoscaler"
        return ConditionUpdate(kind, "Unknown", ConditionReason.RECONCILING, waits)
    if works:
        return ConditionUpdate(kind, "True", ConditionReason.AUTOSCALED)
    return ConditionUpdate(kind, "False", ConditionReason.AUTOSCALER_FAILING, message)
