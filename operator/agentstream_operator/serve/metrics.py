"""Prometheus metrics of the operator itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from agentstream_operator.reconcile.engine import Outcome
from agentstream_operator.reconcile.report.metrics import ConditionCount, GroupWork, OperatorHealth
from agentstream_operator.serve.exposition import Exposition, api_requests, counters, round_trips


@dataclass(frozen=True, slots=True)
class MetricsSample:
    """Numbers read at a scrape; `health` is None before the engine runs.

    Counts requests to the API server by verb, resource and HTTP status, watch events by resource, and in
    `missed` the changes found by listing that no watch event had announced.
    """

    leads: bool
    health: OperatorHealth | None
    conditions: Mapping[ConditionCount, int]
    requests: Mapping[tuple[str, str, int], int]
    events: Mapping[str, int]
    missed: int
    work: Iterable[GroupWork] = ()


class Metrics(Exposition):
    """Measures reconciliations, and exposes them with a sample of everything else."""

    def __init__(self, sample: Callable[[], MetricsSample]) -> None:
        self._sample = sample
        super().__init__()
        self._durations = Histogram(
            "agentstream_reconcile_duration_seconds",
            "Duration of a reconciliation of a resource or an agent, by outcome.",
            ("kind", "outcome"),
            registry=self._registry,
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
        )
        self._success = Gauge(
            "agentstream_reconcile_last_success_timestamp_seconds",
            "Time of the last successful reconciliation of a resource of the kind.",
            ("kind",),
            registry=self._registry,
        )

    def reconciled(self, kind: str, outcome: Outcome, seconds: float) -> None:
        """Records a reconciliation."""
        self._durations.labels(kind, outcome).observe(seconds)
        if outcome is Outcome.SUCCESS:
            self._success.labels(kind).set_to_current_time()

    def collect(self) -> Iterator[Metric]:
        """Computes the metrics of a sample."""
        sample = self._sample()
        yield _gauge("agentstream_leader", "Whether this operator holds the Lease.", int(sample.leads))
        if (health := sample.health) is not None:
            yield _gauge("agentstream_queue_depth", "Keys waiting to be reconciled.", health.waiting)
            yield _gauge(
                "agentstream_queue_oldest_seconds", "Wait of the first of these keys.", health.oldest
            )
            yield _gauge(
                "agentstream_redis_up", "Whether Redis or Valkey answers.", int(health.outage is None)
            )
            yield round_trips(health.round_trips)
            text = "Actions of the janitor on all streams."
            yield counters("agentstream_janitor", text, ("action",), health.janitor)
            text = "Failures of background work on single streams or groups."
            yield counters("agentstream_background_failures", text, ("loop",), health.failures)
        resources = GaugeMetricFamily(
            "agentstream_resources",
            "Resources by condition and its status.",
            labels=("kind", "condition", "status"),
        )
        for labels, count in sample.conditions.items():
            resources.add_metric(labels, count)
        yield resources
        yield api_requests(sample.requests)
        yield counters("agentstream_watch_events", "Watch events received.", ("resource",), sample.events)
        missed = "Changes that no watch event announced."
        yield CounterMetricFamily("agentstream_watch_missed", missed, value=sample.missed)
        yield from _group_families(sample.work)


_GROUP = ("namespace", "stream", "group")


def _group_families(work: Iterable[GroupWork]) -> Iterator[Metric]:
    """Exposes the work of groups; an unknown lag has no series, as 0 would be believed."""

    def family(name: str, text: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(f"agentstream_group_{name}", text, labels=_GROUP)

    known = family("lag_known", "Whether the lag of the group is known.")
    desired = family("desired_replicas", "Consumers that the group should have.")
    speed = family("service_rate", "Messages that a busy consumer of the group settles per second.")
    undelivered = family("undelivered", "Messages not yet delivered, and retries that are due.")
    pending = family("pending", "Messages delivered to a consumer and not settled.")
    backlog = family("backlog", "Messages undelivered or pending.")
    oldest = family("oldest_seconds", "Age of the oldest message of the backlog.")
    arrival = family("arrival_rate", "Messages added to the group's stream per second.")
    taken = family("taken", "Messages that other clients took from the group, until that is healed.")
    for group in work:
        labels, signal = (group.namespace, group.stream, group.group), group.signal
        known.add_metric(labels, signal.known)
        taken.add_metric(labels, group.taken)
        if group.desired is not None:
            desired.add_metric(labels, group.desired)
        if group.pace is not None:
            speed.add_metric(labels, group.pace)
        if signal.known:
            undelivered.add_metric(labels, signal.waiting)
            pending.add_metric(labels, signal.pending)
            backlog.add_metric(labels, signal.backlog)
            oldest.add_metric(labels, max(signal.oldest, signal.oldest_pending))
            arrival.add_metric(labels, signal.arrival)
    yield from (known, taken, desired, speed, undelivered, pending, backlog, oldest, arrival)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=value)
