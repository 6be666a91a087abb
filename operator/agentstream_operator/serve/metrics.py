"""Prometheus metrics of the operator itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import (
    CollectorRegistry,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from agentstream_operator.reconcile.engine import Outcome
from agentstream_operator.reconcile.report.health import ConditionCount, OperatorHealth
from agentstream_operator.reconcile.report.work import GroupWork


@dataclass(frozen=True, slots=True)
class MetricsSample:
    """What is read when metrics are.

    Attributes:
        leads: whether the operator holds the Lease.
        health: the engine; None before there is one.
        conditions: resources by what their conditions say.
        requests: requests to the API server, by verb, resource and code.
        events: events of the watches, by resource.
        missed: changes that no event told of.
        work: what the consumers of groups have to do.
    """

    leads: bool
    health: OperatorHealth | None
    conditions: Mapping[ConditionCount, int]
    requests: Mapping[tuple[str, str, int], int]
    events: Mapping[str, int]
    missed: int
    work: Iterable[GroupWork] = ()


class Metrics:
    """The metrics.

    Args:
        numbers: what is read when metrics are.
    """

    def __init__(self, numbers: Callable[[], MetricsSample]) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self._registry.register(_OperatorCollector(numbers))
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._durations = Histogram(
            "agentstream_reconcile_duration_seconds",
            "How long a look at a resource or an agent took, by how it went.",
            ("kind", "outcome"),
            registry=self._registry,
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
        )
        self._success = Gauge(
            "agentstream_reconcile_last_success_timestamp_seconds",
            "When a look at a resource of the kind last ended well.",
            ("kind",),
            registry=self._registry,
        )

    def worked(self, kind: str, outcome: Outcome, seconds: float) -> None:
        """Counts a look at a key."""
        self._durations.labels(kind, outcome).observe(seconds)
        if outcome is Outcome.SUCCESS:
            self._success.labels(kind).set_to_current_time()

    def answer(self) -> tuple[int, str, bytes]:
        """The answer to a scrape."""
        return 200, CONTENT_TYPE_LATEST, generate_latest(self._registry)


class _OperatorCollector(Collector):
    def __init__(self, numbers: Callable[[], MetricsSample]) -> None:
        self._numbers = numbers

    def describe(self) -> Iterator[Metric]:
        """Nothing: what is read has names of its own."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Everything that is read."""
        numbers = self._numbers()
        yield _gauge("agentstream_leader", "Whether this operator holds the Lease.", int(numbers.leads))
        yield from _of_engine(numbers.health)
        resources = GaugeMetricFamily(
            "agentstream_resources",
            "Resources by what their conditions say.",
            labels=("kind", "condition", "status"),
        )
        for labels, count in numbers.conditions.items():
            resources.add_metric(labels, count)
        yield resources
        requests = CounterMetricFamily(
            "agentstream_api_requests",
            "Requests to the API server; code 0 is one without an answer.",
            labels=("verb", "resource", "code"),
        )
        for (verb, resource, code), count in numbers.requests.items():
            requests.add_metric((verb, resource, str(code)), count)
        yield requests
        events = CounterMetricFamily(
            "agentstream_watch_events", "Events that the watches brought.", labels=("resource",)
        )
        for resource, count in numbers.events.items():
            events.add_metric((resource,), count)
        yield events
        missed = CounterMetricFamily("agentstream_watch_missed", "Changes that no watch told of.")
        missed.add_metric((), numbers.missed)
        yield missed
        yield from _of_groups(numbers.work)


_GROUP = ("namespace", "stream", "group")


def _of_groups(work: Iterable[GroupWork]) -> Iterator[Metric]:
    """The work of groups. Of one that is not known there are no numbers: that is not the same as none."""

    def family(name: str, text: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(f"agentstream_group_{name}", text, labels=_GROUP)

    known = family("lag_known", "Whether it is known how many messages of the group wait.")
    desired = family("desired_replicas", "Consumers that the group should have.")
    speed = family("service_rate", "Messages that a busy consumer of the group settles in a second.")
    undelivered = family("undelivered", "Messages that no consumer was given, retries that are due included.")
    pending = family("pending", "Messages that a consumer was given and has not settled.")
    backlog = family("backlog", "Messages that wait or run.")
    oldest = family("oldest_seconds", "Age of the oldest message that waits or runs.")
    arrival = family("arrival_rate", "Messages that are added to the group's stream in a second.")
    for group in work:
        labels, signal = (group.namespace, group.stream, group.group), group.signal
        known.add_metric(labels, signal.known)
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
    yield from (known, desired, speed, undelivered, pending, backlog, oldest, arrival)


def _of_engine(health: OperatorHealth | None) -> Iterator[Metric]:
    if health is None:
        return
    yield _gauge("agentstream_queue_depth", "Keys that wait to be worked on.", health.waiting)
    yield _gauge("agentstream_queue_oldest_seconds", "How long the first of them has waited.", health.oldest)
    yield _gauge("agentstream_redis_up", "Whether Redis or Valkey answers.", int(health.trouble is None))
    trips = CounterMetricFamily("agentstream_redis_round_trips", "Batches of commands sent and answered.")
    trips.add_metric((), health.round_trips)
    yield trips


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=value)
