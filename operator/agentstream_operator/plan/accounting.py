"""Counts what became of a group's messages: sent, acknowledged, dead-lettered, lost, and their latency.

Counters on the server only grow until the server loses its data; a counter below its last value started anew.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import accumulate

from agentstream_operator.plan.observed import GroupSeen, StreamSeen

_BUCKET = "le:"


@dataclass(frozen=True, slots=True)
class Latency:
    """Acknowledged messages by the time since their addition: by the upper bound of a bucket, in ms."""

    counts: Mapping[float, int] = field(default_factory=dict, hash=False)

    def percentile(self, share: float) -> float | None:
        """Returns the time in ms within which a share (0 to 1) of the messages was acknowledged, if any were.

        Interpolated within a bucket: the exact time is at most the bucket's bound; infinite in the last one.
        """
        bounds = sorted(self.counts)
        sums = list(accumulate(self.counts[bound] for bound in bounds))
        if not sums or sums[-1] == 0:
            return None
        wanted = share * sums[-1]
        i = min(bisect_left(sums, wanted), len(bounds) - 1)
        count = self.counts[bounds[i]]
        lower = bounds[i - 1] if i else 0.0
        if bounds[i] == float("inf") or count == 0:
            return bounds[i]
        return lower + (bounds[i] - lower) * (wanted - (sums[i] - count)) / count


@dataclass(frozen=True, slots=True)
class Account:
    """What became of a group's messages since the start."""

    sent: int = 0
    acknowledged: int = 0
    skipped: int = 0  # addressed to other agents, so settled without handling
    retried: int = 0  # failed attempts that are repeated
    dead: int = 0
    lost: int = 0  # accepted, neither settled nor on the server any more
    latency: Latency = field(default_factory=Latency)  # of the acknowledged ones


@dataclass(frozen=True, slots=True)
class GroupTotals:
    """The counters of one observation of a group."""

    added: int
    acked: int
    skipped: int
    retried: int
    dead: int
    lost: int
    unsettled: int
    buckets: Mapping[float, int] = field(hash=False)


_NOTHING = GroupTotals(0, 0, 0, 0, 0, 0, 0, {})


def counters(stream: StreamSeen, group: GroupSeen) -> GroupTotals:
    """Reads the counters of an observation."""
    stats = group.stats

    def count(name: str) -> int:
        return int(stats.get(name, 0))

    vanished = 0
    if group.read is not None and "base:read" in stats:
        delivered = group.read - count("base:read")
        vanished = max(0, delivered - (count("settled") - count("base:settled")) - group.pending)
    # the server counts entries that were trimmed unread as read, once the group reads on: one or the other
    # sees them
    missing_retries = max(0, count("retried") - count("resettled") - group.retry_length - group.delayed)
    return GroupTotals(
        added=stream.added,
        acked=count("acked"),
        skipped=count("skipped"),
        retried=count("retried"),
        dead=count("dead"),
        lost=count("trimmed") + max(count("overrun"), vanished) + missing_retries,
        unsettled=group.backlog + group.delayed,
        buckets={_bound(k): int(v) for k, v in stats.items() if k.startswith(_BUCKET)},
    )


def accumulate_account(account: Account, before: GroupTotals, after: GroupTotals) -> Account:
    """Returns the account after one more observation."""
    if after.added < before.added:
        # the stream vanished or was made anew: what was unsettled went with it, and the counters may, too
        account, before = replace(account, lost=account.lost + before.unsettled), _NOTHING
    counts = dict(account.latency.counts)
    for bound, count in after.buckets.items():
        grown = _growth(before.buckets.get(bound, 0), count)
        if grown:
            counts[bound] = counts.get(bound, 0) + grown
    return replace(
        account,
        sent=account.sent + after.added - before.added,
        acknowledged=account.acknowledged + _growth(before.acked, after.acked),
        skipped=account.skipped + _growth(before.skipped, after.skipped),
        retried=account.retried + _growth(before.retried, after.retried),
        dead=account.dead + _growth(before.dead, after.dead),
        # what was missing may be delivered again once a group comes back at its checkpoint
        lost=max(0, account.lost + after.lost - before.lost),
        latency=Latency(counts),
    )


@cache
def _bound(bucket: str) -> float:
    return float(bucket[len(_BUCKET) :])


def _growth(before: int, after: int) -> int:
    return after if after < before else after - before
