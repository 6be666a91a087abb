"""KEDA's way to scale a ConsumerGroup: it asks for the operator's metrics, and updates its /scale.

KEDA itself is not run. What it would find is: what it scales, and the one series that its query asks for.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from cluster.conftest import Deploy
from cluster.team import Json, Team
from support.apiserver import ROOT
from support.deployed import Deployed
from support.servers import Server
from support.waiting import until

EXAMPLE = ROOT / "examples" / "scaling" / "keda.yaml"
DEPLOYMENT = "coder-consumer"


@pytest.fixture
def manifests(own_team: Team) -> dict[str, Json]:
    """The example's, by kind, for the namespace of the test."""
    text = EXAMPLE.read_text()
    assert text.count("team-a") == 1
    return {found["kind"]: found for found in yaml.safe_load_all(text.replace("team-a", own_team.namespace))}


def scale_path(team: Team, scaled_object: Json) -> str:
    """Where KEDA finds what a ScaledObject scales."""
    target = scaled_object["spec"]["scaleTargetRef"]
    resource = f"{target['kind'].lower()}s"
    return f"/apis/{target['apiVersion']}/namespaces/{team.namespace}/{resource}/{target['name']}/scale"


async def update(team: Team, path: str, replicas: int) -> None:
    """Scales as KEDA and the HorizontalPodAutoscaler that it makes do: reads, and writes back."""

    def updated() -> bool:
        scale = team.server.expect("GET", path)
        scale["spec"]["replicas"] = replicas
        status, found = team.server.call("PUT", path, scale)
        assert status == 409 or found["spec"].get("replicas", 0) == replicas, found
        # where somebody else wrote in between, they try again
        return status == 200

    await until(updated)


async def answers(operator: Deployed, query: str) -> list[float]:
    """The values of the series that a query asks for, of those that the operator tells."""
    asked = re.fullmatch(r"max\((\w+)\{(.+)\}\)", query)
    assert asked is not None, query
    wanted = set(asked[2].split(","))
    return [
        value
        for series, value in (await operator.metrics()).items()
        if series.startswith(f"{asked[1]}{{") and wanted <= set(series[len(asked[1]) + 1 : -1].split(","))
    ]


async def test_a_group_is_scaled_as_keda_does_it(
    own_team: Team, deploy: Deploy, manifests: dict[str, Json]
) -> None:
    operator = deploy()
    await operator.leading()
    own_team.create(manifests["AgentStream"], manifests["ConsumerGroup"])
    await own_team.ready(manifests["AgentStream"], manifests["ConsumerGroup"])
    path = scale_path(own_team, manifests["ScaledObject"])
    for replicas in (1, 3, 0, 1):
        await update(own_team, path, replicas)
        await own_team.until(
            "Deployment",
            DEPLOYMENT,
            lambda found, wanted=replicas: found is not None and found["spec"]["replicas"] == wanted,
        )
    # an HPA asks for the pods' selector
    await until(lambda: "selector" in own_team.server.expect("GET", path)["status"])
    selector = own_team.server.expect("GET", path)["status"]["selector"]
    deployment = own_team.get("Deployment", DEPLOYMENT)
    assert deployment is not None
    key, _, value = selector.partition("=")
    assert deployment["spec"]["template"]["metadata"]["labels"][key] == value


async def test_its_query_asks_for_one_series_and_for_none_while_nothing_is_known(
    own_team: Team, deploy: Deploy, manifests: dict[str, Json], private_server: Server
) -> None:
    operator = deploy()
    await operator.leading()
    trigger = only(manifests["ScaledObject"]["spec"]["triggers"])
    query = trigger["metadata"]["query"]
    own_team.create(manifests["AgentStream"], manifests["ConsumerGroup"])
    await own_team.ready(manifests["AgentStream"], manifests["ConsumerGroup"])

    async def is_answered(*values: float) -> bool:
        return await answers(operator, query) == [*values]

    with private_server.admin() as client:
        await until(lambda: is_answered(0.0))
        for _ in range(3):
            client.xadd(f"{{{own_team.namespace}.tasks}}", {"m": "{}"})
        await until(lambda: is_answered(3.0))
        # what runs counts as well: KEDA takes no pod away that is the last one at work
        client.xreadgroup("coder", "pod.1", {f"{{{own_team.namespace}.tasks}}": ">"}, count=3)
        await until(lambda: is_answered(3.0))
    private_server.kill()
    await until(is_answered, timeout=30)
    assert trigger["metadata"]["ignoreNullValues"] == "false"


def only(found: list[Any]) -> Any:
    """The one element of a list."""
    (element,) = found
    return element
