"""What is to happen in a run, made up from its seed: the same seed sends and breaks the same.

What the operating system makes of it is not the same: which process runs when, and how far each had come when
something broke. So a seed that failed once may have to be run again, until it fails again.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

LEASE = 2.0
MAX_DELIVERIES = 5
STREAMS = ("tasks", "news")
GROUPS = ("tasks/coder", "tasks/auditor", "news/coder", "news/auditor")
SENDERS = ("planner-0", "planner-1")
CONSUMERS = ("coder-0", "coder-1", "auditor-0", "auditor-1")
KEYS = 6
FAILS_FOR_EVER = 99


class Kind(StrEnum):
    """Ways to break something."""

    KILL = "kill"
    TERMINATE = "terminate"
    PAUSE = "pause"
    BLOCK = "block"
    CUT = "cut"
    LOSE = "lose"
    SILENCE = "silence"
    REFUSE = "refuse"
    SERVER = "server"
    LEAP = "leap"
    FLUSH = "flush"
    DESTROY = "destroy"
    DELETE = "delete"


DESTRUCTION = frozenset({Kind.FLUSH, Kind.DESTROY, Kind.DELETE})
GENTLE = frozenset(Kind) - DESTRUCTION
LOSABLE = (
    "as1_add",
    "as1_settle",
    "as1_retry",
    "as1_begin",
    "as1_renew",
    "as1_turn",
    "as1_once",
    "XREADGROUP",
)
# seconds; by how many the clock leaps
LASTS: dict[Kind, tuple[float, ...]] = {
    Kind.KILL: (0.0, 1.0),
    Kind.TERMINATE: (0.0, 1.0),
    Kind.PAUSE: (0.3, 1.0, 3 * LEASE, 4 * LEASE),
    Kind.BLOCK: (3 * LEASE,),
    Kind.SILENCE: (0.5, 1.5 * LEASE, 3.5 * LEASE),
    Kind.REFUSE: (0.5, 1.5 * LEASE, 3.5 * LEASE),
    Kind.SERVER: (0.0, 0.5, 2 * LEASE),
    Kind.LEAP: (1.0, LEASE, 3 * LEASE, 60.0, 120.0, -60.0),
}


@dataclass(frozen=True)
class Step:
    """Something that is broken.

    Attributes:
        at: when, in seconds from the start.
        kind: how.
        target: the pod, the group or the stream; empty for all.
        lasts: for how many seconds; by how many the clock leaps.
        command: whose reply is lost.
    """

    at: float
    kind: Kind
    target: str = ""
    lasts: float = 0.0
    command: str = ""


@dataclass(frozen=True)
class Plan:
    """A run.

    Attributes:
        seed: of what is sent.
        duration: seconds for which messages are sent.
        steps: what is broken meanwhile.
        rate: messages a second of each sender.
        slow: the share of messages without a key whose handlers take long.
    """

    seed: int
    duration: float
    steps: tuple[Step, ...]
    rate: float = 25.0
    slow: float = 0.05


def make_plan(
    seed: int, duration: float, kinds: Collection[Kind] | None = None, *, pause: float = 1.2, **load: float
) -> Plan:
    """Makes up a run.

    Args:
        seed: of everything that is made up.
        duration: seconds for which messages are sent and things are broken.
        kinds: what may be broken; if None, every third seed may destroy, and the others check more.
        pause: seconds between two steps, on average.
        load: further fields of the plan.
    """
    chance = random.Random(f"{seed} nemesis")
    if kinds is None:
        kinds = frozenset(Kind) if seed % 3 == 0 else GENTLE
    choices = sorted(kinds)
    steps, at = [], 0.5
    while choices and at < duration:
        steps.append(_step(chance, at, chance.choice(choices)))
        at += chance.uniform(0.2, 1.8) * pause
    return Plan(seed, duration, tuple(steps), **load)


def _step(chance: random.Random, at: float, kind: Kind) -> Step:
    pod = chance.choice((*CONSUMERS, *CONSUMERS, *SENDERS))
    if kind is Kind.LOSE:
        pod = chance.choice(chance.choice((SENDERS, CONSUMERS)))
        return Step(at, kind, pod, command="as1_add" if pod in SENDERS else chance.choice(LOSABLE))
    targets = {
        Kind.BLOCK: CONSUMERS,
        Kind.SILENCE: ("", pod),
        Kind.REFUSE: ("", pod),
        Kind.DESTROY: GROUPS,
        Kind.DELETE: STREAMS,
        **dict.fromkeys((Kind.SERVER, Kind.LEAP, Kind.FLUSH), ("",)),
    }
    return Step(at, kind, chance.choice(targets.get(kind, (pod,))), chance.choice(LASTS.get(kind, (0.0,))))


def messages(seed: int, sender: str, first: int, slow: float) -> Iterator[dict[str, Any]]:
    """The messages of a sender process, for ever: the arguments of `Called`, numbered from `first`."""
    chance = random.Random(f"{seed} {sender} {first}")
    once: list[dict[str, Any]] = []
    n = first
    while True:
        if once and chance.random() < 0.05:
            yield {**chance.choice(once[-5:]), "n": n}
        else:
            message = _message(chance, n, slow)
            if "once" in message:
                once.append(message)
            yield message
        n += 1


def _message(chance: random.Random, n: int, slow: float) -> dict[str, Any]:
    stream, groups = chance.choice(
        [("tasks", GROUPS[:2]), ("tasks", GROUPS[:2]), ("tasks", GROUPS[1:2]), ("news", GROUPS[2:])]
    )
    message: dict[str, Any] = {"n": n, "stream": stream, "groups": groups}
    if chance.random() < 0.4:
        message["key"] = f"k{chance.randrange(KEYS)}"
    if chance.random() < 0.1:
        message["once"] = f"once-{n}"
    work: dict[str, float] = {"takes": round(chance.uniform(0, 0.06), 3)}
    # what has a key holds up others
    if chance.random() < (0.02 if "key" in message else slow):
        work["takes"] = round(chance.uniform(0.3, 3 * LEASE), 3)
    drawn = chance.random()
    if drawn < 0.1:
        work["fails"] = chance.choice((1, 1, 2))
    elif drawn < 0.105:
        work["fails"] = FAILS_FOR_EVER
    elif drawn < 0.115:
        work["rejects"] = 1
    if chance.random() < 0.2:
        work["effect"] = 1
    message["work"] = work
    return message
