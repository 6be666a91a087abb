"""A real Prometheus with the chart's rules and dashboards scrapes a real operator and a real agent."""

from __future__ import annotations

import asyncio
import json
import re
from functools import partial
from pathlib import Path

from prometheus_client import CollectorRegistry, start_http_server

from agentstream import metrics
from agentstream.agent import Agent
from agentstream.identity.settings import Settings
from agentstream.transport.endpoint import Endpoint
from cluster.conftest import Deploy
from cluster.team import Team
from support.helm import CHART
from support.prometheus import Prometheus, chart_rules
from support.servers import Server
from support.waiting import until
from unit.resources.manifests import a_group, a_stream, a_template

JOB = "agentstream-metrics"
DEAD = 'agentstream_group_settled_total{group="coder",outcome="dead"}'
DASHBOARDS = sorted((CHART / "dashboards").glob("*.json"))
VARIABLES = {"$__rate_interval": "1m", "$__range": "1m"} | dict.fromkeys(
    ("$namespace", "$stream", "$group", "$agent"), ".+"
)
"""What Grafana puts in their place."""

HEALTHY = {"What is wrong"}
"""Panels that are empty while nothing is wrong."""

ALERT = ("AgentStreamDeadLettersGrowing", "coder")


async def test_rules_are_evaluated_and_a_dead_letter_is_an_alert(
    deploy: Deploy, own_team: Team, private_server: Server, tmp_path: Path
) -> None:
    operator = deploy()
    await operator.leading()
    resources = a_stream(producers=["boss"]), a_group(template=a_template(), autoscaling={"minReplicas": 1})
    own_team.create(*resources)
    await own_team.ready(*resources)
    registry = CollectorRegistry()
    metrics.register(registry)
    exporter, thread = start_http_server(0, "127.0.0.1", registry)
    labels = {"namespace": "agentstream-system", "pod": "agentstream-0"}
    targets = {
        JOB: (operator.metrics_port, labels),
        "agents": (exporter.server_port, {"namespace": own_team.namespace, "pod": "coder-0"}),
    }
    prometheus = Prometheus(tmp_path, targets, chart_rules())
    settings = {"namespace": own_team.namespace, "source": Endpoint(private_server.url)}
    try:
        prometheus.start()
        await until(lambda: has(prometheus, f"{DEAD} == 0"), timeout=30)
        assert ALERT not in await prometheus.alerts()
        async with (
            Agent.connect(Settings(agent="boss", pod="boss-0", **settings)) as boss,
            Agent.connect(Settings(agent="coder", pod="coder-0", **settings)) as coder,
        ):
            await asyncio.gather(
                *(boss.send_message(to="coder", type="event", payload={"n": n}) for n in range(5))
            )
            consuming = asyncio.create_task(consume(coder))
            await until(lambda: has(prometheus, f"{DEAD} == 1"), timeout=30)
            await until(lambda: fires(prometheus), timeout=30)
            await evaluated(prometheus)
            await until(lambda: has(prometheus, "agentstream_client_held"), timeout=30)
            await shown(prometheus)
            consuming.cancel()
            await asyncio.gather(consuming, return_exceptions=True)
    finally:
        prometheus.stop()
        exporter.shutdown()
        exporter.server_close()
        thread.join()


async def consume(agent: Agent) -> None:
    """Handles messages until cancelled, but for one of them."""
    async for delivery in agent.stream_consume("tasks"):
        if delivery.payload["n"] == 4:
            await delivery.dead_letter("cannot be handled")
        else:
            await delivery.ack()


async def has(prometheus: Prometheus, expression: str) -> bool:
    """Whether an expression has a result at present."""
    return bool(await prometheus.query(expression))


async def fires(prometheus: Prometheus) -> bool:
    """Whether the alert about dead letters fires."""
    return ALERT in await prometheus.alerts()


async def evaluated(prometheus: Prometheus) -> None:
    """Sees that all targets are up, and that no rule has failed."""
    targets = (await prometheus.get("targets"))["activeTargets"]
    assert {target["labels"]["job"]: target["health"] for target in targets} == {JOB: "up", "agents": "up"}
    groups = (await prometheus.get("rules"))["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert {rule["health"] for rule in rules} == {"ok"}
    assert len(rules) == len(chart_rules()["groups"][0]["rules"])
    assert [rule["lastError"] for rule in rules if rule.get("lastError")] == []


async def shown(prometheus: Prometheus) -> None:
    """Sees that every query of every panel asks for metrics that there are, and gets an answer."""
    known = set(await prometheus.get("label/__name__/values"))
    for path in DASHBOARDS:
        page = json.loads(path.read_text())
        for panel in page["panels"]:
            for target in panel["targets"]:
                expression = target["expr"]
                assert set(re.findall(r"\bagentstream_\w+", expression)) <= known, expression
                for variable, value in VARIABLES.items():
                    expression = expression.replace(variable, value)
                if panel["title"] in HEALTHY:
                    found = await prometheus.query(expression)
                    assert found == [], f"{path.stem}: {expression}"
                else:
                    # a rate needs two samples, and a slow machine misses scrapes
                    found = await until(partial(prometheus.query, expression), timeout=30)
                labels = re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])
                assert all(label in one["metric"] for one in found for label in labels), expression
        for variable in page["templating"]["list"]:
            assert set(re.findall(r"agentstream_\w+", variable["query"])) <= known
