"""What runs: restricted, probed, stopped in order, where the values say, and who may speak to whom."""

from __future__ import annotations

import pytest

from support.helm import EMBEDDED, EXTERNAL, NAMESPACE, PROMETHEUS, Refused
from unit.chart.variants import EMBEDDED_EVERYTHING, EVERYTHING, VARIANTS


def environment(container):
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container["env"]}


def test_every_pod_meets_the_restricted_standard(variant):
    # https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted
    for name, spec in variant.pods():
        pod = spec["securityContext"]
        assert pod["runAsNonRoot"] is True, name
        assert pod["runAsUser"] > 0, name
        assert pod["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec), name
        for container in [*spec["containers"], *spec.get("initContainers", [])]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False, name
            assert context["capabilities"] == {"drop": ["ALL"]}, name
            assert context["readOnlyRootFilesystem"] is True, name
        for volume in spec["volumes"]:
            assert set(volume) - {"name"} <= {"emptyDir", "secret", "configMap", "projected"}, name


def test_only_who_speaks_to_the_api_server_has_a_token(variant):
    wanted = {
        "Deployment agentstream",
        "Deployment agentstream-metrics-server",
        "Deployment agentstream-queue-server",
        "Job agentstream-pre-delete",
        "Pod agentstream-test",
    }

    having = {name for name, spec in variant.pods() if spec["automountServiceAccountToken"]}

    assert having <= wanted
    assert all(a["automountServiceAccountToken"] is False for a in variant.of("ServiceAccount"))


def test_no_pod_sees_the_addresses_of_services_in_its_environment(variant):
    for name, spec in variant.pods():
        assert spec["enableServiceLinks"] is False, name


def test_every_container_says_what_it_needs(helm):
    for values in (EMBEDDED, EXTERNAL):
        for name, spec in helm.render(values).pods():
            for container in spec["containers"]:
                assert container["resources"]["requests"].keys() == {"cpu", "memory"}, name
                assert container["resources"]["limits"].keys() == {"memory"}, name


def test_what_the_operator_is_told(helm):
    (container,) = helm.render(EMBEDDED).operator["containers"]

    assert container["args"] == ["operator"]
    assert environment(container) == {
        "AGENTSTREAM_REDIS_URL_FILE": "/etc/agentstream/redis/url",
        "AGENTSTREAM_INSTALLATION": "agentstream",
        "AGENTSTREAM_LOG_FORMAT": "text",
        "AGENTSTREAM_METRICS_PORT": "8080",
        "AGENTSTREAM_HEALTH_PORT": "8081",
        "POD_NAME": {"fieldRef": {"fieldPath": "metadata.name"}},
        "POD_NAMESPACE": {"fieldRef": {"fieldPath": "metadata.namespace"}},
    }


def test_everything_that_can_be_told_to_it(helm):
    rendered = helm.render(EVERYTHING, knows=PROMETHEUS)
    (container,) = rendered.operator["containers"]
    told = environment(container)

    assert told["AGENTSTREAM_REDIS_URL_FILE"] == "/etc/agentstream/redis/url"
    assert told["AGENTSTREAM_NAMESPACES"] == "team-a team-b"
    assert told["AGENTSTREAM_ALLOW_KEYS"] == "legacy:* {old}.tasks"
    assert told["AGENTSTREAM_INSTALLATION"] == "blue"
    assert told["AGENTSTREAM_LOG_FORMAT"] == "json"
    assert told["HTTPS_PROXY"] == "http://proxy:3128"
    assert container["args"] == ["operator", "--log-format", "json"]
    assert container["image"] == f"registry.example:5000/tools/agentstream@sha256:{'0' * 64}"
    assert container["imagePullPolicy"] == "Always"
    assert {"name": "more", "mountPath": "/more"} in container["volumeMounts"]


def test_the_authority_of_the_server_is_mounted(helm):
    spec = helm.render(EVERYTHING, knows=PROMETHEUS).operator
    (container,) = spec["containers"]

    assert environment(container)["AGENTSTREAM_REDIS_CA_FILE"] == "/etc/agentstream/redis/ca.crt"
    assert {"name": "redis", "mountPath": "/etc/agentstream/redis", "readOnly": True} in container[
        "volumeMounts"
    ]
    (volume,) = (v for v in spec["volumes"] if v["name"] == "redis")
    assert [source["secret"] for source in volume["projected"]["sources"]] == [
        {"name": "my-redis", "items": [{"key": "url", "path": "url"}]},
        {"name": "my-redis", "items": [{"key": "ca.crt", "path": "ca.crt"}]},
    ]


@pytest.mark.parametrize("name", VARIANTS)
def test_no_password_is_in_an_environment(helm, name):
    for document in helm.render(VARIANTS[name], knows=PROMETHEUS):
        assert "secretKeyRef" not in str(document), document["kind"]


def test_the_operator_is_probed_and_has_time_to_end(helm):
    spec = helm.render(EMBEDDED).operator
    (container,) = spec["containers"]

    assert {port["name"]: port["containerPort"] for port in container["ports"]} == {
        "metrics": 8080,
        "health": 8081,
    }
    for probe, path in (
        ("startupProbe", "/livez"),
        ("livenessProbe", "/livez"),
        ("readinessProbe", "/readyz"),
    ):
        assert container[probe]["httpGet"] == {"path": path, "port": "health"}
    assert spec["terminationGracePeriodSeconds"] == 30
    assert {"name": "tmp", "emptyDir": {}} in spec["volumes"]
    assert {"name": "tmp", "mountPath": "/tmp"} in container["volumeMounts"]


def test_one_replica_ends_before_its_successor_starts(helm):
    rendered = helm.render(EMBEDDED)

    assert rendered.one("Deployment", "agentstream")["spec"]["strategy"] == {"type": "Recreate"}
    assert rendered.of("PodDisruptionBudget") == []
    assert "topologySpreadConstraints" not in rendered.operator


def test_several_replicas_are_spread_and_replaced_one_by_one(helm):
    rendered = helm.render({**EMBEDDED, "replicas": 2})
    deployment = rendered.one("Deployment", "agentstream")["spec"]
    budget = rendered.one("PodDisruptionBudget", "agentstream", NAMESPACE)["spec"]
    (spread,) = rendered.operator["topologySpreadConstraints"]

    assert deployment["replicas"] == 2
    assert deployment["strategy"] == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0},
    }
    assert budget["maxUnavailable"] == 1
    assert budget["selector"] == deployment["selector"]
    assert spread["topologyKey"] == "kubernetes.io/hostname"
    assert spread["whenUnsatisfiable"] == "ScheduleAnyway"
    assert spread["labelSelector"] == deployment["selector"]


