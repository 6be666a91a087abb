"""Joins the lines of a history into calls and deliveries, and knows what faults hit which of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from histories.records import (
    Began,
    Called,
    Claimed,
    Effect,
    Failed,
    Fault,
    History,
    Letter,
    Returned,
    Settled,
    Settling,
)

NEVER = 1 << 62
AT_ONCE = 0.5
"""Seconds; a verb that took less was not repeated because its process stood still."""
# data vanish; a group that is destroyed comes back at its checkpoint, so only its place vanishes
TAKES_DATA = frozenset({"flush", "delete"})
DESTROYS = TAKES_DATA | {"destroy"}
# the process does not run, or nobody hears of it: its leases may run out
STANDS = frozenset({"pause", "late"})
PARTS = STANDS | {"silence", "refuse"}
AWAY = frozenset({"server", "silence", "refuse"})
# the answer to a command may be lost, so that it is repeated
BREAKS = AWAY | {"cut", "lose", "kill"}


@dataclass
class Call:
    """A call of `send_message` or `broadcast`; without an entry it failed, was killed, or is under way."""

    called: Called
    ended: int = NEVER
    entry: str | None = None
    doubt: bool = True


@dataclass
class Delivery:
    """A handler's run; without a verb it was cut short, without `ended` its verb was."""

    began: Began
    verb: str = ""
    called: int = NEVER
    ended: int = NEVER
    held: bool = False

    @property
    def is_final(self) -> bool:
        """Whether it settled the message for good, as it was told."""
        return self.held and self.verb in {"ack", "dead_letter"}

    def __str__(self) -> str:
        what = f"{self.verb} {'held' if self.held else 'not held'}" if self.verb else "cut short"
        return f"{self.began.who}#{self.began.d} fence {self.began.fence} attempt {self.began.attempt} {what}"


Place = tuple[str, str]
"""A group and an entry."""


@dataclass
class Evidence:
    """What a history comes to.

    Attributes:
        history: the history.
        calls: by message.
        runs: the deliveries of each entry in each group, by when they began.
        effects: by group and name.
        claims: what receipts said.
        faults: what happened.
    """

    history: History
    calls: dict[int, Call] = field(default_factory=dict)
    runs: dict[Place, list[Delivery]] = field(default_factory=lambda: defaultdict(list))
    effects: dict[tuple[str, str], list[Effect]] = field(default_factory=lambda: defaultdict(list))
    claims: list[Claimed] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    _dead: frozenset[Place] = frozenset()

    @classmethod
    def of(cls, history: History) -> Evidence:
        """Joins the lines of a history."""
        found = cls(history)
        under_way: dict[tuple[str, int], Delivery] = {}
        for line in history.lines:
            match line:
                case Called():
                    found.calls[line.n] = Call(line)
                case Returned() | Failed():
                    call = found.calls[line.n]
                    call.ended = line.t
                    call.entry, call.doubt = getattr(line, "entry", None), getattr(line, "doubt", False)
                case Claimed():
                    found.claims.append(line)
                case Began():
                    under_way[line.who, line.d] = delivery = Delivery(line)
                    found.runs[line.group, line.entry].append(delivery)
                case Effect():
                    found.effects[line.group, line.effect].append(line)
                case Settling():
                    delivery = under_way[line.who, line.d]
                    delivery.verb, delivery.called = line.verb, line.t
                case Settled():
                    delivery = under_way[line.who, line.d]
                    delivery.held, delivery.ended = line.held, line.t
                case Fault():
                    found.faults.append(line)
        found._dead = frozenset((group, letter.entry) for group, letter in found.letters())
        return found

    def letters(self) -> Iterator[tuple[str, Letter]]:
        """All dead letters, with their groups."""
        for stream in self.history.streams.values():
            for name, group in stream.groups.items():
                yield from ((name, letter) for letter in group.letters)

    def dead(self) -> frozenset[Place]:
        """The entries of dead letters."""
        return self._dead

    def deliveries(self) -> Iterator[Delivery]:
        """All runs of handlers."""
        for runs in self.runs.values():
            yield from runs

    def hit(self, who: str, since: int, until: int, kinds: Collection[str]) -> bool:
        """Whether such a fault hit a process or all between two times."""
        return any(
            fault.kind in kinds and fault.target in {"", who} and fault.since <= until and fault.t >= since
            for fault in self.faults
        )

    def destroyed(self, group: str, since: int, until: int, kinds: Collection[str] = DESTROYS) -> bool:
        """Whether the group, its stream or all data went between two times, or came back only then."""
        stream = group.partition("/")[0]
        return any(
            fault.kind in kinds
            and fault.target in {"", group, stream}
            and fault.since <= until
            and fault.t >= since
            for fault in self.faults
        )

    def may_be_taken(self, delivery: Delivery, until: int) -> bool:
        """Whether the table of tested faults lets others have what this process had in hand."""
        who = delivery.began.who
        since = delivery.began.t - round(self.history.lease * 1e9)
        stood_still = sum(
            fault.t - fault.since
            for fault in self.faults
            # what hits all is no reason, unless this machine ran late: that nobody could renew is noticed
            if fault.kind in PARTS
            and (fault.target == who or (fault.kind == "late" and not fault.target))
            and fault.since <= until
            and fault.t >= since
        )
        killed = self.hit(who, delivery.began.t, until, {"kill"})
        # who is asked to end waits for a server that is away for no longer than a lease
        gave_up = delivery.ended - delivery.called >= self.history.lease * 0.5e9 and all(
            self.hit(who, delivery.called, delivery.ended, kinds) for kinds in ({"terminate"}, AWAY)
        )
        return killed or gave_up or stood_still >= self.history.lease * 0.5e9

    def is_doubtful(self, delivery: Delivery) -> bool:
        """Whether a verb may have been repeated: what is gone counts as done then."""
        who, since, until = delivery.began.who, delivery.called, delivery.ended
        stood_still = until - since > AT_ONCE * 1e9 and self.hit(who, since, until, STANDS)
        return stood_still or self.hit(who, since, until, BREAKS)
