"""What is said in JSON."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from agentstream_operator.metrics_api import documents
from agentstream_operator.metrics_api.documents import MetricValue, accepts_json


@pytest.mark.parametrize(
    ("accept", "takes"),
    [
        ("", True),
        ("*/*", True),
        ("application/json", True),
        ("Application/JSON;q=0.9", True),
        ("application/*", True),
        ("application/vnd.kubernetes.protobuf, */*", True),
        ("application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json", True),
        ("application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList", False),
        ("application/json; as=Table", False),
        ("application/vnd.kubernetes.protobuf", False),
        ("text/html", False),
    ],
)
def test_plain_json_is_all_there_is(accept, takes):
    assert accepts_json(accept) is takes


def test_a_value_is_a_quantity_with_its_labels_and_time() -> None:
    at = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
    labels = {"group": "coder", "stream": "tasks"}
    assert documents.values([MetricValue(labels, 42, at), MetricValue(labels, 5_000, at)])["items"] == [
        {
            "metricName": "agentstream-backlog",
            "metricLabels": labels,
            "timestamp": "2026-01-02T03:04:05Z",
            "value": value,
        }
        for value in ("42", "5k")
    ]


def test_what_is_refused_is_a_status() -> None:
    assert documents.status(404, "nothing") == {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": "nothing",
        "reason": "NotFound",
        "code": 404,
    }
    assert documents.status(418, "?")["reason"] == ""
