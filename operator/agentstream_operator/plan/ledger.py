"""The delivery ledger: what became of every message that a group was given, from counters on the server.

`ledger_of` reads it from one observation, so that it outlives every process of ours; `total` adds up those
of several groups. A message is in one line of it at any time: what was `added` is the sum of the others.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import add

import msgspec

from agentstream_operator.plan.accounting import counters
from agentstream_operator.plan.observed import GroupSeen, StreamSeen


class Ledger(msgspec.Struct, frozen=True):
    """Messages of a group since it began, those replayed counted anew, by what became of them."""

    acknowledged: int = 0
    skipped: int = 0  # addressed to other agents, so settled without handling
    dead: int = 0  # became dead letters, whether these are kept or not
    discarded: int = 0  # settled otherwise
    lost: int = 0  # neither settled nor on the server any more
    waiting: int = 0  # not settled yet: undelivered, in hand, to be retried

    @property
    def added(self) -> int:
        """All of them."""
        return self.ended + self.waiting

    @property
    def ended(self) -> int:
        """Those that nothing more happens to."""
        return self.acknowledged + self.skipped + self.dead + self.discarded + self.lost

    @property
    def ratio(self) -> float | None:
        """The share, from 0 to 1, of the ended ones that were delivered; None before one has ended."""
        return (self.acknowledged + self.skipped) / self.ended if self.ended else None


def ledger_of(stream: StreamSeen, name: str) -> Ledger | None:
    """Returns the ledger of a group; None where its counters, or what it has read, are not known."""
    group = stream.groups.get(name)
    if group is None or not _is_known(group):
        return None
    totals, stats = counters(stream, group), group.stats
    # each entry of the stream, and each retry, is settled once: for good, or to be given again
    settled = group.settled - totals.trimmed - stats.get("retried", 0) - stats.get("released", 0)
    return Ledger(
        acknowledged=totals.acked,
        skipped=totals.skipped,
        dead=totals.dead,
        discarded=max(0, settled - totals.acked - totals.skipped - totals.dead),
        lost=totals.lost,
        waiting=totals.unsettled,
    )


def total(ledgers: Iterable[Ledger | None]) -> Ledger | None:
    """Returns the ledger of several groups together; None if one of them is not known."""
    found = Ledger()
    for each in ledgers:
        if each is None:
            return None
        found = Ledger(*map(add, msgspec.structs.astuple(found), msgspec.structs.astuple(each)))
    return found


def _is_known(group: GroupSeen) -> bool:
    return group.exists and not group.unreadable and not group.misread and (
        group.exact or group.read is not None
    )  # fmt: skip
