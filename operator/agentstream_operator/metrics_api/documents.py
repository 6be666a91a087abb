"""JSON documents of the external metrics API: discovery, metric values, errors. No input or output.

https://github.com/kubernetes/metrics/blob/master/pkg/apis/external_metrics/v1beta1/types.go
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from typing import Any

from agentstream_operator.cluster.autoscaler import METRIC, quantity

Json = dict[str, Any]
GROUP, VERSION = "external.metrics.k8s.io", "v1beta1"
GROUP_VERSION = f"{GROUP}/{VERSION}"
_REASONS = {
    HTTPStatus.BAD_REQUEST: "BadRequest",
    HTTPStatus.UNAUTHORIZED: "Unauthorized",
    HTTPStatus.FORBIDDEN: "Forbidden",
    HTTPStatus.NOT_FOUND: "NotFound",
    HTTPStatus.METHOD_NOT_ALLOWED: "MethodNotAllowed",
    HTTPStatus.NOT_ACCEPTABLE: "NotAcceptable",
    HTTPStatus.INTERNAL_SERVER_ERROR: "InternalError",
    HTTPStatus.SERVICE_UNAVAILABLE: "ServiceUnavailable",
}


_GROUP = {
    "name": GROUP,
    "versions": [{"groupVersion": GROUP_VERSION, "version": VERSION}],
    "preferredVersion": {"groupVersion": GROUP_VERSION, "version": VERSION},
}

DISCOVERY: Mapping[str, Json] = {
    "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": [_GROUP]},
    f"/apis/{GROUP}": {"kind": "APIGroup", "apiVersion": "v1", **_GROUP},
    f"/apis/{GROUP_VERSION}": {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": GROUP_VERSION,
        "resources": [
            {
                # one name stands for all metrics
                "name": "externalmetrics",
                "singularName": "",
                "namespaced": True,
                "kind": "ExternalMetricValueList",
                "verbs": ["get"],
            }
        ],
    },
    # no schemas: nothing that is served can be written
    "/openapi/v2": {"swagger": "2.0", "info": {"title": GROUP, "version": VERSION}, "paths": {}},
    "/openapi/v3": {"paths": {}},
}
"""Discovery documents, by path."""


class StatusError(Exception):
    """A request that fails; the response is a Kubernetes Status."""

    def __init__(self, code: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True)
class MetricValue:
    """The backlog of a group as an external metric, at the time of its measurement."""

    labels: Mapping[str, str]
    value: int
    timestamp: datetime


def status(code: int, message: str) -> Json:
    """Builds the Status of a request that failed."""
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": _REASONS.get(HTTPStatus(code), ""),
        "code": code,
    }


def values(found: Iterable[MetricValue]) -> Json:
    """Builds the list of metric values, one item per group; the autoscaler adds them up."""
    return {
        "kind": "ExternalMetricValueList",
        "apiVersion": GROUP_VERSION,
        "metadata": {},
        "items": [
            {
                "metricName": METRIC,
                "metricLabels": dict(value.labels),
                "timestamp": value.timestamp.strftime("%Y-%m-%dT%H:%M:%SZ"),
                "value": quantity(value.value),
            }
            for value in found
        ],
    }


def accepts_json(accept: str) -> bool:
    """Tells whether an Accept header allows plain JSON, which variants such as `as=Table` are not."""
    ranges = [part.partition(";") for part in accept.split(",") if part.strip()]
    return not ranges or any(
        kind.strip().lower() in ("application/json", "application/*", "*/*")
        and not any(option.strip().startswith("as=") for option in options.split(";"))
        for kind, _, options in ranges
    )
