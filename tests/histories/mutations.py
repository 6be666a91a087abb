"""Four ways to break the function library, each of which the checker must notice."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from agentstream.protocol import library
from histories.checker import Promise
from histories.plan import LEASE, Kind, Plan, Step, make_plan


@dataclass(frozen=True)
class Mutation:
    """A change of the library.

    Attributes:
        name: what is missing.
        old: text that is there once.
        new: what it becomes.
        breaks: the promises of which it breaks one at least.
        kinds: faults under which it shows.
        duration: seconds within which it shows.
        steps: the very faults, if it takes a certain moment.
        load: further arguments of `make_plan`.
    """

    name: str
    old: str
    new: str
    breaks: Collection[Promise]
    kinds: Collection[Kind] = ()
    duration: float = 8.0
    steps: tuple[Step, ...] = ()
    load: Mapping[str, float] = field(default_factory=dict)

    def source(self) -> str:
        """The text of the library with the change.

        Raises:
            ValueError: the text to change is not there exactly once.
        """
        text = library.source()
        if text.count(self.old) != 1:
            raise ValueError(f"{self.name}: {self.old!r} is there {text.count(self.old)} times, not once")
        return text.replace(self.old, self.new)

    def plan(self, seed: int) -> Plan:
        """A run that shows it."""
        made = make_plan(seed, self.duration, self.kinds, **self.load)
        return replace(made, steps=self.steps or made.steps)


def _standstills() -> tuple[Step, ...]:
    """One of two consumers of each group stands still, with work in hand that the other one takes over."""
    return tuple(
        Step(at, Kind.PAUSE, f"{agent}-{n}", 3 * LEASE)
        for n, at in enumerate((3.0, 4.0 + 4 * LEASE))
        for agent in ("coder", "auditor")
    )


MUTATIONS = (
    Mutation(
        "batches are not deduplicated",
        "if before == number then return sent end",
        "",
        (Promise.ONE_ENTRY,),
        (Kind.LOSE,),
    ),
    Mutation(
        "owners are not compared",
        "if p[1][2] ~= consumer or p[1][4] ~= counter then return TAKEN end",
        "",
        (Promise.ONE_SETTLEMENT,),
        duration=4.0 + 7 * LEASE,
        steps=_standstills(),
        load={"slow": 0.9, "rate": 4.0},
    ),
    Mutation(
        "keys have no turn",
        "replies[#replies + 1] = has_come and 1 or 0",
        "replies[#replies + 1] = 1",
        (Promise.ORDERED,),
    ),
    Mutation(
        "retention has no floor",
        "if floor and less(floor, minid) then minid, r.held_by = floor, held_by end",
        "",
        (Promise.KEPT, Promise.COUNTED),
        (Kind.PAUSE,),
    ),
)
