"""Prometheus metrics of the metrics server itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector


@dataclass(frozen=True, slots=True)
class SelfSample:
    """What is read when metrics are.

    Attributes:
        groups: how many ConsumerGroups are known.
        reviews: reviews of access, by outcome.
        requests: requests to the API server, by verb, resource and code.
        round_trips: batches of commands sent to Redis or Valkey.
    """

    groups: int
    reviews: Mapping[str, int]
    requests: Mapping[tuple[str, str, int], int]
    round_trips: int


class SelfMetrics:
    """The metrics.

    Args:
        numbers: what is read when metrics are.
    """

    def __init__(self, numbers: Callable[[], SelfSample]) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self._registry.register(_SelfCollector(numbers))
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._answers = Counter(
            "agentstream_external_answers",
            "Answers to requests for external metrics, by HTTP status.",
            ("code",),
            registry=self._registry,
        )

    def answered(self, code: int) -> None:
        """Counts an answer."""
        self._answers.labels(str(code)).inc()

    def answer(self) -> tuple[int, str, bytes]:
        """The answer to a scrape."""
        return 200, CONTENT_TYPE_LATEST, generate_latest(self._registry)


class _SelfCollector(Collector):
    def __init__(self, numbers: Callable[[], SelfSample]) -> None:
        self._numbers = numbers

    def describe(self) -> Iterator[Metric]:
        """Nothing: what is read has names of its own."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Everything that is read."""
        numbers = self._numbers()
        yield GaugeMetricFamily("agentstream_external_groups", "ConsumerGroups known.", value=numbers.groups)
        reviews = CounterMetricFamily(
            "agentstream_access_reviews", "Reviews of callers' access, by outcome.", labels=("outcome",)
        )
        for outcome, count in numbers.reviews.items():
            reviews.add_metric((outcome,), count)
        yield reviews
        requests = CounterMetricFamily(
            "agentstream_api_requests",
            "Requests to the API server; code 0 is one without an answer.",
            labels=("verb", "resource", "code"),
        )
        for (verb, resource, code), count in numbers.requests.items():
            requests.add_metric((verb, resource, str(code)), count)
        yield requests
        trips = CounterMetricFamily("agentstream_redis_round_trips", "Batches of commands sent and answered.")
        trips.add_metric((), numbers.round_trips)
        yield trips
