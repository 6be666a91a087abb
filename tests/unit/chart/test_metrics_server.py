"""The metrics server: the cluster's external metrics, with a certificate that the aggregator trusts."""

from __future__ import annotations

import ssl
from base64 import b64decode

import pytest

from support.helm import EMBEDDED, NAMESPACE, PROMETHEUS
from unit.chart.test_pods import environment, policies, ports
from unit.chart.test_rbac import rules
from unit.chart.variants import VARIANTS

VALUES = VARIANTS["external-metrics"]
NAME = "agentstream-metrics-server"
SECRET = "agentstream-metrics-tls"


@pytest.fixture
def rendered(helm):
    return helm.render(VALUES)


def test_there_is_none_unless_it_is_asked_for(helm):
    rendered = helm.render(EMBEDDED)

    assert rendered.of("APIService") == []
    assert rendered.names("Deployment") == {"agentstream"}
    assert not any("metrics-server" in str(d["metadata"]["labels"]) for d in rendered)


def test_the_api_server_is_led_to_it(rendered):
    (aggregated,) = rendered.of("APIService")
    service = rendered.one("Service", NAME, NAMESPACE)["spec"]
    pod = rendered.one("Deployment", NAME)["spec"]["template"]

    assert aggregated["metadata"]["name"] == "v1beta1.external.metrics.k8s.io"
    assert aggregated["spec"]["service"] == {"name": NAME, "namespace": NAMESPACE, "port": 443}
    assert service["ports"][0]["port"] == 443
    assert service["selector"].items() <= pod["metadata"]["labels"].items()
    named = {port["name"]: port["containerPort"] for port in pod["spec"]["containers"][0]["ports"]}
    assert [named[port["targetPort"]] for port in service["ports"]] == [6443, 8081]


def test_its_certificate_is_for_its_service_and_signed_by_whom_the_api_server_trusts(rendered, tmp_path):
    data = {name: b64decode(value) for name, value in rendered.one("Secret", SECRET)["data"].items()}
    (aggregated,) = rendered.of("APIService")
    for name in ("tls.crt", "tls.key"):
        (tmp_path / name).write_bytes(data[name])
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "tls.crt", tmp_path / "tls.key")
    client = ssl.create_default_context(cadata=b64decode(aggregated["spec"]["caBundle"]).decode())

    assert data.keys() == {"tls.crt", "tls.key", "ca.crt"}
    shake_hands(client, server, f"{NAME}.{NAMESPACE}.svc")
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(client, server, "other.svc")


def shake_hands(client: ssl.SSLContext, server: ssl.SSLContext, name: str) -> None:
    """Connects both in memory.

    Raises:
        SSLCertVerificationError: the client does not trust the server.
    """
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        client.wrap_bio(to_client, to_server, server_hostname=name),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    while sides:
        for side in tuple(sides):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            sides.remove(side)


def test_cert_manager_can_make_the_certificate(helm):
    rendered = helm.render(VARIANTS["cert-manager"], knows=PROMETHEUS)
    (aggregated,) = rendered.of("APIService")
    certificate = rendered.one("Certificate", SECRET)["spec"]
    authority = rendered.one("Certificate", "agentstream-metrics-ca")["spec"]

    assert SECRET not in rendered.names("Secret")
    assert "caBundle" not in aggregated["spec"]
    inject = aggregated["metadata"]["annotations"]["cert-manager.io/inject-ca-from"]
    assert inject == f"{NAMESPACE}/{SECRET}"
    assert certificate["secretName"] == SECRET
    assert f"{NAME}.{NAMESPACE}.svc" in certificate["dnsNames"]
    assert rendered.one("Issuer", certificate["issuerRef"]["name"])["spec"]["ca"] == {
        "secretName": authority["secretName"]
    }
    assert rendered.one("Issuer", authority["issuerRef"]["name"])["spec"] == {"selfSigned": {}}
    assert authority["isCA"] is True


def test_what_it_is_told(rendered):
    spec = rendered.one("Deployment", NAME)["spec"]["template"]["spec"]
    (container,) = spec["containers"]

    assert container["args"] == ["metrics-server"]
    assert environment(container) == {
        "AGENTSTREAM_REDIS_URL_FILE": "/etc/agentstream/redis/url",
        "AGENTSTREAM_INSTALLATION": "agentstream",
        "AGENTSTREAM_LOG_FORMAT": "text",
        "AGENTSTREAM_TLS_DIRECTORY": "/etc/agentstream/tls",
        "AGENTSTREAM_EXTERNAL_PORT": "6443",
        "AGENTSTREAM_HEALTH_PORT": "8081",
    }
    assert {"name": "tls", "mountPath": "/etc/agentstream/tls", "readOnly": True} in container["volumeMounts"]
    assert {"name": "tls", "secret": {"secretName": SECRET}} in spec["volumes"]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["port"] == "health"


