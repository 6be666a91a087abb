"""What an engine holds of resources, for tests of metrics: an observation of each."""

from __future__ import annotations

from datetime import UTC, datetime

from agentstream_operator.plan.accounting import Account, Latency
from agentstream_operator.plan.observed import GroupSeen, JanitorReport, StreamSeen
from agentstream_operator.plan.retention import RetentionHistory
from agentstream_operator.plan.signal import Rate
from agentstream_operator.reconcile.report.figures import Figures, GroupWork, StreamWork
from agentstream_operator.resources.status import (
    Condition,
    ConditionReason,
    ConditionType,
    ConsumerGroupStatus,
    ReplayPhase,
    StreamReplayStatus,
)
from support.resources import TEMPLATE, a_group, a_replay, a_stream

STREAM = a_stream("tasks", retention={"maxLength": 1_000, "onFull": "Backpressure"})
GROUP = a_group("coder", template=TEMPLATE, autoscaling={"maxReplicas": 5, "targetAge": "1m"})
REPLAY = a_replay("again")
SEEN = GroupSeen(
    True,
    consumers=2,
    pending=3,
    undelivered=5,
    oldest_undelivered="98500-0",
    oldest_pending="96000-0",
    retry_length=2,
    delayed=4,
    due=1,
    dead=6,
)
ACCOUNT = Account(
    sent=20,
    acknowledged=9,
    skipped=1,
    retried=4,
    dead=6,
    replayed=2,
    lost=1,
    most_lost=3,
    latency=Latency({50.0: 4, 200.0: 3, 750.0: 1, float("inf"): 1}),
)
OBSERVED = StreamSeen(
    "stream", now=100_000, length=12, added=20, first="40000-0", gate="1000", groups={"coder": SEEN}
)
WORK = GroupWork(
    GROUP,
    OBSERVED,
    Rate(0, 0, events=5.0, seconds=2.0),
    pace=12.5,
    desired=2,
    ready=1,
    taken=7,
    account=ACCOUNT,
)
HISTORY = RetentionHistory(JanitorReport("stream", bytes=4_096), shortened_at=99_000)


def a_status() -> ConsumerGroupStatus:
    """The status of a group with one condition."""
    since = datetime(2026, 1, 1, tzinfo=UTC)
    reason = ConditionReason.DEAD_LETTERS
    ready = Condition(
        type=ConditionType.DEAD_LETTERING, status="True", reason=reason, last_transition_time=since
    )
    return ConsumerGroupStatus(conditions=(ready,))


FIGURES = Figures(
    (WORK,),
    (StreamWork(STREAM, ("coder",), OBSERVED, HISTORY),),
    (
        (
            REPLAY,
            StreamReplayStatus(
                phase=ReplayPhase.RUNNING, matched=9, moved=7, handled=4, dead=1, skipped={"Pending": 2}
            ),
        ),
    ),
    ((GROUP.key, a_status()),),
)
"""Of each kind one, with a sample of every metric."""


async def no_figures() -> Figures:
    """What is held where there are no resources."""
    return Figures()
