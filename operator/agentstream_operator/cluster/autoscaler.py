"""Builds and reads the HorizontalPodAutoscaler of a group in mode HPA."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from agentstream_operator.cluster.labels import consumer_metadata, deployment_name
from agentstream_operator.cluster.port import AutoscalerSeen
from agentstream_operator.resources.consumergroup import ConsumerGroup

METRIC: Final = "agentstream-backlog"
"""The external metric; its labels are `group` and `stream`, the names of the resources."""

_LONGEST_WINDOW = 3_600
"""Seconds: the maximum of the API server."""

_AT_ONCE = 1
"""Seconds in which any number of pods may be added or removed: the minimum of the API server."""

_LARGEST = 16_384
"""Bytes of JSON of an autoscaler of ours; of one that somebody else has made larger, nothing is kept."""

_RESTS = "ScalingDisabled"
_MESSAGE = 300
_SUFFIXES = ("", "k", "M", "G", "T", "P")

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class AutoscalerObject:
    """An autoscaler on the API server: its resource version, the fields that the operator owns, its state."""

    version: int
    found: Json
    seen: AutoscalerSeen


def autoscaler(group: ConsumerGroup) -> dict[str, Any]:
    """Builds the HorizontalPodAutoscaler of a group; the operator scales to and from zero."""
    scaling, name = group.spec.autoscaling, deployment_name(group.metadata.name)
    if scaling is None:
        raise ValueError(f"{group.key} has no autoscaling")
    reference = group.spec.deployment_ref
    every = {"type": "Pods", "value": scaling.max_replicas, "periodSeconds": _AT_ONCE}
    window = min(math.ceil(scaling.scale_down_after.seconds), _LONGEST_WINDOW)
    return {
        "metadata": consumer_metadata(group),
        "spec": {
            "scaleTargetRef": {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "name": name if reference is None else reference.name,
            },
            "minReplicas": max(1, scaling.min_replicas),
            "maxReplicas": scaling.max_replicas,
            "metrics": [
                {
                    "type": "External",
                    "external": {
                        "metric": {"name": METRIC, "selector": {"matchLabels": labels(group)}},
                        "target": {"type": "AverageValue", "averageValue": quantity(scaling.target_backlog)},
                    },
                }
            ],
            "behavior": {
                "scaleUp": {"stabilizationWindowSeconds": 0, "policies": [every]},
                "scaleDown": {"stabilizationWindowSeconds": window, "policies": [every]},
            },
        },
    }


def labels(group: ConsumerGroup) -> dict[str, str]:
    """Returns the labels of a group's metric."""
    return {"group": group.metadata.name, "stream": group.spec.stream_ref.name}


def quantity(number: int) -> str:
    """Formats a number as a Kubernetes quantity: 2000 is `2k`."""
    suffix = 0
    while number and number % 1000 == 0 and suffix + 1 < len(_SUFFIXES):
        number, suffix = number // 1000, suffix + 1
    return f"{number}{_SUFFIXES[suffix]}"


def read(found: Json) -> AutoscalerObject:
    """Reads an autoscaler that was listed, written or watched."""
    metadata = found["metadata"]
    ours = {
        "metadata": {key: metadata.get(key) for key in ("labels", "ownerReferences")},
        "spec": found.get("spec") or {},
    }
    if len(msgspec.json.encode(ours)) > _LARGEST:
        ours = {"metadata": {}, "spec": {}}
    return AutoscalerObject(int(metadata["resourceVersion"]), ours, _seen(found.get("status") or {}))


def is_as_made(known: AutoscalerObject, body: Json) -> bool:
    """Returns whether an autoscaler has all fields of a body; defaults of the API server do not matter."""
    metadata = {key: value for key, value in body["metadata"].items() if key in known.found["metadata"]}
    return _covers(known.found, {"metadata": metadata, "spec": body["spec"]})


def _covers(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, Mapping):
        return isinstance(found, Mapping) and all(
            key in found and _covers(found[key], value) for key, value in wanted.items()
        )
    if isinstance(wanted, list):
        return isinstance(found, list) and len(found) == len(wanted) and all(map(_covers, found, wanted))
    return bool(found == wanted)


def _seen(status: Json) -> AutoscalerSeen:
    """Reads whether an autoscaler works; at zero replicas it is disabled, which is no failure."""
    conditions = {condition["type"]: condition for condition in status.get("conditions") or ()}
    able, active = conditions.get("AbleToScale", {}), conditions.get("ScalingActive", {})
    for condition in (able, active):
        if condition.get("status") == "False" and condition.get("reason") != _RESTS:
            return AutoscalerSeen(works=False, message=str(condition.get("message", ""))[:_MESSAGE])
    return AutoscalerSeen(works=True if active else None)
