"""Mode HPA with the cluster's own autoscaler: operator, metrics server, kube-controller-manager."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.team import Team, said
from support.apiserver import ROOT, ApiServer, NoProgramsError
from support.controllers import controllers
from support.deployed import Deployed, grant
from support.metrics_server import MetricsServer
from support.servers import Server
from support.waiting import until
from unit.resources.manifests import a_group, a_stream, a_template

TEAM = "team"
NAME, HPA = "coder-consumer", "HorizontalPodAutoscaler"


@pytest.fixture
def team(own_api_server: ApiServer) -> Team:
    for name in (TEAM, "metrics"):
        own_api_server.create_namespace(name)
    return Team(own_api_server, TEAM)


@pytest.fixture
def operator(team: Team, private_server: Server, tmp_path: Path) -> Iterator[Deployed]:
    found = Deployed(
        team.server, grant(team.server, TEAM, (TEAM,)), private_server.url, tmp_path, namespaces=(TEAM,)
    )
    found.start()
    yield found
    assert found.complaints() == []
    found.kill()


@pytest.fixture
def metrics(team: Team, private_server: Server, tmp_path: Path) -> Iterator[MetricsServer]:
    found = MetricsServer(team.server, "metrics", private_server.url, tmp_path)
    found.install()
    found.start()
    yield found
    found.kill()


@pytest.fixture
def autoscaler(team: Team, tmp_path: Path) -> Iterator[Path]:
    try:
        with controllers(team.server, tmp_path) as log:
            yield log
    except NoProgramsError as missing:
        pytest.skip(str(missing))


async def scaled(team: Team, number: int) -> None:
    await team.until(
        "Deployment",
        NAME,
        lambda found: found is not None and found["spec"]["replicas"] == number,
        timeout=60,
    )


async def test_a_group_follows_its_backlog_by_the_clusters_autoscaler(
    team: Team, operator: Deployed, metrics: MetricsServer, autoscaler: Path, private_server: Server
) -> None:
    await operator.leading()
    await metrics.ready()
    scaling = {"mode": "HPA", "targetBacklog": 10, "maxReplicas": 5, "scaleDownAfter": "1s"}
    team.create(a_stream(), a_group(template=a_template(), autoscaling=scaling))
    await team.ready(a_group())
    key = f"{{{TEAM}.tasks}}"
    with private_server.admin() as client:
        # from none: the operator, since an autoscaler does nothing then
        await scaled(team, 0)
        client.xadd(key, {"m": "{}"})
        await scaled(team, 1)
        await team.says("ConsumerGroup", "coder", "True", "Autoscaled", "ScalingActive", timeout=60)
        # up, and to the limit: the autoscaler
        for _ in range(29):
            client.xadd(key, {"m": "{}"})
        await scaled(team, 3)
        for _ in range(100):
            client.xadd(key, {"m": "{}"})
        await scaled(team, 5)
        shown = team.kubectl("describe", "hpa", NAME)
        assert '"agentstream-backlog" (target average value)' in shown
        assert "ValidMetricFound" in shown

        # nothing is known while the server is away, and nothing changes
        await until(lambda: status(team, "ScalingActive") == "True")
        private_server.kill()
        await until(lambda: status(team, "ScalingActive") == "False", timeout=30)
        message = await team.says("ConsumerGroup", "coder", "False", "BackendUnavailable", "BackendReachable")
        assert message
        assert team.get("Deployment", NAME)["spec"]["replicas"] == 5
        private_server.start()

    with private_server.admin() as client:
        await until(lambda: status(team, "ScalingActive") == "True", timeout=30)
        # down to what is left, by the autoscaler; to none, by the operator
        (_, entries), *_ = client.xreadgroup("coder", "c", {key: ">"})
        assert len(entries) == 130
        client.xack(key, "coder", *(entry for entry, _ in entries[:-1]))
        await scaled(team, 1)
        client.xack(key, "coder", entries[-1][0])
        await scaled(team, 0)
        assert said(team.get("ConsumerGroup", "coder"), "ScalingActive")[0] == "True"
        # and the mode may change
        team.change("ConsumerGroup", "coder", {"spec": {"autoscaling": {"mode": "Direct"}}})
        await team.gone(HPA, NAME)
        client.xadd(key, {"m": "{}"})
        await scaled(team, 1)


async def test_the_autoscaler_ends_the_pods_that_hold_the_least(
    team: Team, operator: Deployed, metrics: MetricsServer, autoscaler: Path, private_server: Server
) -> None:
    await operator.leading()
    await metrics.ready()
    scaling = {"mode": "HPA", "targetBacklog": 10, "maxReplicas": 5, "scaleDownAfter": "12s"}
    team.create(a_stream(), a_group(template=a_template(), autoscaling=scaling))
    await team.ready(a_group())
    key = f"{{{TEAM}.tasks}}"
    with private_server.admin() as client:
        for _ in range(40):
            client.xadd(key, {"m": "{}"})
        await scaled(team, 4)
        await until(lambda: len(pods(team)) == 4, timeout=30)
        names = sorted(pods(team))
        held = {
            pod: [e for e, _ in client.xreadgroup("coder", f"{pod}.a", {key: ">"}, count=10)[0][1]]
            for pod in names
        }
        # the first two go on, the last one is done, and the third has a little left
        left = dict(zip(names, (10, 9, 1, 0), strict=True))
        client.xack(key, "coder", *(entry for pod in names for entry in held[pod][left[pod] :]))
        await scaled(team, 2)
        await until(lambda: pods(team) == set(names[:2]), timeout=30)


def pods(team: Team) -> set[str]:
    """The pods that are to stay."""
    return {pod["metadata"]["name"] for pod in team.list("Pod") if "deletionTimestamp" not in pod["metadata"]}


async def test_an_autoscaler_of_ones_own_scales_the_group(
    team: Team, operator: Deployed, metrics: MetricsServer, autoscaler: Path, private_server: Server
) -> None:
    await operator.leading()
    await metrics.ready()
    team.kubectl("apply", "-f", str(ROOT / "examples" / "scaling" / "hpa.yaml"))
    await team.ready(a_group())
    await scaled(team, 1)
    with private_server.admin() as client:
        for _ in range(30):
            client.xadd(f"{{{TEAM}.tasks}}", {"m": "{}"})
    await scaled(team, 3)
    assert team.get("ConsumerGroup", "coder")["spec"]["replicas"] == 3
    assert team.get(HPA, NAME) is None


def status(team: Team, condition: str) -> str:
    """A condition of the autoscaler."""
    found = team.get(HPA, NAME) or {}
    conditions = found.get("status", {}).get("conditions") or ()
    return next((c["status"] for c in conditions if c["type"] == condition), "")
