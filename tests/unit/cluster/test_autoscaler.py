"""The HorizontalPodAutoscaler of a group, and what one that is there says."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from agentstream_operator.cluster.autoscaler import autoscaler, is_as_made, quantity, read
from agentstream_operator.cluster.port import AutoscalerSeen
from agentstream_operator.resources.consumergroup import ConsumerGroup
from support.resources import TEMPLATE, a_group

Json = dict[str, Any]
AGENT = {"template": TEMPLATE}


def a_scaled_group(**scaling: Any) -> ConsumerGroup:
    return a_group("review", agent="coder", template=TEMPLATE, autoscaling={"mode": "HPA", **scaling})


def stored(body: Json, **status: Any) -> Json:
    """An autoscaler as the API server has it, with what it adds."""
    found = copy.deepcopy(body)
    found["metadata"] |= {"resourceVersion": "7", "uid": "u", "generation": 1}
    for policy in found["spec"]["behavior"].values():
        policy["selectPolicy"] = "Max"
    return found | ({"status": status} if status else {})


def test_it_scales_the_groups_deployment_by_the_groups_backlog() -> None:
    body = autoscaler(a_scaled_group(minReplicas=2, maxReplicas=30, targetBacklog=50, scaleDownAfter="1m30s"))
    assert (body["metadata"]["name"], body["metadata"]["namespace"]) == ("review-consumer", "team")
    assert body["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "agentstream"
    (owner,) = body["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"], owner["controller"]) == ("ConsumerGroup", "review", True)
    spec = body["spec"]
    assert spec["scaleTargetRef"]["name"] == "review-consumer"
    assert (spec["minReplicas"], spec["maxReplicas"]) == (2, 30)
    (metric,) = spec["metrics"]
    assert metric["external"]["metric"]["selector"] == {"matchLabels": {"group": "review", "stream": "tasks"}}
    assert metric["external"]["target"] == {"type": "AverageValue", "averageValue": "50"}
    assert spec["behavior"]["scaleUp"]["stabilizationWindowSeconds"] == 0
    assert spec["behavior"]["scaleDown"]["stabilizationWindowSeconds"] == 90


@pytest.mark.parametrize(
    ("scaling", "path", "value"),
    [
        ({"minReplicas": 0}, "minReplicas", 1),
        ({"scaleDownAfter": "1500ms"}, "behavior.scaleDown.stabilizationWindowSeconds", 2),
        ({"scaleDownAfter": "24h"}, "behavior.scaleDown.stabilizationWindowSeconds", 3600),
        ({"maxReplicas": 9}, "behavior.scaleUp.policies.0.value", 9),
    ],
)
def test_what_kubernetes_does_not_take_is_made_to_fit(scaling: Json, path: str, value: int) -> None:
    found: Any = autoscaler(a_scaled_group(**scaling))["spec"]
    for step in path.split("."):
        found = found[int(step)] if isinstance(found, list) else found[step]
    assert found == value


def test_it_scales_a_deployment_that_is_named() -> None:
    group = a_group(deploymentRef={"name": "theirs"}, autoscaling={"mode": "HPA"})
    assert autoscaler(group)["spec"]["scaleTargetRef"]["name"] == "theirs"
    assert autoscaler(group)["metadata"]["name"] == "coder-consumer"


def test_there_is_none_without_autoscaling() -> None:
    with pytest.raises(ValueError, match="ConsumerGroup team/coder has no autoscaling"):
        autoscaler(a_group(template=TEMPLATE))


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (1, "1"), (999, "999"), (1000, "1k"), (1001, "1001"), (2_000_000, "2M"), (10**18, "1000P")],
)
def test_numbers_are_written_as_kubernetes_writes_them(number: int, text: str) -> None:
    assert quantity(number) == text


def test_what_the_api_server_adds_makes_no_difference() -> None:
    body = autoscaler(a_scaled_group())
    assert is_as_made(read(stored(body)), body)


def change(found: Json, path: str, value: Any) -> None:
    *steps, last = path.split(".")
    for step in steps:
        found = found[int(step)] if isinstance(found, list) else found[step]
    if value is None:
        del found[last]
    else:
        found[last] = value


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.maxReplicas", 99),
        ("spec.behavior.scaleUp.stabilizationWindowSeconds", None),
        ("spec.metrics", []),
        ("spec.metrics.0.external", 1),
        ("metadata.ownerReferences", None),
        ("metadata.labels", {}),
        ("spec.behavior.scaleDown.policies", 7),
    ],
)
def test_what_somebody_changed_is_noticed(path: str, value: Any) -> None:
    body = autoscaler(a_scaled_group())
    found = stored(body)
    change(found, path, value)
    assert not is_as_made(read(found), body)


def condition(kind: str, status: str, reason: str = "Some", message: str = "why") -> Json:
    return {"type": kind, "status": status, "reason": reason, "message": message}


@pytest.mark.parametrize(
    ("conditions", "seen"),
    [
        ((), AutoscalerSeen(works=None)),
        ((condition("AbleToScale", "True"),), AutoscalerSeen(works=None)),
        ((condition("AbleToScale", "False"),), AutoscalerSeen(works=False, message="why")),
        (
            (condition("AbleToScale", "True"), condition("ScalingActive", "True")),
            AutoscalerSeen(works=True),
        ),
        (
            (
                condition("AbleToScale", "True"),
                condition("ScalingActive", "False", "FailedGetExternalMetric"),
            ),
            AutoscalerSeen(works=False, message="why"),
        ),
        # at no replicas it rests
        ((condition("ScalingActive", "False", "ScalingDisabled"),), AutoscalerSeen(works=True)),
    ],
    ids=["new", "starting", "unable", "works", "no metric", "rests"],
)
def test_its_conditions_say_whether_it_works(conditions: tuple[Json, ...], seen: AutoscalerSeen) -> None:
    found = stored(autoscaler(a_scaled_group()), conditions=list(conditions))
    assert read(found).seen == seen
