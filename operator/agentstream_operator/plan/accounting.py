"""Counts what became of a group's messages: sent, acknowledged, dead-lettered, lost, and their latency.

Counters on the server only grow until the server loses its data. If that is all of it, they start anew; at a
failover it may be the last writes alone.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import accumulate
from typing import Final

from agentstream_operator.plan.observed import GroupSeen, StreamSeen

_BUCKET = "le:"
_SLOWEST = "slowest"
_GROWING = ("added", "acked", "skipped", "retried", "dead", "replayed", "settled")


BOUNDS: Final = (
    1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 75, 100, 150, 200, 300, 500, 750, 1_000, 1_500, 2_000, 3_000, 5_000,
    7_500, 10_000, 15_000, 20_000, 30_000, 45_000, 60_000, 90_000, 120_000, 180_000, 300_000, 450_000,
    600_000, 900_000, 1_200_000, 1_800_000, 2_700_000, 3_600_000,
)  # fmt: skip
"""Upper bounds of the buckets, in ms, as in `settle.lua`; the last bucket has none."""


@dataclass(frozen=True, slots=True)
class Latency:
    """Acknowledged messages by the time since their addition.

    Attributes:
        counts: by the upper bound of a bucket, in ms.
        slowest: what none of them exceeded, in ms, as far as that is known.
    """

    counts: Mapping[float, int] = field(default_factory=dict, hash=False)
    slowest: float = math.inf

    def percentile(self, share: float) -> float | None:
        """Returns the time in ms within which a share (0 to 1) of the messages was acknowledged, if any were.

        Interpolated within a bucket, up to the slowest message: the exact time is in the same bucket. In the
        last one it is that of the slowest message, infinite if that is not known.
        """
        bounds = sorted(self.counts)
        sums = list(accumulate(self.counts[bound] for bound in bounds))
        if not sums or sums[-1] == 0:
            return None
        wanted = share * sums[-1]
        i = min(bisect_left(sums, wanted), len(bounds) - 1)
        place = bisect_left(BOUNDS, bounds[i])
        lower = float(BOUNDS[place - 1]) if place else 0.0
        # an agent may have written anything into what the slowest one is read from
        upper = max(min(bounds[i], self.slowest), lower)
        count = self.counts[bounds[i]]
        if math.isinf(upper) or count == 0:
            return upper
        return lower + (upper - lower) * (wanted - (sums[i] - count)) / count


@dataclass(frozen=True, slots=True)
class Account:
    """What became of a group's messages since the start."""

    sent: int = 0
    acknowledged: int = 0
    skipped: int = 0  # addressed to other agents, so settled without handling
    retried: int = 0  # failed attempts that are repeated
    dead: int = 0
    replayed: int = 0  # given to the group once more; by so many, acknowledged and dead may exceed sent
    lost: int = 0  # accepted, neither settled nor on the server any more
    most_lost: int = 0  # the most that `lost` has been: what seemed lost may yet be settled
    latency: Latency = field(default_factory=Latency)  # of the acknowledged ones


@dataclass(frozen=True, slots=True)
class GroupTotals:
    """The counters of one observation of a group."""

    added: int
    acked: int
    skipped: int
    retried: int
    dead: int
    replayed: int
    settled: int  # entries of the stream
    trimmed: int  # while they were pending
    vanished: int  # read since `base`, and neither settled nor pending
    retries_gone: int  # neither settled nor delayed nor on the retry stream
    open: int  # entries of the stream that are undelivered or pending
    retries: int  # delayed or on the retry stream
    base: tuple[int, int] | None  # entries read and settled when the server's group was made, if there is one
    taken: int  # of the lost ones, those that others took since then: not what `TrimOldest` trimmed
    slowest: float  # what no acknowledged message exceeded since the group began, in ms
    buckets: Mapping[float, int] = field(hash=False)

    @property
    def lost(self) -> int:
        """Accepted entries that are neither settled nor on the server any more."""
        return self.trimmed + self.vanished + self.retries_gone

    def at_most(self, other: GroupTotals) -> GroupTotals:
        """Returns these totals, with what never falls as low as in others."""
        fallen = {name: min(getattr(self, name), getattr(other, name)) for name in _GROWING}
        buckets = {bound: min(count, other.buckets.get(bound, 0)) for bound, count in self.buckets.items()}
        return replace(self, **fallen, buckets=buckets)

    @property
    def unsettled(self) -> int:
        """Entries that are undelivered, pending, delayed or on the retry stream."""
        return self.open + self.retries