def test_a_budget_can_be_left_out(helm):
    values = {**EMBEDDED, "replicas": 2, "podDisruptionBudget": {"enabled": False}}

    assert helm.render(values).of("PodDisruptionBudget") == []


@pytest.mark.parametrize(
    "field", ["tolerations", "affinity", "topologySpreadConstraints", "priorityClassName", "imagePullSecrets"]
)
def test_the_operator_runs_where_the_values_say(helm, field):
    assert helm.render(EVERYTHING, knows=PROMETHEUS).operator[field] == EVERYTHING[field]


def test_pods_that_run_once_run_where_the_operator_may(helm):
    rendered = helm.render(EVERYTHING, knows=PROMETHEUS)
    (job,), (test,) = rendered.of("Job"), rendered.of("Pod")

    for spec in (job["spec"]["template"]["spec"], test["spec"]):
        assert spec["tolerations"] == EVERYTHING["tolerations"]
        assert spec["nodeSelector"] == {"kubernetes.io/os": "linux"}
        assert spec["imagePullSecrets"] == [{"name": "pull"}]
        assert spec["containers"][0]["image"] == rendered.operator["containers"][0]["image"]


@pytest.mark.parametrize("field", ["nodeSelector", "tolerations", "affinity", "priorityClassName"])
def test_the_embedded_server_runs_where_the_values_say(helm, field):
    stateful = helm.render(EMBEDDED_EVERYTHING).one("StatefulSet", "agentstream-redis")

    assert stateful["spec"]["template"]["spec"][field] == EMBEDDED_EVERYTHING["redis"][field]


