"""Monitoring: only where asked for and known, of metrics that exist, with a way out in the runbook."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from agentstream_operator.cluster.deployment import deployment
from agentstream_operator.metrics_api.main import SelfMetrics
from agentstream_operator.reconcile.engine import Outcome
from agentstream_operator.reconcile.report.metrics import OperatorHealth
from agentstream_operator.resources.status import ConditionType
from agentstream_operator.serve.metrics import Metrics, MetricsSample
from agentstream_operator.serve.resource_metrics import BUCKETS, resource_metrics
from support.figures import FIGURES, no_figures
from support.helm import CHART, EMBEDDED, PROMETHEUS, ROOT, Refused
from support.resources import TEMPLATE, a_group
from unit.chart.variants import EVERYTHING

MONITORED = {
    **EMBEDDED,
    "metrics": {"serviceMonitor": {"enabled": True}, "prometheusRule": {"enabled": True}},
}
ALERTS = {
    "AgentStreamOperatorDown",
    "AgentStreamRedisDown",
    "AgentStreamQueueStuck",
    "AgentStreamResourcesNotReady",
    "AgentStreamReconcileErrors",
    "AgentStreamMessagesLost",
    "AgentStreamIdsInTheFuture",
}
MESSAGES = {
    "AgentStreamMessagesLost",
    "AgentStreamDeadLettersGrowing",
    "AgentStreamBacklogOld",
    "AgentStreamGroupNotConsuming",
    "AgentStreamAdmissionClosed",
    "AgentStreamHistoryShortened",
    "AgentStreamAtMaxReplicas",
    "AgentStreamDeliveryObjective",
    "AgentStreamLatencyObjective",
}
"""Alerts from series of single streams and groups."""

RUNBOOK = (ROOT / "docs/operations/runbook.md").read_text()
CLI = (ROOT / "docs/cli.md").read_text()
KINDS = {"AgentStream", "ConsumerGroup"}
EXTERNAL_MONITORED = {**MONITORED, "metricsServer": {"enabled": True}}
EXTERNAL_ALERTS = {"AgentStreamMetricsServerDown", "AgentStreamExternalMetricsFailing"}


def exposed():
    """What the operator and the metrics server tell: every series, and its labels."""
    health = OperatorHealth(outage=None, complete=True, waiting=0, oldest=0.0, round_trips=0)
    sample = MetricsSample(
        leads=True,
        health=health,
        requests={("get", "secrets", 200): 1},
        events={"secrets": 1},
        missed=0,
    )
    metrics = Metrics(lambda: sample, no_figures)
    metrics.reconciled("AgentStream", Outcome.SUCCESS, 0.1)
    counting = SimpleNamespace(groups=range(1), reviews={"allowed": 1}, requests={}, round_trips=0)
    self_metrics = SelfMetrics(counting, counting, counting, counting)
    self_metrics.count_response(200)
    return {
        sample.name: set(sample.labels)
        for told in (metrics.reply()[2], self_metrics.reply()[2], resource_metrics(FIGURES, each=True))
        for family in text_string_to_metric_families(told.decode())
        for sample in family.samples
    }


def rules(helm, values=EXTERNAL_MONITORED):
    (rule,) = helm.render(values, knows=PROMETHEUS).of("PrometheusRule")
    (group,) = rule["spec"]["groups"]
    return group["rules"]


def alerts(helm, values=EXTERNAL_MONITORED):
    """The rules by name; of two burn rates the last."""
    return {alert["alert"]: alert for alert in rules(helm, values)}


def kinds(rendered):
    return {d["kind"] for d in rendered if d["apiVersion"].startswith("monitoring.coreos.com/")}


def test_by_default_there_is_only_the_service(helm):
    rendered = helm.render(EMBEDDED, knows=PROMETHEUS)

    assert kinds(rendered) == set()
    service = rendered.one("Service", "agentstream-metrics")["spec"]
    assert {port["name"]: port["port"] for port in service["ports"]} == {"metrics": 8080, "health": 8081}


def test_a_cluster_that_knows_the_kinds_gets_them(helm):
    assert kinds(helm.render(MONITORED, knows=PROMETHEUS)) == {"ServiceMonitor", "PrometheusRule"}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("serviceMonitor", "ServiceMonitor"),
        ("podMonitor", "PodMonitor"),
        ("prometheusRule", "PrometheusRule"),
    ],
)
def test_a_cluster_that_does_not_is_told_what_to_do(helm, name, kind):
    values = {**EMBEDDED, "metrics": {name: {"enabled": True}}}

    with pytest.raises(Refused) as refused:
        helm.render(values)

    message = f"metrics.{name}.enabled=true, but this cluster has no CRD {kind} (monitoring.coreos.com/v1)"
    assert message in str(refused.value)
    assert "metrics.renderMode" in str(refused.value)


@pytest.mark.parametrize(
    ("mode", "rendered"), [("skipIfMissing", set()), ("alwaysRender", {"ServiceMonitor", "PrometheusRule"})]
)
def test_or_is_not_asked(helm, mode, rendered):
    values = {**MONITORED, "metrics": {**MONITORED["metrics"], "renderMode": mode}}

    assert kinds(helm.render(values)) == rendered


def test_the_monitor_finds_the_service(helm):
    rendered = helm.render(EVERYTHING, knows=PROMETHEUS)
    (monitor,) = rendered.of("ServiceMonitor")
    service = rendered.one("Service", "agentstream-metrics")
    (endpoint,) = monitor["spec"]["endpoints"]

    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert monitor["spec"]["namespaceSelector"] == {"matchNames": [service["metadata"]["namespace"]]}
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
    assert endpoint["path"] == "/metrics"
    # else Prometheus calls the namespace of a group's series exported_namespace
    assert endpoint["honorLabels"] is True
    assert endpoint["relabelings"] == EVERYTHING["metrics"]["serviceMonitor"]["relabelings"]
    assert endpoint["metricRelabelings"] == EVERYTHING["metrics"]["serviceMonitor"]["metricRelabelings"]
    assert monitor["metadata"]["labels"]["release"] == "prometheus"


def test_the_metrics_server_has_a_monitor_of_its_own_which_is_let_through(helm):
    rendered = helm.render({**EVERYTHING, **EXTERNAL_MONITORED}, knows=PROMETHEUS)
    monitor = rendered.one("ServiceMonitor", "agentstream-metrics-server", "agentstream-system")["spec"]
    wanted, (endpoint,) = monitor["selector"]["matchLabels"], monitor["endpoints"]
    (service,) = (s for s in rendered.of("Service") if wanted.items() <= s["metadata"]["labels"].items())
    (port,) = (p["targetPort"] for p in service["spec"]["ports"] if p["name"] == endpoint["port"])
    (container,) = rendered.one("Deployment", service["metadata"]["name"])["spec"]["template"]["spec"][
        "containers"
    ]
    number = next(p["containerPort"] for p in container["ports"] if p["name"] == port)
    policy = rendered.one("NetworkPolicy", service["metadata"]["name"])["spec"]

    assert endpoint["path"] == "/metrics"
    assert {"name": "AGENTSTREAM_HEALTH_PORT", "value": str(number)} in container["env"]
    assert any(
        number in {p["port"] for p in rule["ports"]} and "from" not in rule for rule in policy["ingress"]
    )


@pytest.mark.parametrize("namespaces", [(), ("team-a", "team-b")])
def test_the_monitor_of_agents_finds_the_pods_that_the_operator_makes(helm, namespaces):
    values = {**EMBEDDED, "watchNamespaces": list(namespaces), "metrics": {"podMonitor": {"enabled": True}}}
    monitor = helm.render(values, knows=PROMETHEUS).one("PodMonitor", "agentstream-agents")["spec"]
    pod = deployment(a_group(template=TEMPLATE), 1)["spec"]["template"]
    labels, (container,) = pod["metadata"]["labels"], pod["spec"]["containers"]
    (endpoint,) = monitor["podMetricsEndpoints"]

    assert monitor["selector"]["matchLabels"].items() <= labels.items()
    assert {one["key"] for one in monitor["selector"]["matchExpressions"]} <= labels.keys()
    assert endpoint["port"] in {port["name"] for port in container["ports"]}
    assert (endpoint["path"], endpoint["honorLabels"]) == ("/metrics", True)
    chosen = {"matchNames": list(namespaces)} if namespaces else {"any": True}
    assert monitor["namespaceSelector"] == chosen


def test_without_a_metrics_server_nothing_of_it_is_watched(helm):
    rendered = helm.render(MONITORED, knows=PROMETHEUS)

    assert rendered.names("ServiceMonitor") == {"agentstream"}
    assert alerts(helm, MONITORED).keys() == ALERTS | MESSAGES


def test_the_alerts_are_these(helm):
    assert alerts(helm).keys() == ALERTS | MESSAGES | EXTERNAL_ALERTS


def test_alerts_ask_for_metrics_and_labels_that_exist(helm):
    known = exposed()
    for alert in rules(helm):
        name = alert["alert"]
        series = re.findall(r"(agentstream_\w+)\{([^}]*)\}", alert["expr"])
        assert series, name
        assert len(series) == alert["expr"].count("agentstream_"), name
        for metric, matchers in series:
            labels = set(re.findall(r"(\w+)!?=", matchers))
            assert labels >= ({"job"} if name in MESSAGES else {"namespace", "job"}), name
            assert labels <= {"namespace", "job", *known[metric]}, name


def test_alerts_ask_for_conditions_and_kinds_that_exist(helm):
    asked = set()
    for name, alert in alerts(helm).items():
        for kind, condition in re.findall(r'(?:kind="(\w+)",)?(?:condition|type)="(\w+)"', alert["expr"]):
            assert not kind or kind in KINDS, name
            asked.add(ConditionType(condition))
    assert asked == {
        ConditionType.READY,
        ConditionType.MESSAGES_LOST,
        ConditionType.IDS_IN_THE_FUTURE,
        ConditionType.CONSUMING,
    }


def test_alerts_are_about_this_release_alone(helm):
    for alert in rules(helm):
        name = alert["alert"]
        job = "agentstream-metrics-server" if name in EXTERNAL_ALERTS else "agentstream-metrics"
        # the namespace of a group's series is the group's
        release = f'job="{job}"' if name in MESSAGES else f'namespace="agentstream-system",job="{job}"'
        assert alert["expr"].count(release) == alert["expr"].count("agentstream_")


def test_series_may_be_named_otherwise(helm):
    rule = {"enabled": True, "selector": 'app="agentstream"'}
    values = {**EXTERNAL_MONITORED, "metrics": {"prometheusRule": rule}}

    for alert in alerts(helm, values).values():
        assert 'app="agentstream"' in alert["expr"]
        assert "job=" not in alert["expr"]


def section(alert):
    """The section of the runbook about an alert."""
    return RUNBOOK.partition(f"\n## {alert}\n")[2].partition("\n## ")[0]


def test_every_alert_says_what_it_means_and_where_the_remedy_is(helm):
    for alert in rules(helm):
        name = alert["alert"]
        assert alert["labels"]["severity"] in {"critical", "warning"}
        # without a place on the web, no link that leads nowhere
        assert alert["annotations"].keys() == {"summary", "description", "runbook"}
        assert alert["annotations"]["runbook"] == f"docs/operations/runbook.md#{name.lower()}"
        assert section(name), name


def test_the_runbook_has_a_command_for_every_alert_about_messages():
    commands = {name.split("-")[0] for name in re.findall(r"^## (.+)$", CLI, re.MULTILINE)}
    known = {command for heading in commands for command in heading.split(", ")}
    for name in MESSAGES:
        named = set(re.findall(r"\bagentstream ([a-z]+)\b", section(name)))
        assert named, name
        assert named <= known, name


@pytest.mark.parametrize("url", ["docs/runbook.md", "ftp://a/b", "https://a/b#c"])
def test_a_link_is_absolute(helm, url):
    with pytest.raises(Refused, match="runbookUrl"):
        alerts(helm, {**EMBEDDED, "metrics": {"prometheusRule": {"enabled": True, "runbookUrl": url}}})


def test_without_metrics_of_single_resources_there_are_no_alerts_from_them(helm):
    values = {**EMBEDDED, "metrics": {**MONITORED["metrics"], "perResource": False}}
    found = alerts(helm, values)
    assert found.keys() == ALERTS
    assert found["AgentStreamMessagesLost"]["labels"]["severity"] == "critical"
    env = {
        e["name"]: e.get("value")
        for e in helm.render(values, knows=PROMETHEUS).operator["containers"][0]["env"]
    }
    assert env["AGENTSTREAM_METRICS_OF_EACH"] == "false"


def test_alerts_can_be_tuned(helm):
    settings = {
        "enabled": True,
        "disabled": ["AgentStreamReconcileErrors"],
        "queueOldestSeconds": 5,
        "alertLabels": {"team": "platform", "severity": "page"},
        "runbookUrl": "https://wiki.example/agentstream",
        "deadLetters": 3,
        "delivery": {"objective": 0.99},
        "latency": {"seconds": 30, "groups": "fast-.*"},
    }
    tuned = alerts(helm, {**EMBEDDED, "metrics": {"prometheusRule": settings}})

    assert tuned.keys() == (ALERTS | MESSAGES) - {"AgentStreamReconcileErrors"}
    assert tuned["AgentStreamQueueStuck"]["expr"].endswith("> 5")
    assert tuned["AgentStreamDeadLettersGrowing"]["expr"].endswith("> 3")
    assert "> 6 * (1 - 0.99)" in tuned["AgentStreamDeliveryObjective"]["expr"]
    assert 'group=~"fast-.*",le="30"' in tuned["AgentStreamLatencyObjective"]["expr"]
    assert all(alert["labels"]["team"] == "platform" for alert in tuned.values())
    # how urgent an alert is, is its own
    assert tuned["AgentStreamOperatorDown"]["labels"]["severity"] == "critical"
    assert tuned["AgentStreamRedisDown"]["annotations"]["runbook_url"] == (
        "https://wiki.example/agentstream#agentstreamredisdown"
    )


def test_every_alert_can_be_left_out():
    schema = json.loads((CHART / "values.schema.json").read_text())
    rule = schema["properties"]["metrics"]["properties"]["prometheusRule"]["properties"]

    assert set(rule["disabled"]["items"]["enum"]) == ALERTS | MESSAGES | EXTERNAL_ALERTS


def test_latencies_are_judged_by_a_bucket_that_there_is():
    schema = json.loads((CHART / "values.schema.json").read_text())
    rule = schema["properties"]["metrics"]["properties"]["prometheusRule"]["properties"]

    assert rule["latency"]["properties"]["seconds"]["enum"] == [bucket / 1000 for bucket in BUCKETS]


def test_values_of_alerts_reach_prometheus_as_they_are(helm):
    described = yaml.safe_dump([alert["annotations"]["description"] for alert in alerts(helm).values()])

    assert "{{ $value | humanizeDuration }}" in described
    assert "{{ $labels.kind }}" in " ".join(described.split())
