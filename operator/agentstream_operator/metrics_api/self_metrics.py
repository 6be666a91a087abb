"""Prometheus metrics of the metrics server itself."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import Counter
from prometheus_client.core import GaugeMetricFamily, Metric

from agentstream_operator.broker.broker import Broker
from agentstream_operator.cluster.api import Api
from agentstream_operator.metrics_api.authorizer import Authorizer
from agentstream_operator.reconcile.state.index import ResourceIndex
from agentstream_operator.serve.exposition import Exposition, api_requests, counters, round_trips


class SelfMetrics(Exposition):
    """Counts responses; reads everything else at a scrape."""

    def __init__(self, store: ResourceIndex, authorizer: Authorizer, api: Api, broker: Broker) -> None:
        self._store = store
        self._authorizer = authorizer
        self._api = api
        self._broker = broker
        super().__init__()
        self._responses = Counter(
            "agentstream_external_answers",
            "Responses to requests for external metrics, by HTTP status.",
            ("code",),
            registry=self._registry,
        )

    def count_response(self, code: int) -> None:
        """Counts a response of the external metrics API."""
        self._responses.labels(str(code)).inc()

    def collect(self) -> Iterator[Metric]:
        """Reads the present numbers."""
        groups = len(self._store.groups)
        yield GaugeMetricFamily("agentstream_external_groups", "ConsumerGroups known.", value=groups)
        text = "SubjectAccessReviews, by outcome."
        reviews = (((outcome,), count) for outcome, count in self._authorizer.reviews.items())
        yield counters("agentstream_access_reviews", text, ("outcome",), reviews)
        yield api_requests(self._api.requests)
        yield round_trips(self._broker.round_trips)
