"""What is said in JSON: discovery, lists of values, and why something is refused. No input or output.

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


class Refused(Exception):  # noqa: N818 - it is what is done
    """A request that gets no value, and why.

    Attributes:
        code: the HTTP status.
        message: a sentence for a person.
    """

    def __init__(self, code: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True)
class Value:
    """The backlog of a group.

    Attributes:
        labels: what the metric is labelled with.
        number: messages.
        at: when that was measured.
    """

    labels: Mapping[str, str]
    number: int
    at: datetime


def status(code: int, message: str) -> Json:
    """Why a request was refused, as the Kubernetes API says it."""
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": _REASONS.get(HTTPStatus(code), ""),
        "code": code,
    }


def groups() -> Json:
    """The one API group there is."""
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [_group()]}


def group() -> Json:
    """The API group."""
    return {"kind": "APIGroup", "apiVersion": "v1", **_group()}


def resources() -> Json:
    """What the version has: one name for all metrics, as they are not resources one by one."""
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": GROUP_VERSION,
        "resources": [
            {
                "name": "externalmetrics",
                "singularName": "",
                "namespaced": True,
                "kind": "ExternalMetricValueList",
                "verbs": ["get"],
            }
        ],
    }


def openapi_v2() -> Json:
    """An OpenAPI document of version 2 without a schema: nothing is served that anybody writes."""
    return {"swagger": "2.0", "info": {"title": GROUP, "version": VERSION}, "paths": {}}


def openapi_v3() -> Json:
    """The same of version 3: the list of its documents, of which there is none."""
    return {"paths": {}}


def values(found: Iterable[Value]) -> Json:
    """A list of backlogs, one item per group: who asks adds the items up."""
    return {
        "kind": "ExternalMetricValueList",
        "apiVersion": GROUP_VERSION,
        "metadata": {},
        "items": [
            {
                "metricName": METRIC,
                "metricLabels": dict(value.labels),
                "timestamp": value.at.strftime("%Y-%m-%dT%H:%M:%SZ"),
                "value": quantity(value.number),
            }
            for value in found
        ],
    }


def takes_json(accept: str) -> bool:
    """Whether plain JSON will do: not where only forms of it are accepted, such as `as=Table`."""
    ranges = [part.partition(";") for part in accept.split(",") if part.strip()]
    return not ranges or any(
        kind.strip().lower() in ("application/json", "application/*", "*/*")
        and not any(option.strip().startswith("as=") for option in options.split(";"))
        for kind, _, options in ranges
    )


def _group() -> Json:
    version = {"groupVersion": GROUP_VERSION, "version": VERSION}
    return {"name": GROUP, "versions": [version], "preferredVersion": version}
