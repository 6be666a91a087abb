"""The embedded server as it is rendered: one pod on a volume, whose password is in the Secret alone."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from urllib.parse import urlsplit

import pytest

from agentstream_operator.local.server.valkey import LIMITS
from support.helm import EMBEDDED, EXTERNAL, NAMESPACE, ROOT
from unit.chart.variants import EMBEDDED_EVERYTHING


def stateful(rendered):
    return rendered.one("StatefulSet", "agentstream-redis", NAMESPACE)["spec"]


def container(rendered):
    (found,) = stateful(rendered)["template"]["spec"]["containers"]
    return found


def test_without_it_there_is_nothing_of_it(helm):
    rendered = helm.render(EXTERNAL)

    assert not {"StatefulSet", "Secret", "ConfigMap"} & {document["kind"] for document in rendered}
    assert not any("redis" in document["metadata"]["name"] for document in rendered)


def test_the_secret_says_where_it_is(helm):
    rendered = helm.render(EMBEDDED)
    data = rendered.one("Secret", "agentstream-redis", NAMESPACE)["data"]
    url = urlsplit(base64.b64decode(data["url"]).decode())
    (port,) = rendered.one("Service", "agentstream-redis", NAMESPACE)["spec"]["ports"]

    assert url.scheme == "redis"
    assert url.hostname == f"agentstream-redis.{NAMESPACE}.svc"
    assert url.port == port["port"] == 6379
    assert url.username == base64.b64decode(data["username"]).decode() == "operator"
    assert url.password == rendered.password
    assert len(rendered.password) == 40
    assert rendered.password.isalnum()


def test_the_password_is_another_for_every_installation(helm):
    assert helm.render(EMBEDDED, release="agentstream-a").password != helm.render(EMBEDDED).password


def test_the_password_is_in_the_secret_alone(helm):
    rendered = helm.render(EMBEDDED)
    password = rendered.password
    encoded = base64.b64encode(password.encode()).decode()

    for document in rendered:
        text = json.dumps(document)
        if document["kind"] != "Secret":
            assert password not in text, document["kind"]
            assert encoded not in text, document["kind"]
    # not in any environment either: it is read from the mounted file
    assert "env" not in container(rendered)


def test_another_password_restarts_server_and_operator_and_its_checksum_does_not_tell_it(helm):
    def checksums(rendered):
        return {
            found["spec"]["template"]["metadata"]["annotations"]["checksum/redis"]
            for found in (*rendered.of("Deployment"), *rendered.of("StatefulSet"))
        }

    rendered, other = helm.render(EMBEDDED), helm.render(EMBEDDED, release="agentstream-a")
    (checksum,) = checksums(rendered)
    assert rendered.password != other.password
    assert checksums(other) != {checksum}
    # who reads it cannot try passwords as fast as a hash is computed
    for algorithm in ("sha256", "sha1", "md5", "sha512"):
        assert hashlib.new(algorithm, rendered.password.encode()).hexdigest() != checksum


def test_its_settings_restart_it_and_a_new_chart_does_not(helm):
    def checksum(values):
        return stateful(helm.render(values))["template"]["metadata"]["annotations"]["checksum/config"]

    assert checksum(EMBEDDED) == checksum({**EMBEDDED, "log": {"format": "json"}})
    assert checksum(EMBEDDED) != checksum({"redis": {"embedded": True, "maxMemory": "1gb"}})
    labels = stateful(helm.render(EMBEDDED))["template"]["metadata"]["labels"]
    assert not {"helm.sh/chart", "app.kubernetes.io/version"} & set(labels)


def test_nothing_is_forgotten_and_nothing_evicted(helm):
    config = helm.render(EMBEDDED_EVERYTHING).one("ConfigMap", "agentstream-redis", NAMESPACE)["data"][
        "redis.conf"
    ]
    lines = {
        line.partition(" ")[0]: line.partition(" ")[2] for line in config.splitlines() if line[:1] != "#"
    }

    assert lines["appendonly"] == "yes"
    assert lines["appendfsync"] == "always"
    assert lines["save"] == "900 1 300 100 60 10000"
    assert lines["maxmemory"] == "2gb"
    assert lines["maxmemory-policy"] == "noeviction"
    assert lines["dir"] == "/data"
    assert lines["aclfile"] == "/data/users.acl"


def test_its_connections_have_the_limits_of_the_local_server(helm):
    config = helm.render(EMBEDDED).one("ConfigMap", "agentstream-redis", NAMESPACE)["data"]["redis.conf"]

    assert set(LIMITS) <= set(config.splitlines())


def test_its_image_is_of_one_version_that_end_to_end_tests_run(helm):
    image = container(helm.render(EMBEDDED))["image"]

    assert re.fullmatch(r"redis:\d+\.\d+\.\d+", image)
    assert f'"{image}"' in (ROOT / "e2e" / "harness" / "machine.py").read_text()
    assert f"\n{image} trixie " in (ROOT / "e2e" / "airgap" / "up").read_text()


def test_its_data_is_on_a_volume_of_its_own(helm):
    rendered = helm.render(EMBEDDED_EVERYTHING)
    (claim,) = stateful(rendered)["volumeClaimTemplates"]

    assert claim["metadata"]["name"] == "data"
    assert claim["spec"] == {
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": "fast",
        "resources": {"requests": {"storage": "10Gi"}},
    }
    assert {"name": "data", "mountPath": "/data"} in container(rendered)["volumeMounts"]


def test_the_default_storage_class_is_the_clusters(helm):
    (claim,) = stateful(helm.render(EMBEDDED))["volumeClaimTemplates"]

    assert "storageClassName" not in claim["spec"]


def test_without_a_volume_it_has_an_empty_directory(helm):
    spec = stateful(helm.render({"redis": {"embedded": True, "persistence": {"enabled": False}}}))

    assert "volumeClaimTemplates" not in spec
    assert {"name": "data", "emptyDir": {}} in spec["template"]["spec"]["volumes"]


def test_it_runs_as_the_user_of_its_image_and_may_read_its_password(helm):
    spec = stateful(helm.render(EMBEDDED))["template"]["spec"]
    context = spec["securityContext"]
    (credentials,) = (volume["secret"] for volume in spec["volumes"] if volume["name"] == "credentials")

    assert (context["runAsUser"], context["runAsGroup"], context["fsGroup"]) == (999, 999, 999)
    # octal 0440: group 999
    assert credentials == {
        "secretName": "agentstream-redis",
        "defaultMode": 0o440,
        "items": [{"key": "password", "path": "password"}],
    }


def test_any_image_with_a_shell_and_a_server_will_do(helm):
    found = container(helm.render(EMBEDDED_EVERYTHING))

    assert found["image"] == "valkey/valkey:8.1"
    # nothing of the image's own start script
    assert found["command"] == ["/bin/sh", "/etc/agentstream/redis/start.sh"]
    assert "args" not in found


@pytest.mark.parametrize(
    ("probe", "question"), [("startupProbe", "live"), ("livenessProbe", "live"), ("readinessProbe", "ready")]
)
def test_probes_ask_the_server(helm, probe, question):
    assert container(helm.render(EMBEDDED))[probe]["exec"] == {
        "command": ["/bin/sh", "/etc/agentstream/redis/ping.sh", question]
    }