def test_labels_and_annotations_reach_their_objects(helm):
    rendered = helm.render(EVERYTHING, knows=PROMETHEUS)
    deployment = rendered.one("Deployment", "agentstream")
    pod = deployment["spec"]["template"]["metadata"]
    service = rendered.one("Service", "agentstream-metrics")["metadata"]

    assert deployment["metadata"]["annotations"] == {"example.com/owner": "platform"}
    assert pod["annotations"]["example.com/note"] == "yes"
    assert pod["labels"]["team"] == "platform"
    assert pod["labels"]["cost-centre"] == "7"
    assert service["annotations"] == {"example.com/scrape": "yes"}
    assert service["labels"]["scrape"] == "yes"
    assert rendered.one("ServiceAccount", "streams")["metadata"]["annotations"] == {
        "example.com/role": "reader"
    }


def test_a_user_of_the_platforms_own_may_run_the_pods(helm):
    # OpenShift chooses the user itself
    values = {**EXTERNAL, "podSecurityContext": {"runAsUser": None, "runAsGroup": None}}

    assert helm.render(values).operator["securityContext"] == {
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "no Redis configured: set redis.embedded=true"),
        (
            {"redis": {"embedded": True, "existingSecret": "mine"}},
            "redis.embedded and redis.existingSecret exclude each other: unset redis.existingSecret",
        ),
        ({"redis": {"embedded": True, "caKey": "ca.crt"}}, "the embedded Redis has no TLS"),
    ],
)
def test_exactly_one_server_must_be_named(helm, values, message):
    with pytest.raises(Refused) as refused:
        helm.render(values)

    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"allNamespaces": False},
            "no namespaces to watch: set allNamespaces=true, or watchNamespaces={team-a,team-b}.",
        ),
        (
            {"allNamespaces": True, "watchNamespaces": ["team-a", "team-b"]},
            "allNamespaces and watchNamespaces exclude each other: unset watchNamespaces (team-a, team-b)",
        ),
    ],
)
def test_it_has_to_be_said_which_namespaces_are_watched(helm, values, message):
    with pytest.raises(Refused) as refused:
        helm.render({**EMBEDDED, **values})

    assert message in str(refused.value)


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


def test_metrics_are_for_those_who_are_named_or_else_for_the_namespace_of_the_release(helm):
    (scrapes, probes) = policies(helm, EXTERNAL)["agentstream"]["ingress"]

    assert scrapes == {"ports": [{"port": 8080, "protocol": "TCP"}], "from": [{"podSelector": {}}]}
    # from the nodes, which no selector matches
    assert probes == {"ports": [{"port": 8081, "protocol": "TCP"}]}


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
    assert components["values"] == ["operator", "metrics-server", "queue-server"]
    assert agents["namespaceSelector"]["matchExpressions"] == [
        {"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["team-a"]}
    ]


def test_only_pods_that_are_named_reach_it(helm):
    agents = {"namespaceSelector": {}, "podSelector": {"matchLabels": {"agents": "yes"}}}
    for values in (EMBEDDED, {**EMBEDDED, "watchNamespaces": ["team-a"]}):
        (rule,) = policies(helm, {**values, "networkPolicy": {"redisFrom": [agents]}})["agentstream-redis"][
            "ingress"
        ]
        operator, *others = rule["from"]
        assert operator["podSelector"]["matchExpressions"][0]["values"] == [
            "operator",
            "metrics-server",
            "queue-server",
        ]
        assert others == [agents]


def test_policies_can_be_left_out(helm):
    assert policies(helm, {**EMBEDDED, "networkPolicy": {"enabled": False}}) == {}
