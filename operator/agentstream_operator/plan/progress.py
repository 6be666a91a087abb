"""Whether a group gets on with its messages."""

from __future__ import annotations

import msgspec

from agentstream_operator.plan.observed import GroupSeen

PATIENCE = 60_000
"""The shortest time in ms without progress that counts as a stall."""


class Progress(msgspec.Struct, frozen=True):
    """How far a group is.

    Attributes:
        settled: entries it has settled.
        since: when it settled the latest one, or had nothing to do, in ms of the server's clock.
    """

    settled: int
    since: int


def follow(before: Progress | None, group: GroupSeen, now: int) -> Progress:
    """The progress after one more observation at `now`, in ms of the server's clock."""
    settled = group.settled
    if before is not None and settled == before.settled and group.backlog > 0:
        return before
    return Progress(settled, now)


def stalled(progress: Progress, group: GroupSeen, lease: int, now: int) -> bool:
    """Whether messages wait and none was settled for three leases (ms), or a minute if that is longer."""
    return group.backlog > 0 and now - progress.since > max(3 * lease, PATIENCE)
