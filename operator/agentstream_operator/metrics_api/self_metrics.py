"""Prometheus metrics of the metrics server itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import Counter
from prometheus_client.core import Metric

from agentstream_operator.serve.exposition import Exposition, api_requests, counters, gauge, round_trips
from agentstream_operator.serve.http import Reply


@dataclass(frozen=True, slots=True)
class SelfSample:
    """Numbers read at a scrape.

    Attributes:
        groups: number of ConsumerGroups known.
        reviews: SubjectAccessReviews, by outcome.
        requests: requests to the API server, by verb, resource and HTTP status.
        round_trips: batches of commands sent to Redis or Valkey.
    """

    groups: int
    reviews: Mapping[str, int]
    requests: Mapping[tuple[str, str, int], int]
    round_trips: int


class SelfMetrics:
    """Counts responses, and exposes them with a sample of everything else.

    Args:
        sample: reads the numbers at a scrape.
    """

    def __init__(self, sample: Callable[[], SelfSample]) -> None:
        self._sample = sample
        self._exposition = Exposition(self._families)
        self._responses = Counter(
            "agentstream_external_answers",
            "Responses to requests for external metrics, by HTTP status.",
            ("code",),
            registry=self._exposition.registry,
        )

    def count_response(self, code: int) -> None:
        """Counts a response of the external metrics API."""
        self._responses.labels(str(code)).inc()

    def reply(self) -> Reply:
        """Answers a scrape."""
        return self._exposition.reply()

    def _families(self) -> Iterator[Metric]:
        sample = self._sample()
        yield gauge("agentstream_external_groups", "ConsumerGroups known.", sample.groups)
        reviews = (((outcome,), count) for outcome, count in sample.reviews.items())
        yield counters(
            "agentstream_access_reviews", "SubjectAccessReviews, by outcome.", ("outcome",), reviews
        )
        yield api_requests(sample.requests)
        yield round_trips(sample.round_trips)
