"""The queue server: the HTTP API, with its own certificate, account and rights."""

from __future__ import annotations

import ssl
from base64 import b64decode

import pytest

from support.helm import EMBEDDED, NAMESPACE, PROMETHEUS, Refused
from unit.chart.test_metrics_server import shake_hands
from unit.chart.test_pods import environment, policies, ports
from unit.chart.test_rbac import rules
from unit.chart.variants import VARIANTS

VALUES = VARIANTS["queue"]
NAME = "agentstream-queue-server"
SECRET = "agentstream-queue-tls"
NUMBERS = {("agentstream.dev", "consumergroups/lag", ""): {"get"}}


@pytest.fixture
def rendered(helm):
    return helm.render(VALUES)


@pytest.fixture
def everything(helm):
    return helm.render(VARIANTS["queue-everything"], knows=PROMETHEUS)


def test_there_is_none_unless_it_is_asked_for(helm):
    rendered = helm.render(EMBEDDED)
    assert not any(
        d["metadata"]["labels"].get("app.kubernetes.io/component") == "queue-server" for d in rendered
    )


def test_its_service_leads_to_it(rendered):
    service = rendered.one("Service", NAME, NAMESPACE)
    pod = rendered.one("Deployment", NAME)["spec"]["template"]
    # the command line finds it by these
    assert service["metadata"]["labels"]["app.kubernetes.io/part-of"] == "agentstream"
    assert service["metadata"]["labels"]["app.kubernetes.io/component"] == "queue-server"
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    named = {port["name"]: port["containerPort"] for port in pod["spec"]["containers"][0]["ports"]}
    assert [named[port["targetPort"]] for port in service["spec"]["ports"]] == [8443, 8081]


def test_its_certificate_is_for_its_service_and_for_a_forwarded_port(rendered, tmp_path):
    data = {name: b64decode(value) for name, value in rendered.one("Secret", SECRET)["data"].items()}
    for name in ("tls.crt", "tls.key"):
        (tmp_path / name).write_bytes(data[name])
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "tls.crt", tmp_path / "tls.key")
    client = ssl.create_default_context(cadata=data["ca.crt"].decode())
    for host in (NAME, f"{NAME}.{NAMESPACE}", f"{NAME}.{NAMESPACE}.svc", "localhost", "127.0.0.1"):
        shake_hands(client, server, host)
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(client, server, "other.svc")


def test_what_it_is_told(rendered):
    (container,) = rendered.one("Deployment", NAME)["spec"]["template"]["spec"]["containers"]
    assert container["args"] == ["queue-server"]
    hosts = f"{NAME} {NAME}.{NAMESPACE} {NAME}.{NAMESPACE}.svc {NAME}.{NAMESPACE}.svc.cluster.local"
    assert environment(container) == {
        "AGENTSTREAM_REDIS_URL_FILE": "/etc/agentstream/redis/url",
        "AGENTSTREAM_INSTALLATION": "agentstream",
        "AGENTSTREAM_LOG_FORMAT": "text",
        "AGENTSTREAM_TLS_DIRECTORY": "/etc/agentstream/tls",
        "AGENTSTREAM_QUEUE_PORT": "8443",
        "AGENTSTREAM_HEALTH_PORT": "8081",
        "AGENTSTREAM_HOSTS": hosts,
        "AGENTSTREAM_CONSOLE": "true",
    }
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["port"] == "health"


def test_everything_can_be_told_to_it(everything):
    deployment = everything.one("Deployment", NAME)["spec"]
    spec = deployment["template"]["spec"]
    (container,) = spec["containers"]
    told, theirs = environment(container), environment(everything.operator["containers"][0])
    assert deployment["replicas"] == 2
    assert told["AGENTSTREAM_HOSTS"].endswith(" queue.example.com")
    assert told["AGENTSTREAM_PROXY_CA_FILE"] == "/etc/agentstream/proxy/ca.crt"
    assert told["AGENTSTREAM_PROXY_NAMES"] == "gateway"
    assert told["AGENTSTREAM_CONSOLE"] == "false"
    for name in theirs.keys() & told.keys() - {"AGENTSTREAM_HEALTH_PORT"}:
        assert told[name] == theirs[name]
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    assert volumes["tls"]["secret"]["secretName"] == "queue-certificate"
    assert volumes["proxy"]["secret"]["secretName"] == "proxy-ca"
    assert volumes["redis"]["projected"]["sources"][0]["secret"]["name"] == "read-only"
    assert SECRET not in everything.names("Secret")


