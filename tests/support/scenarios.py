"""The scenarios in which scaling is simulated, for tests and for drawings."""

from __future__ import annotations

import math
from collections.abc import Callable

from agentstream_operator.plan.scaling import Limits
from support.traffic import Consumers, Scenario


def ramp(start: float, end: float, low: float, high: float) -> Callable[[float], float]:
    """A rate that rises evenly between two times, and stays."""
    return lambda at: low + (high - low) * min(1.0, max(0.0, (at - start) / (end - start)))


def day(length: float, low: float, high: float) -> Callable[[float], float]:
    """A rate that is low at the beginning and the end of a day, and high in its middle."""
    return lambda at: low + (high - low) * (1 - math.cos(2 * math.pi * at / length)) / 2


def steady(rate: float, until: float = math.inf) -> Callable[[float], float]:
    """A rate that stays until a time."""
    return lambda at: rate if at < until else 0.0


ORDINARY = Limits(minimum=0, maximum=10, target_backlog=100, down_after=30)
AGED = Limits(minimum=0, maximum=10, target_backlog=1000, down_after=30, target_age=10)
SLOW = Consumers(handling=60.0, concurrency=4)

DAY = Consumers(handling=0.5, concurrency=8)

BURST = Scenario("burst of 10,000", 150, ORDINARY, bursts={10: 10_000})
SERIAL = Scenario(
    "burst of 10,000, one at a time", 200, ORDINARY, bursts={10: 10_000}, consumers=Consumers(concurrency=1)
)
QUICK = Scenario(
    "burst of 100,000 quick ones", 150, ORDINARY, bursts={10: 100_000}, consumers=Consumers(handling=0.02)
)
RAMP_BY_BACKLOG = Scenario("ramp, by backlog", 900, ORDINARY, ramp(60, 600, 0, 8000))
RAMP_BY_AGE = Scenario("ramp, by age", 900, AGED, ramp(60, 600, 0, 8000))
A_DAY = Scenario("a day", 7200, AGED, day(7200, 2, 100), consumers=DAY)
NOISY_DAY = Scenario(
    "a noisy day, a fifth unmeasured", 7200, AGED, day(7200, 2, 100), consumers=DAY, noise=True, missed=0.2
)
SLOW_BY_BACKLOG = Scenario(
    "slow handlers, by backlog",
    1800,
    Limits(minimum=0, maximum=10, target_backlog=4, down_after=120),
    steady(0.3, until=900),
    consumers=SLOW,
    noise=True,
)
SLOW_BY_AGE = Scenario(
    "slow handlers, by age",
    1800,
    Limits(minimum=0, maximum=10, target_backlog=1000, down_after=120, target_age=30),
    steady(0.3, until=900),
    consumers=SLOW,
    noise=True,
)
NOW_AND_THEN = Scenario("one every five seconds", 600, ORDINARY, steady(0.2))
STUCK = Scenario("stuck", 600, AGED, bursts={10: 60, 100: 500}, consumers=Consumers(stuck=50))
ALL_STUCK = Scenario("all stuck", 600, AGED, bursts={10: 60, 100: 500}, consumers=Consumers(stuck=1000))
CRASHING = Scenario(
    "crashing for two minutes", 400, ORDINARY, steady(20, until=250), consumers=Consumers(crash=(60, 180))
)
AWAY = Scenario(
    "server away for a minute", 400, ORDINARY, steady(500, until=200), unknown=((60, 120),), noise=True
)

SCENARIOS = (
    BURST,
    SERIAL,
    QUICK,
    RAMP_BY_BACKLOG,
    RAMP_BY_AGE,
    A_DAY,
    NOISY_DAY,
    SLOW_BY_BACKLOG,
    SLOW_BY_AGE,
    NOW_AND_THEN,
    STUCK,
    ALL_STUCK,
    CRASHING,
    AWAY,
)
