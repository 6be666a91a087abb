"""What a scrape of the metrics server shows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from agentstream_operator.metrics_api.main import SelfMetrics


def test_a_scrape_shows_answers_and_what_they_took() -> None:
    counting: Any = SimpleNamespace(
        groups=range(3),
        reviews={"allowed": 2},
        requests={("list", "agentstreams", 200): 1},
        round_trips=7,
    )
    metrics = SelfMetrics(counting, counting, counting, counting)
    for code in (200, 200, 503):
        metrics.count_response(code)
    status, _, body = metrics.reply()
    shown = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
        if sample.name.startswith("agentstream_")
    }
    assert status == 200
    assert shown == {
        ("agentstream_external_answers_total", "200"): 2,
        ("agentstream_external_answers_total", "503"): 1,
        ("agentstream_external_groups",): 3,
        ("agentstream_access_reviews_total", "allowed"): 2,
        ("agentstream_api_requests_total", "200", "agentstreams", "list"): 1,
        ("agentstream_redis_round_trips_total",): 7,
    }