def counters(
    stream: StreamSeen, group: GroupSeen, before: GroupTotals | None = None, *, trims_oldest: bool = False
) -> GroupTotals:
    """Reads the counters of an observation; what it does not tell is as in the one before.

    `trims_oldest` says whether the stream may trim what is pending (`onFull: TrimOldest`).
    """
    stats = group.stats

    def count(name: str) -> int:
        return stats.get(name, 0)

    base = (count("base:read"), count("base:settled")) if group.exists and "base:read" in stats else None
    # the server's own count jumps where entries were deleted
    read = stream.added - group.undelivered if group.exact else group.read
    vanished, unsettled = 0, group.undelivered + group.pending
    if before is not None and stream.type == "stream" and not group.exists:
        # it will be made again at its checkpoint
        vanished, unsettled = before.vanished, before.open
    elif base is not None:
        if read is None:
            vanished = before.vanished if before is not None and before.base == base else 0
        else:
            vanished = max(0, read - base[0] - (count("settled") - base[1]) - group.pending)
    requeued = count("retried") + count("released") + count("replayed")
    retries = group.retry_length + group.delayed
    retries_gone = max(0, requeued - count("resettled") - retries)

    trimmed = 0 if trims_oldest else max(0, count("trimmed") - count("base:trimmed"))
    taken = max(0, vanished - count("overrun") + count("base:overrun"))
    taken += trimmed + max(0, retries_gone - count("base:gone"))
    if base is None or "base:unsure" in stats or not group.exact:
        # a flood must not hide what was known before
        taken = before.taken if base is not None and before is not None and before.base == base else 0
    return GroupTotals(
        added=stream.added,
        acked=count("acked"),
        skipped=count("skipped"),
        retried=count("retried"),
        dead=count("dead"),
        replayed=count("replayed"),
        settled=count("settled"),
        trimmed=count("trimmed"),
        vanished=vanished,
        retries_gone=retries_gone,
        open=unsettled,
        retries=retries,
        base=base,
        taken=taken,
        slowest=_slowest(stats),
        buckets={_bound(k): v for k, v in stats.items() if k.startswith(_BUCKET)},
    )


def accumulate_account(account: Account, before: GroupTotals, after: GroupTotals) -> Account:
    """Returns the account after one more observation."""
    lost = account.lost
    if _lost_its_last_writes(before, after):
        # which of the entries that are gone had been settled is not known; the last ones hardly
        lost += min(max(0, before.added - after.added), before.open)
        before = before.at_most(after)
    if after.settled < before.settled:
        # all that belongs to the group is gone
        lost += before.retries
        before = replace(before, settled=0, trimmed=0, retries_gone=0)
    if after.added < before.added:
        # the stream is gone, with what it held at the observation before and nobody settled since
        lost += max(0, before.open - (after.settled - before.settled))
        before = replace(before, added=0, vanished=0)
    elif after.base != before.base and after.base is not None:
        # the group was made again: what had vanished before does not come back
        before = replace(before, vanished=0)
    # a pending entry that was deleted may yet be settled by its holder
    lost = max(0, lost + after.lost - before.lost)
    grown = {bound: _growth(before.buckets.get(bound, 0), count) for bound, count in after.buckets.items()}
    return replace(
        account,
        sent=account.sent + after.added - before.added,
        acknowledged=account.acknowledged + _growth(before.acked, after.acked),
        skipped=account.skipped + _growth(before.skipped, after.skipped),
        retried=account.retried + _growth(before.retried, after.retried),
        dead=account.dead + _growth(before.dead, after.dead),
        replayed=account.replayed + _growth(before.replayed, after.replayed),
        lost=lost,
        most_lost=max(account.most_lost, lost),
        latency=Latency(Counter(account.latency.counts) + Counter(grown), after.slowest),
    )


def _lost_its_last_writes(before: GroupTotals, after: GroupTotals) -> bool:
    """Returns whether the server is as it was a while ago, as after a failover."""
    # a group that was made anew has another base, or has settled nothing
    if before.base is None or after.base != before.base or after.settled == 0 < before.settled:
        return False
    return any(getattr(after, name) < getattr(before, name) for name in _GROWING)


def _slowest(stats: Mapping[str, int]) -> float:
    # what is faster than a second is not noted
    noted = stats.get(_SLOWEST)
    return math.inf if noted is None else float(noted)


@cache
def _bound(bucket: str) -> float:
    return float(bucket[len(_BUCKET) :])


def _growth(before: int, after: int) -> int:
    return after if after < before else after - before
