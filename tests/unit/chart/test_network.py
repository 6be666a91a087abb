"""Who may speak to whom."""

from __future__ import annotations

from support.helm import EMBEDDED, EXTERNAL, PROMETHEUS
from unit.chart.variants import EVERYTHING


def ports(rule):
    return {port["port"] for port in rule["ports"]}


def policies(helm, values, knows=()):
    return {
        policy["metadata"]["name"]: policy["spec"]
        for policy in helm.render(values, knows=knows).of("NetworkPolicy")
    }


def test_the_operator_reaches_names_the_api_server_and_its_redis(helm):
    policy = policies(helm, EMBEDDED)["agentstream"]
    names, api_server, health, redis = policy["egress"]

    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert ports(names) == {53, 5353}
    assert {port["protocol"] for port in names["ports"]} == {"UDP", "TCP"}
    assert ports(api_server) == {443, 6443, 8443, 16443}
    assert ports(health) == {8081}
    assert ports(redis) == {6379}
    (peer,) = redis["to"]
    assert peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "redis"


def test_metrics_and_health_are_all_that_it_answers(helm):
    assert [ports(rule) for rule in policies(helm, EMBEDDED)["agentstream"]["ingress"]] == [{8080}, {8081}]


def test_the_pods_that_run_once_have_the_same_policy(helm):
    rendered = helm.render(EMBEDDED)
    selector = rendered.one("NetworkPolicy", "agentstream")["spec"]["podSelector"]
    (expression,) = selector["matchExpressions"]
    (job,), (test,) = rendered.of("Job"), rendered.of("Pod")

    for labels in (job["spec"]["template"]["metadata"]["labels"], test["metadata"]["labels"]):
        assert selector["matchLabels"].items() <= labels.items()
        assert labels[expression["key"]] in expression["values"]


def test_a_server_whose_address_is_not_known_stays_within_reach(helm):
    assert policies(helm, EXTERNAL)["agentstream"]["egress"] == [{}]


def test_a_server_whose_address_is_known_is_all_that_is_within_reach(helm):
    policy = policies(helm, EVERYTHING, PROMETHEUS)["agentstream"]

    assert {
        "to": [{"ipBlock": {"cidr": "10.1.2.0/24"}}],
        "ports": [{"port": 6380, "protocol": "TCP"}],
    } in policy["egress"]
    assert {} not in policy["egress"]
    assert policy["egress"][-1] == EVERYTHING["networkPolicy"]["extraEgress"][0]
    assert policy["ingress"][0]["from"] == EVERYTHING["networkPolicy"]["metricsFrom"]


def test_an_address_without_ports_means_all_its_ports(helm):
    values = {**EXTERNAL, "networkPolicy": {"redisTo": [{"ipBlock": {"cidr": "10.1.2.3/32"}}]}}

    assert policies(helm, values)["agentstream"]["egress"][-1] == {
        "to": [{"ipBlock": {"cidr": "10.1.2.3/32"}}],
        "ports": [],
    }


def test_agents_everywhere_reach_the_embedded_server_and_it_reaches_nobody(helm):
    policy = policies(helm, EMBEDDED)["agentstream-redis"]

    assert policy["ingress"] == [
        {"ports": [{"port": 6379, "protocol": "TCP"}], "from": [{"namespaceSelector": {}}]}
    ]
    assert policy["egress"] == []
    assert policy["policyTypes"] == ["Ingress", "Egress"]


def test_only_agents_of_watched_namespaces_reach_it(helm):
    (rule,) = policies(helm, {**EMBEDDED, "watchNamespaces": ["team-a"]})["agentstream-redis"]["ingress"]
    operator, agents = rule["from"]

    (components,) = operator["podSelector"]["matchExpressions"]
    assert components["values"] == ["operator", "metrics-server"]
    assert agents["namespaceSelector"]["matchExpressions"] == [
        {"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["team-a"]}
    ]


def test_policies_can_be_left_out(helm):
    assert policies(helm, {**EMBEDDED, "networkPolicy": {"enabled": False}}) == {}
