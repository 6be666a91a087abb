"""Prometheus exposition of a process: its own numbers, read at each scrape, and those of Python."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from agentstream_operator.serve.http import Reply


class Exposition(Collector):
    """A registry with metrics that are computed when they are scraped.

    Args:
        families: computes them.

    Attributes:
        registry: takes further metrics.
    """

    def __init__(self, families: Callable[[], Iterable[Metric]]) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._families = families
        self.registry = CollectorRegistry()
        self.registry.register(self)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)

    def describe(self) -> Iterator[Metric]:
        """Describes nothing: a registry would otherwise collect at registration."""
        return iter(())

    def collect(self) -> Iterable[Metric]:
        """Computes the metrics."""
        return self._families()

    def reply(self) -> Reply:
        """Answers a scrape."""
        return 200, CONTENT_TYPE_LATEST, generate_latest(self.registry)


def gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    """Builds a gauge without labels."""
    return GaugeMetricFamily(name, text, value=value)


def counter(name: str, text: str, value: float) -> CounterMetricFamily:
    """Builds a counter without labels; the exposition appends `_total` to its name."""
    return CounterMetricFamily(name, text, value=value)


def counters(
    name: str, text: str, labels: Sequence[str], values: Iterable[tuple[Sequence[object], int]]
) -> CounterMetricFamily:
    """Builds a counter for each combination of label values."""
    family = CounterMetricFamily(name, text, labels=labels)
    for key, value in values:
        family.add_metric([str(label) for label in key], value)
    return family


def api_requests(values: Mapping[tuple[str, str, int], int]) -> CounterMetricFamily:
    """Builds the counters of requests to the API server, by verb, resource and HTTP status."""
    text = "Requests to the API server; code 0: no response."
    return counters("agentstream_api_requests", text, ("verb", "resource", "code"), values.items())


def round_trips(count: int) -> CounterMetricFamily:
    """Builds the counter of round trips to Redis or Valkey."""
    return counter("agentstream_redis_round_trips", "Batches of commands sent and answered.", count)
