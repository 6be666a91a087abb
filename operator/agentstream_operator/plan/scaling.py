"""How many consumers a group should have. The whole history that the decision needs is part of its input."""

from __future__ import annotations

from dataclasses import dataclass

Need = tuple[float, int]
"""When so many replicas were needed last, in seconds, and how many."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How far and how fast the number of replicas may move.

    Attributes:
        minimum: the least replicas; 0 lets an idle group have none.
        maximum: the most.
        target_backlog: unsettled entries that one replica is to have at most.
        down_after: seconds for which fewer must do before there are fewer.
    """

    minimum: int
    maximum: int
    target_backlog: int
    down_after: float


@dataclass(frozen=True, slots=True)
class ScalingInput:
    """All that a decision depends on.

    Attributes:
        now: seconds on any steady clock, the same for one group's decisions.
        backlog: what is undelivered, pending or due again, or None if that is not known.
        current: replicas that are wanted at present, or None if there never was a decision.
        limits: with autoscaling, else None.
        fixed: replicas without autoscaling.
        suspended: whether there are to be none.
        needs: `Decision.needs` of the previous decision.
    """

    now: float
    backlog: int | None
    current: int | None
    limits: Limits | None
    fixed: int = 1
    suspended: bool = False
    needs: tuple[Need, ...] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """What is decided.

    Attributes:
        replicas: how many consumers there are to be.
        needs: the higher needs of the recent past, falling, for the next decision.
        held: unknown backlog: the last decision stays.
    """

    replicas: int
    needs: tuple[Need, ...] = ()
    held: bool = False


def decide(given: ScalingInput) -> Decision:
    """Decides how many consumers a group should have.

    More are had at once. Fewer only after fewer would have done for all of `down_after`, so a group goes to
    zero only when nothing has been undelivered, pending or due for that long. Where there is no history, as
    after a restart, what runs counts as needed now.
    """
    if given.suspended:
        return Decision(0)
    limits = given.limits
    if limits is None:
        return Decision(given.fixed)
    if given.backlog is None:
        replicas = limits.minimum if given.current is None else given.current
        return Decision(_within(limits, replicas), given.needs, held=True)
    need = _within(limits, -(-given.backlog // limits.target_backlog))
    past = given.needs
    if not past and given.current:
        past = ((given.now, given.current),)
    # of two equal needs the later one counts, and one that is higher hides those before it
    recent = tuple(p for p in past if p[1] > need and p[0] + limits.down_after > given.now)
    needs = (*recent, (given.now, need))
    return Decision(_within(limits, needs[0][1]), needs)


def _within(limits: Limits, replicas: int) -> int:
    return max(limits.minimum, min(limits.maximum, replicas))
