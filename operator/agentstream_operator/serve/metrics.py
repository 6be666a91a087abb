"""Prometheus metrics of the operator: of itself, and of the resources."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from agentstream_operator.reconcile.engine import Outcome
from agentstream_operator.reconcile.report.figures import Figures
from agentstream_operator.reconcile.report.metrics import OperatorHealth
from agentstream_operator.serve.exposition import Exposition, api_requests, counters, round_trips
from agentstream_operator.serve.http import Reply
from agentstream_operator.serve.resource_metrics import resource_metrics


@dataclass(frozen=True, slots=True)
class MetricsSample:
    """Numbers read at a scrape; `health` is None before the engine runs.

    Counts requests to the API server by verb, resource and HTTP status, watch events by resource, and in
    `missed` the changes found by listing that no watch event had announced.
    """

    leads: bool
    health: OperatorHealth | None
    requests: Mapping[tuple[str, str, int], int]
    events: Mapping[str, int]
    missed: int


class Metrics(Exposition):
    """Measures reconciliations, and exposes them with a sample of everything else.

    Without `each`, no series is about a single resource.
    """

    def __init__(
        self,
        sample: Callable[[], MetricsSample],
        figures: Callable[[], Awaitable[Figures]],
        *,
        each: bool = True,
    ) -> None:
        self._sample = sample
        self._figures = figures
        self._each = each
        self._scrape: asyncio.Task[Reply] | None = None
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

    async def scrape(self) -> Reply:
        """Answers a scrape; scrapes at the same time get the same answer.

        What is held of the resources is written down in a thread: the event loop goes on meanwhile.
        """
        if self._scrape is None or self._scrape.done():
            self._scrape = asyncio.create_task(self._scraped(), name="scrape")
        return await asyncio.shield(self._scrape)

    async def _scraped(self) -> Reply:
        found = await self._figures()
        status, content_type, own = self.reply()
        return status, content_type, await asyncio.to_thread(self._all, own, found)

    def _all(self, own: bytes, found: Figures) -> bytes:
        return own + resource_metrics(found, each=self._each)

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
        yield api_requests(sample.requests)
        yield counters("agentstream_watch_events", "Watch events received.", ("resource",), sample.events)
        missed = "Changes that no watch event announced."
        yield CounterMetricFamily("agentstream_watch_missed", missed, value=sample.missed)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=value)
