"""Traffic, and consumers that are scaled by it, in simulated time: what the decisions of hours come to.

The decisions are the operator's; the server, the pods and the messages are numbers, the same in each run.
"""

from __future__ import annotations

import itertools
import math
import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from agentstream_operator.plan.observed import GroupSeen, StreamSeen
from agentstream_operator.plan.scaling import (
    Decision,
    Limits,
    Replicas,
    ScalingInput,
    ScalingRule,
    decide,
    follow_replicas,
)
from agentstream_operator.plan.signal import UNKNOWN, Pace, Rate, follow_pace, follow_rate, read_signal

PULSE = 2.0
"""Seconds between two measurements."""

_EPSILON = 1e-6
_BORN = 1_800_000_000_000
Span = tuple[float, float]


@dataclass(frozen=True)
class Consumers:
    """What pods are like.

    Attributes:
        start: seconds from being wanted to being ready.
        handling: seconds that a message takes.
        concurrency: messages that a pod handles at once.
        crash: when pods end again and again.
        stuck: so many of the first messages are never settled.
    """

    start: float = 2.0
    handling: float = 0.05
    concurrency: int = 64
    crash: Span = (math.inf, math.inf)
    stuck: int = 0


@dataclass(frozen=True)
class Scenario:
    """What happens.

    Attributes:
        name: what it is called.
        seconds: how long it lasts.
        limits: of the group.
        rate: messages per second at a time.
        bursts: messages that come at once, by when.
        consumers: the pods.
        unknown: when nothing can be measured.
        noise: whether messages come as they like, and not evenly.
        missed: the share of measurements that do not happen, and of which nobody knows.
    """

    name: str
    seconds: float
    limits: Limits
    rate: Callable[[float], float] = lambda _: 0.0
    bursts: dict[float, int] = field(default_factory=dict)
    consumers: Consumers = Consumers()
    unknown: tuple[Span, ...] = ()
    noise: bool = False
    missed: float = 0.0


@dataclass(frozen=True)
class Moment:
    """How it is after a measurement."""

    at: float
    waiting: int
    pending: int
    oldest: float
    wanted: int
    ready: int
    rule: ScalingRule


@dataclass(frozen=True)
class Trace:
    """What came of it.

    Attributes:
        moments: how it was after each measurement.
        settled: messages that were settled.
        left: messages that were not.
        drained: when nothing was left for the first time after the last message came.
    """

    moments: tuple[Moment, ...]
    settled: int
    left: int
    drained: float | None

    @property
    def peak(self) -> int:
        """The most consumers that were wanted."""
        return max(moment.wanted for moment in self.moments)

    @property
    def longest(self) -> float:
        """The longest that a message was seen to wait, in seconds."""
        return max(moment.oldest for moment in self.moments)

    @property
    def changes(self) -> tuple[int, ...]:
        """By how many consumers their number changed, in order."""
        wanted = [0, *(moment.wanted for moment in self.moments)]
        return tuple(b - a for a, b in itertools.pairwise(wanted) if a != b)

    @property
    def reversals(self) -> int:
        """How often consumers were taken away that had been added, or the other way round."""
        return sum(a * b < 0 for a, b in itertools.pairwise(self.changes))

    @property
    def pod_seconds(self) -> float:
        """Seconds of all consumers together."""
        return sum(moment.wanted for moment in self.moments) * PULSE

    def between(self, start: float, end: float) -> tuple[Moment, ...]:
        """The moments in a span of time."""
        return tuple(moment for moment in self.moments if start <= moment.at < end)


class _Pod:
    def __init__(self, now: float, like: Consumers) -> None:
        self.ready_at = now + like.start
        self._crash = like.crash
        self.running: deque[tuple[float, int]] = deque()
        self.busy = 0

    def crashes(self, now: float) -> bool:
        return now >= self.ready_at and self._crash[0] <= now < self._crash[1]

    def is_ready(self, now: float) -> bool:
        return now >= self.ready_at and not self.crashes(now)