def test_everything_that_the_operator_is_told_of_the_server_is_told_to_it(helm):
    rendered = helm.render(VARIANTS["cert-manager"], knows=PROMETHEUS)
    deployment = rendered.one("Deployment", NAME)["spec"]
    (container,) = deployment["template"]["spec"]["containers"]
    ours, theirs = environment(container), environment(rendered.operator["containers"][0])

    assert deployment["replicas"] == 2
    for name in theirs.keys() & ours.keys() - {"AGENTSTREAM_HEALTH_PORT"}:
        assert ours[name] == theirs[name]
    assert {"AGENTSTREAM_REDIS_CA_FILE", "AGENTSTREAM_NAMESPACES", "AGENTSTREAM_ALLOW_KEYS"} <= ours.keys()


def test_it_can_have_a_user_of_its_own(helm):
    values = {
        "redis": {"existingSecret": "everything", "caKey": "ca.crt"},
        "metricsServer": {"enabled": True, "redis": {"existingSecret": "read-only"}},
    }
    rendered = helm.render(values)
    spec = rendered.one("Deployment", NAME)["spec"]["template"]["spec"]
    url = {"name": "read-only", "items": [{"key": "url", "path": "url"}]}
    authority = {"name": "everything", "items": [{"key": "ca.crt", "path": "ca.crt"}]}

    # of the operator's Secret it has the certificate of the authority, and nothing else
    mounted = {"name": "redis", "projected": {"sources": [{"secret": url}, {"secret": authority}]}}
    assert mounted in spec["volumes"]
    assert str(spec).count("everything") == 1
    own = {
        "name": "redis",
        "projected": {"sources": [{"secret": url | {"name": "everything"}}, {"secret": authority}]},
    }
    assert own in rendered.operator["volumes"]


def test_a_password_that_it_does_not_use_does_not_restart_it(helm, rendered):
    own = {**VALUES, "metricsServer": {"enabled": True, "redis": {"existingSecret": "read-only"}}}

    def notes(found):
        return found.one("Deployment", NAME)["spec"]["template"]["metadata"]["annotations"]

    assert "checksum/redis" in notes(rendered)
    assert "checksum/redis" not in notes(helm.render(own))


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
        ("RoleBinding", "kube-system", "Role", "extension-apiserver-authentication-reader"),
    }
    assert rules(rendered.one("ClusterRole", NAME)) == {
        ("agentstream.dev", "agentstreams", ""): {"list", "watch"},
        ("agentstream.dev", "consumergroups", ""): {"list", "watch"},
    }


def test_the_autoscalers_controller_may_ask(rendered):
    binding = rendered.one("ClusterRoleBinding", "agentstream-external")

    assert rules(rendered.one("ClusterRole", binding["roleRef"]["name"])) == {
        ("external.metrics.k8s.io", "agentstream-backlog", ""): {"get", "list"}
    }
    assert binding["subjects"] == [
        {"kind": "ServiceAccount", "name": "horizontal-pod-autoscaler", "namespace": "kube-system"}
    ]


def test_it_reads_the_watched_namespaces_alone(helm):
    rendered = helm.render({**VALUES, "watchNamespaces": ["team-a"]})

    assert rules(rendered.one("Role", NAME, "team-a")).keys() == {
        ("agentstream.dev", "agentstreams", ""),
        ("agentstream.dev", "consumergroups", ""),
    }
    assert NAME not in rendered.names("ClusterRole")


def test_rights_and_account_can_be_left_to_others(helm):
    values = {**VALUES, "rbac": {"create": False}, "serviceAccount": {"create": False, "name": "theirs"}}
    rendered = helm.render(values)

    assert rendered.of("ClusterRoleBinding") == []
    assert rendered.one("Deployment", NAME)["spec"]["template"]["spec"]["serviceAccountName"] == "theirs"


def test_the_api_server_reaches_it_and_it_reaches_what_the_operator_reaches(helm):
    policy = policies(helm, VALUES)[NAME]

    assert [ports(rule) for rule in policy["ingress"]] == [{6443, 8081}]
    assert [ports(rule) for rule in policy["egress"]] == [{53, 5353}, {443, 6443, 8443, 16443}, {6379}]
    external = {"redis": {"existingSecret": "mine"}, "metricsServer": {"enabled": True}}
    assert policies(helm, external)[NAME]["egress"] == [{}]
