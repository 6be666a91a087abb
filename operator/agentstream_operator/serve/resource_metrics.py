"""Writes the metrics of every resource in Prometheus' text format: a number that is not known has no sample.

With thousands of groups, a scrape has hundreds of thousands of samples: there is no object for each.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import Final

import msgspec

from agentstream_operator.plan.accounting import Latency
from agentstream_operator.reconcile.report.figures import Figures, GroupWork, StreamWork
from agentstream_operator.resources.meta import ResourceKey
from agentstream_operator.resources.status import AnyStatus, StreamReplayStatus
from agentstream_operator.resources.streamreplay import StreamReplay

BUCKETS: Final = (
    10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 30_000, 60_000, 120_000, 300_000, 600_000,
    1_800_000, 3_600_000,
)  # fmt: skip
"""Upper bounds in ms of the exported buckets of latencies: some of those by which the server counts."""

_GAUGE, _COUNTER, _HISTOGRAM = "gauge", "counter", "histogram"
_LATENCY: Final = "agentstream_group_latency_seconds"

FAMILIES: Final = {
    "agentstream_resources": (_GAUGE, "Resources by condition and its status."),
    "agentstream_replays": (_GAUGE, "Replays by namespace and phase."),
    "agentstream_condition": (_GAUGE, "1 for each condition of a resource, with its status and reason."),
    "agentstream_stream_info": (_GAUGE, "1 for each stream, with what gives way when it is full."),
    "agentstream_stream_length": (_GAUGE, "Messages on the stream."),
    "agentstream_stream_limit": (_GAUGE, "Messages that the stream takes (maxLength)."),
    "agentstream_stream_unsettled": (
        _GAUGE,
        "Messages that the slowest group of the stream has not settled.",
    ),
    "agentstream_stream_admission_open": (_GAUGE, "Whether the stream takes new messages."),
    "agentstream_stream_history_seconds": (_GAUGE, "Age of the oldest message on the stream."),
    "agentstream_stream_history_shortened": (
        _GAUGE,
        "Whether messages younger than minAge were trimmed lately.",
    ),
    "agentstream_stream_trimmed_unsettled": (_GAUGE, "Whether messages not settled were trimmed lately."),
    "agentstream_stream_janitor_failing": (_GAUGE, "Whether the latest pass of the janitor failed."),
    "agentstream_stream_bytes": (_GAUGE, "Memory that the stream takes, where maxBytes is set."),
    "agentstream_group_lag_known": (_GAUGE, "Whether the lag of the group is known."),
    "agentstream_group_taken": (
        _GAUGE,
        "Messages that other clients took from the group, until that is healed.",
    ),
    "agentstream_group_desired_replicas": (_GAUGE, "Consumers that the group should have."),
    "agentstream_group_max_replicas": (_GAUGE, "Consumers that the group may have (maxReplicas)."),
    "agentstream_group_consumers": (_GAUGE, "Desired consumers of the group by state: ready or missing."),
    "agentstream_group_registered_consumers": (_GAUGE, "Consumers that the server lists for the group."),
    "agentstream_group_service_rate": (
        _GAUGE,
        "Messages that a busy consumer of the group settles per second.",
    ),
    "agentstream_group_undelivered": (_GAUGE, "Messages not yet delivered, and retries that are due."),
    "agentstream_group_pending": (_GAUGE, "Messages delivered to a consumer and not settled."),
    "agentstream_group_backlog": (_GAUGE, "Messages undelivered or pending."),
    "agentstream_group_retrying": (_GAUGE, "Retries that are due, and that no consumer has yet."),
    "agentstream_group_delayed": (_GAUGE, "Retries that are not due yet."),
    "agentstream_group_dead_letters": (_GAUGE, "Dead letters of the group."),
    "agentstream_group_oldest_seconds": (_GAUGE, "Age of the oldest message of the backlog."),
    "agentstream_group_oldest_waiting_seconds": (_GAUGE, "Age of the oldest message that no consumer has."),
    "agentstream_group_target_age_seconds": (_GAUGE, "Age that the backlog should not reach (targetAge)."),
    "agentstream_group_arrival_rate": (_GAUGE, "Messages added to the group's stream per second."),
    "agentstream_group_added_total": (_COUNTER, "Messages added to the group's stream."),
    "agentstream_group_settled_total": (_COUNTER, "Messages by how they ended: acked, skipped or dead."),
    "agentstream_group_retried_total": (_COUNTER, "Failed attempts that are repeated."),
    "agentstream_group_replayed_total": (_COUNTER, "Messages given to the group once more by replays."),
    "agentstream_group_lost_total": (_COUNTER, "Messages neither settled nor on the server any more."),
    "agentstream_group_ledger": (_GAUGE, "Messages by what became of them, since the group began."),
    _LATENCY: (_HISTOGRAM, "Seconds from adding a message to its acknowledgement."),
    "agentstream_replay_matched": (_GAUGE, "Messages that the replay has selected so far."),
    "agentstream_replay_moved": (_GAUGE, "Messages that it delivered once more, or removed."),
    "agentstream_replay_skipped": (_GAUGE, "Messages that it selected and left where they are."),
    "agentstream_replay_handled": (_GAUGE, "Moved messages that the group has acknowledged."),
    "agentstream_replay_dead": (_GAUGE, "Moved messages that became dead letters again."),
}
"""Kind and help of every metric of resources, by name, in the order of a scrape."""


class _Sheet:
    """Collects the samples of each family, which have to stand together."""

    def __init__(self) -> None:
        self._lines: defaultdict[str, list[str]] = defaultdict(list)

    def put(self, family: str, labels: str, value: float | None, suffix: str = "") -> None:
        """Adds a sample, unless its value is not known."""
        if value is not None:
            self._lines[family].append(f"{family}{suffix}{{{labels}}} {value}\n")

    def parts(self) -> Iterator[bytes]:
        """Yields the text of each family that has samples."""
        for name, (kind, text) in FAMILIES.items():
            if lines := self._lines.pop(name, None):
                yield f"# HELP {name} {text}\n# TYPE {name} {kind}\n{''.join(lines)}".encode()


def resource_metrics(figures: Figures, *, each: bool) -> bytes:
    """Writes the metrics of resources; without `each`, those that count all resources together alone."""
    sheet = _Sheet()
    _counts(sheet, figures)
    if each:
        for key, status in figures.statuses:
            _conditions(sheet, key, status)
        for stream in figures.streams:
            _stream(sheet, stream)
        for group in figures.groups:
            _group(sheet, group)
        for replay, status in figures.replays:
            _replay(sheet, replay, status)
    return b"".join(sheet.parts())


def _counts(sheet: _Sheet, figures: Figures) -> None:
    conditions = Counter(
        (key.kind, condition.type, condition.status)
        for key, status in figures.statuses
        for condition in status.conditions
    )
    for (kind, condition, state), count in conditions.items():
        labels = f'kind="{kind}",condition="{condition}",status="{state}"'
        sheet.put("agentstream_resources", labels, count)
    phases = Counter((replay.metadata.namespace, status.phase) for replay, status in figures.replays)
    for (namespace, phase), count in phases.items():
        if phase is not None:
            sheet.put("agentstream_replays", f'namespace="{namespace}",phase="{phase}"', count)


def _conditions(sheet: _Sheet, key: ResourceKey, status: AnyStatus) -> None:
    resource = f'kind="{key.kind}",namespace="{key.namespace}",name="{key.name}"'
    for found in status.conditions:
        labels = f'{resource},type="{found.type}",status="{found.status}",reason="{found.reason}"'
        sheet.put("agentstream_condition", labels, 1)


def _stream(sheet: _Sheet, work: StreamWork) -> None:
    stream, lag, history = work.resource, work.lag, work.history
    labels = f'namespace="{stream.metadata.namespace}",stream="{stream.metadata.name}"'
    put, retention = sheet.put, stream.spec.retention
    put("agentstream_stream_info", f'{labels},on_full="{retention.on_full}"', 1)
    put("agentstream_stream_limit", labels, retention.max_length)
    if lag is not None:
        put("agentstream_stream_length", labels, lag.length)
        put("agentstream_stream_unsettled", labels, lag.unsettled)
        put("agentstream_stream_admission_open", labels, int(not lag.refuses))
        put("agentstream_stream_history_seconds", labels, lag.history)
    if history is not None:
        put("agentstream_stream_history_shortened", labels, int(history.shortened_at is not None))
        put("agentstream_stream_trimmed_unsettled", labels, int(history.overrun_at is not None))
        put("agentstream_stream_janitor_failing", labels, int(bool(history.failure)))
        put("agentstream_stream_bytes", labels, history.report.bytes)


def _group(sheet: _Sheet, work: GroupWork) -> None:
    group, signal, lag = work.resource, work.signal, work.lag
    of = f'namespace="{group.metadata.namespace}",stream="{group.spec.stream_ref.name}"'
    labels = f'{of},group="{group.metadata.name}"'
    put, scaling = sheet.put, group.spec.autoscaling
    put("agentstream_group_lag_known", labels, int(signal.known))
    put("agentstream_group_taken", labels, work.taken)
    put("agentstream_group_desired_replicas", labels, work.desired)
    if scaling is not None:
        put("agentstream_group_max_replicas", labels, scaling.max_replicas)
        if scaling.target_age is not None:
            put("agentstream_group_target_age_seconds", labels, scaling.target_age.seconds)
    if work.desired is not None and work.ready is not None:
        put("agentstream_group_consumers", f'{labels},state="ready"', work.ready)
        put("agentstream_group_consumers", f'{labels},state="missing"', max(0, work.desired - work.ready))
    put("agentstream_group_registered_consumers", labels, work.members)
    put("agentstream_group_service_rate", labels, work.pace)
    if signal.known:
        put("agentstream_group_undelivered", labels, signal.waiting)
        put("agentstream_group_pending", labels, signal.pending)
        put("agentstream_group_backlog", labels, signal.backlog)
        put("agentstream_group_oldest_seconds", labels, max(signal.oldest, signal.oldest_pending))
        put("agentstream_group_oldest_waiting_seconds", labels, signal.oldest)
        put("agentstream_group_arrival_rate", labels, signal.arrival)
    if lag is not None:
        put("agentstream_group_retrying", labels, lag.retrying)
        put("agentstream_group_delayed", labels, lag.delayed)
        put("agentstream_group_dead_letters", labels, lag.dead)
    if (ledger := work.ledger) is not None:
        for outcome, count in msgspec.structs.asdict(ledger).items():
            put("agentstream_group_ledger", f'{labels},outcome="{outcome}"', count)
    if (account := work.account) is not None:
        put("agentstream_group_added_total", labels, account.sent)
        put("agentstream_group_settled_total", f'{labels},outcome="acked"', account.acknowledged)
        put("agentstream_group_settled_total", f'{labels},outcome="skipped"', account.skipped)
        put("agentstream_group_settled_total", f'{labels},outcome="dead"', account.dead)
        put("agentstream_group_retried_total", labels, account.retried)
        put("agentstream_group_replayed_total", labels, account.replayed)
        put("agentstream_group_lost_total", labels, account.most_lost)
        _latency(sheet, labels, account.latency)


def _latency(sheet: _Sheet, labels: str, latency: Latency) -> None:
    """Writes a histogram; it has no sum, which the server does not count."""
    within = _cumulative(latency)
    for bound, count in zip(BUCKETS, within, strict=True):
        sheet.put(_LATENCY, f'{labels},le="{bound / 1000:g}"', count, "_bucket")
    total = sum(latency.counts.values())
    sheet.put(_LATENCY, f'{labels},le="+Inf"', total, "_bucket")
    sheet.put(_LATENCY, labels, total, "_count")


def _cumulative(latency: Latency) -> Iterable[int]:
    bounds = sorted(latency.counts)
    sums = list(accumulate((latency.counts[bound] for bound in bounds), initial=0))
    reached = 0
    for bucket in BUCKETS:
        while reached < len(bounds) and bounds[reached] <= bucket:
            reached += 1
        yield sums[reached]


def _replay(sheet: _Sheet, replay: StreamReplay, status: StreamReplayStatus) -> None:
    of = f'namespace="{replay.metadata.namespace}",group="{replay.spec.group_ref.name}"'
    labels = f'{of},replay="{replay.metadata.name}"'
    sheet.put("agentstream_replay_matched", labels, status.matched)
    sheet.put("agentstream_replay_moved", labels, status.moved)
    skipped = sum(status.skipped.values()) if status.skipped is not None else None
    sheet.put("agentstream_replay_skipped", labels, skipped)
    sheet.put("agentstream_replay_handled", labels, status.handled)
    sheet.put("agentstream_replay_dead", labels, status.dead)