class _World:
    """The stream, and the pods."""

    def __init__(self, scenario: Scenario, seed: int) -> None:
        self.scenario = scenario
        self._random = random.Random(seed)
        self.queue: deque[tuple[float, int]] = deque()
        self.added = self.settled = self.waiting = 0
        self.to_stick = scenario.consumers.stuck
        self.pods: list[_Pod] = []
        self._leaving: list[_Pod] = []
        self._owed = 0.0

    @property
    def pending(self) -> int:
        return self.added - self.settled - self.waiting

    def arrive(self, start: float, end: float) -> None:
        """Adds what comes between two times."""
        expected = self.scenario.rate(start) * (end - start)
        if self.scenario.noise:
            count = _poisson(self._random, expected)
        else:
            self._owed += expected
            count = int(self._owed)
            self._owed -= count
        count += sum(n for at, n in self.scenario.bursts.items() if start <= at < end)
        if count:
            self.queue.append((start, count))
            self.added += count
            self.waiting += count

    def work(self, now: float) -> None:
        """Settles what is done, and lets free pods take more."""
        like = self.scenario.consumers
        for pod in (*self.pods, *self._leaving):
            while pod.running and pod.running[0][0] <= now + _EPSILON:
                done = pod.running.popleft()[1]
                pod.busy -= done
                self.settled += done
        self._leaving = [pod for pod in self._leaving if pod.busy]
        ready = [pod for pod in self.pods if pod.is_ready(now)]
        for number, pod in enumerate(ready):
            share = -(-self.waiting // (len(ready) - number))
            took = min(share, like.concurrency - pod.busy)
            self._take(pod, took, now + like.handling)

    def _take(self, pod: _Pod, count: int, until: float) -> None:
        self.waiting -= count
        pod.busy += count
        stuck = min(self.to_stick, count)
        self.to_stick -= stuck
        if count > stuck:
            pod.running.append((until, count - stuck))
        while count:
            at, there = self.queue.popleft()
            if there > count:
                self.queue.appendleft((at, there - count))
            count -= min(there, count)

    def scale(self, replicas: int, now: float) -> None:
        """Adds pods, or lets the newest finish what they have and go."""
        while len(self.pods) > replicas:
            self._leaving.append(self.pods.pop())
        while len(self.pods) < replicas:
            self.pods.append(_Pod(now, self.scenario.consumers))

    def seen(self, now: float) -> StreamSeen:
        """What the server shows."""
        oldest = f"{_BORN + round(self.queue[0][0] * 1000)}-0" if self.queue else None
        group = GroupSeen(
            exists=True,
            pending=self.pending,
            undelivered=self.waiting,
            oldest_undelivered=oldest,
            stats={"settled": self.settled},
        )
        return StreamSeen("stream", _BORN + round(now * 1000), added=self.added, groups={"g": group})


class _Operator:
    """Measures and decides as the operator does."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._arrivals: Rate | None = None
        self._pace: Pace | None = None
        self._replicas: Replicas | None = None
        self._decision: Decision | None = None

    def decide(self, now: float, seen: StreamSeen | None, pods: list[_Pod]) -> Decision:
        """Decides on what is seen; None for what cannot be measured."""
        signal, ready = UNKNOWN, sum(pod.is_ready(now) for pod in pods)
        if seen is not None:
            self._arrivals = follow_rate(self._arrivals, seen.added, now)
            signal = read_signal(seen, "g", self._arrivals)
        crashing = any(pod.crashes(now) for pod in pods)
        self._replicas = follow_replicas(self._replicas, len(pods), ready, now, crashing=crashing)
        self._pace = follow_pace(self._pace, signal, ready, now)
        pace = self._pace.value if self._pace is not None else None
        self._decision = decide(
            ScalingInput(now, signal, self._replicas, self._limits, pace, before=self._decision)
        )
        return self._decision


def simulate(scenario: Scenario, seed: int = 1) -> Trace:
    """Lets a scenario happen."""
    world, operator = _World(scenario, seed), _Operator(scenario.limits)
    chance = random.Random(seed + 1)
    moments, drained = [], None
    due = 0.0
    for start, end in _ticks(scenario):
        world.arrive(start, end)
        world.work(end)
        if world.added > world.settled:
            drained = None
        elif drained is None and world.added:
            drained = end
        if end < due:
            continue
        due += PULSE
        if chance.random() < scenario.missed:
            continue
        known = not any(a <= end < b for a, b in scenario.unknown)
        decision = operator.decide(end, world.seen(end) if known else None, world.pods)
        ready = sum(pod.is_ready(end) for pod in world.pods)
        world.scale(decision.replicas, end)
        oldest = end - world.queue[0][0] if world.queue else 0.0
        moments.append(
            Moment(end, world.waiting, world.pending, oldest, decision.replicas, ready, decision.rule)
        )
    return Trace(tuple(moments), world.settled, world.added - world.settled, drained)


def _ticks(scenario: Scenario) -> Iterator[Span]:
    """Steps no longer than a message takes, so that a slot is free again by the next one."""
    tick = min(0.5, scenario.consumers.handling)
    for number in range(round(scenario.seconds / tick)):
        yield number * tick, (number + 1) * tick


def _poisson(chance: random.Random, expected: float) -> int:
    if expected > 50:
        return max(0, round(chance.gauss(expected, math.sqrt(expected))))
    floor, product, count = math.exp(-expected), chance.random(), 0
    while product > floor:
        product *= chance.random()
        count += 1
    return count