def test_its_rights(rendered):
    subject = {"kind": "ServiceAccount", "name": NAME, "namespace": NAMESPACE}
    bound = {
        (b["kind"], b["metadata"].get("namespace"), b["roleRef"]["kind"], b["roleRef"]["name"])
        for b in [*rendered.of("RoleBinding"), *rendered.of("ClusterRoleBinding")]
        if subject in b["subjects"]
    }
    assert bound == {
        ("ClusterRoleBinding", None, "ClusterRole", NAME),
        ("ClusterRoleBinding", None, "ClusterRole", "system:auth-delegator"),
    }
    assert rules(rendered.one("ClusterRole", NAME)) == {
        ("agentstream.dev", "agentstreams", ""): {"list", "watch"},
        ("agentstream.dev", "consumergroups", ""): {"list", "watch"},
        ("agentstream.dev", "streamreplays", ""): {"get", "list", "create", "patch", "delete"},
        ("", "events", ""): {"create"},
    }


@pytest.mark.parametrize("may", ["nothing", "numbers", "everything"])
def test_people_with_certificates_may_what_is_said(helm, may):
    rendered = helm.render({**EMBEDDED, "queueServer": {"enabled": True, "cliMay": may}})
    account = {"kind": "ServiceAccount", "name": "agentstream-cli", "namespace": NAMESPACE}
    bindings = [b for b in rendered.of("ClusterRoleBinding") if account in b["subjects"]]
    found = [rules(rendered.one("ClusterRole", b["roleRef"]["name"])) for b in bindings]
    replays = ("agentstream.dev", "streamreplays", "")
    payloads = {
        ("agentstream.dev", "agentstreams/messages", ""): {"get"},
        ("agentstream.dev", "consumergroups/deadletters", ""): {"get"},
    }
    wanted = {
        "nothing": [],
        "numbers": [NUMBERS | {replays: {"get", "list"}}],
        "everything": [NUMBERS | payloads | {replays: {"get", "list", "create", "patch", "delete"}}],
    }
    assert found == wanted[may]


def test_it_reads_the_watched_namespaces_alone(helm):
    rendered = helm.render({**VALUES, "watchNamespaces": ["team-a"]})
    assert ("agentstream.dev", "streamreplays", "") in rules(rendered.one("Role", NAME, "team-a"))
    assert NAME not in rendered.names("ClusterRole")


def test_rights_and_account_can_be_left_to_others(helm):
    values = {**VALUES, "rbac": {"create": False}, "serviceAccount": {"create": False, "name": "theirs"}}
    rendered = helm.render(values)
    assert rendered.of("ClusterRoleBinding") == []
    assert rendered.one("Deployment", NAME)["spec"]["template"]["spec"]["serviceAccountName"] == "theirs"


def test_who_may_reach_it_and_what_it_reaches(helm):
    policy = policies(helm, VALUES)[NAME]
    assert [ports(rule) for rule in policy["ingress"]] == [{8443}, {8081}]
    assert [ports(rule) for rule in policy["egress"]] == [{53, 5353}, {443, 6443, 8443, 16443}, {6379}]


def test_a_wrong_word_is_refused(helm):
    with pytest.raises(Refused, match="cliMay"):
        helm.render({**EMBEDDED, "queueServer": {"enabled": True, "cliMay": "all"}})


@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_a_drain_takes_one_of_its_pods_at_a_time(helm, replicas):
    rendered = helm.render({**VALUES, "queueServer": {**VALUES["queueServer"], "replicas": replicas}})
    found = [d for d in rendered.of("PodDisruptionBudget") if d["metadata"]["name"] == NAME]
    assert len(found) == (replicas > 1)
    for budget in found:
        labels = rendered.one("Deployment", NAME)["spec"]["template"]["metadata"]["labels"]
        assert budget["spec"]["selector"]["matchLabels"].items() <= labels.items()


def test_who_may_call_it_may_be_named_and_who_scrapes_need_not(helm):
    callers = [{"podSelector": {"matchLabels": {"app": "gateway"}}}]
    values = {
        **VALUES,
        "networkPolicy": {"enabled": True},
        "queueServer": {**VALUES["queueServer"], "from": callers},
    }
    calls, scrapes = helm.render(values).one("NetworkPolicy", NAME)["spec"]["ingress"]
    assert ([p["port"] for p in calls["ports"]], calls["from"]) == ([8443], callers)
    assert ([p["port"] for p in scrapes["ports"]], "from" in scrapes) == ([8081], False)
