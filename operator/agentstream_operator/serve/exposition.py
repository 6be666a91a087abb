"""Exposes a process to Prometheus: its own numbers, read at each scrape, and those of Python."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from agentstream_operator.serve.http import Reply


class Exposition(Collector):
    """A registry of metrics; those of `collect` are computed at each scrape."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)

    def describe(self) -> Iterator[Metric]:
        """Describes nothing: a registry would otherwise collect at registration."""
        return iter(())

    @abstractmethod
    def collect(self) -> Iterator[Metric]:
        """Computes the metrics."""

    def reply(self) -> Reply:
        """Answers a scrape."""
        return 200, CONTENT_TYPE_LATEST, generate_latest(self._registry)


def counters(name: str, text: str, labels: Sequence[str], values: Mapping[Any, int]) -> CounterMetricFamily:
    """Builds a counter for each label value, or tuple of them; the exposition appends `_total`."""
    family = CounterMetricFamily(name, text, labels=labels)
    for key, value in values.items():
        family.add_metric([str(label) for label in (key if len(labels) > 1 else (key,))], value)
    return family


def api_requests(values: Mapping[tuple[str, str, int], int]) -> CounterMetricFamily:
    """Builds the counters of requests to the API server, by verb, resource and HTTP status."""
    text = "Requests to the API server; code 0: no response."
    return counters("agentstream_api_requests", text, ("verb", "resource", "code"), values)


def round_trips(count: int) -> CounterMetricFamily:
    """Builds the counter of round trips to Redis or Valkey."""
    text = "Batches of commands sent and answered."
    return CounterMetricFamily("agentstream_redis_round_trips", text, value=count)
