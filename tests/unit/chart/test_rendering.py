"""Every set of values that the schema takes makes objects that Kubernetes takes."""

from __future__ import annotations

import json
import re
import tomllib
from collections import Counter

import jsonschema
import kubernetes_validate
import pytest
import yaml

from support.helm import (
    CHART,
    EMBEDDED,
    EXTERNAL,
    HELMS,
    NAMESPACE,
    PROMETHEUS,
    ROOT,
    Refused,
    Rendered,
    settings,
)
from unit.chart.variants import EVERYTHING, VARIANTS

ADDED = ("monitoring.coreos.com/", "cert-manager.io/")
"""Groups of kinds that are none of Kubernetes' own."""

POLICIES = {"ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"}
CLUSTER_WIDE = {"ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition", *POLICIES}
DNS_LABEL = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
LONG = "a-release-of-the-longest-name-that-helm-will-take-0-1"


@pytest.mark.parametrize(
    ("helm", "version"), [(HELMS[0], "1.37"), (HELMS[1], "1.29")], ids=["newest", "oldest"]
)
@pytest.mark.parametrize("name", VARIANTS)
def test_objects_are_valid_for_kubernetes(helm, version, name):
    for document in helm.render(VARIANTS[name], knows=PROMETHEUS):
        if version == "1.29" and document["kind"] in POLICIES:
            continue
        if not document["apiVersion"].startswith(ADDED):
            kubernetes_validate.validate(document, version, strict=True)


def test_both_versions_of_helm_render_the_same():
    newer, older = (helm.render(EVERYTHING, knows=PROMETHEUS) for helm in HELMS)

    assert sorted(newer, key=str) == sorted(older, key=str)


def test_no_object_is_rendered_twice(variant):
    keys = Counter((d["kind"], d["metadata"].get("namespace"), d["metadata"]["name"]) for d in variant)

    assert [key for key, count in keys.items() if count > 1] == []


def test_every_object_says_what_it_belongs_to(variant):
    for document in variant:
        if "as-" in document["metadata"]["name"]:
            # a further object, which is the user's
            continue
        labels = document["metadata"]["labels"]
        assert labels["app.kubernetes.io/name"] == "agentstream"
        assert labels["app.kubernetes.io/instance"] == "agentstream"
        assert labels["app.kubernetes.io/managed-by"] == "Helm"
        assert labels["app.kubernetes.io/part-of"] == "agentstream"


def test_objects_are_in_the_namespace_of_the_release_or_in_a_watched_one(helm):
    for document in helm.render(EVERYTHING, knows=PROMETHEUS):
        namespace = document["metadata"].get("namespace")
        if document["kind"] in CLUSTER_WIDE:
            assert namespace is None
        elif document["kind"] in {"Role", "RoleBinding"}:
            assert namespace in {NAMESPACE, "team-a", "team-b"}
        elif document["kind"] != "ConfigMap":
            assert namespace == NAMESPACE


@pytest.mark.parametrize(
    "values", [VARIANTS["external-metrics"], VARIANTS["cert-manager"]], ids=["embedded", "external"]
)
def test_names_fit_for_the_longest_release(helm, values):
    rendered = helm.render(values, release=LONG, knows=PROMETHEUS)

    for document in rendered:
        name = document["metadata"]["name"]
        if document["kind"] in {"CustomResourceDefinition", "APIService"}:
            continue
        assert DNS_LABEL.fullmatch(name), name
        # what Kubernetes adds must fit, too: a hash to a StatefulSet's, five letters to a Job's pod
        assert len(name) <= {"StatefulSet": 52, "Job": 57}.get(document["kind"], 63), name
        for key, value in document["metadata"].get("labels", {}).items():
            assert len(value) <= 63, key


@pytest.mark.parametrize(
    ("release", "values", "name"),
    [
        ("agentstream", {}, "agentstream"),
        ("my-agentstream", {}, "my-agentstream"),
        ("prod", {}, "prod-agentstream"),
        ("prod", {"nameOverride": "streams"}, "prod-streams"),
        ("prod", {"fullnameOverride": "streams"}, "streams"),
        (LONG, {}, "a-release-of-the-longest-name-that-helm-will-t"),
        ("a" * 45, {"nameOverride": "b"}, "a" * 45),
    ],
)
def test_what_objects_are_called(helm, release, values, name):
    assert helm.render({**EXTERNAL, **values}, release=release).names("Deployment") == {name}


def test_selectors_find_their_pods_alone(variant):
    def finds(selector: dict[str, str], labels: dict[str, str]) -> bool:
        return selector.items() <= labels.items()

    pods = {
        d["metadata"]["name"]: d["metadata"]["labels"]
        if d["kind"] == "Pod"
        else d["spec"]["template"]["metadata"]["labels"]
        for d in variant
        if d["kind"] in {"Deployment", "StatefulSet", "Job", "Pod"}
    }
    found_by = {
        "agentstream": [variant.one("Service", "agentstream-metrics")["spec"]["selector"]],
        "agentstream-redis": [],
        "agentstream-metrics-server": [],
        "agentstream-queue-server": [],
    }
    for document in [*variant.of("Deployment"), *variant.of("StatefulSet")]:
        name = document["metadata"]["name"]
        found_by[name].append(document["spec"]["selector"]["matchLabels"])
        if name in variant.names("Service"):
            found_by[name].append(variant.one("Service", name)["spec"]["selector"])

    for name, selectors in found_by.items():
        for selector in selectors:
            assert [pod for pod, labels in pods.items() if finds(selector, labels)] == [name]


def test_labels_that_never_change_do_not_hold_versions(variant):
    for document in variant:
        if document["kind"] in {"Deployment", "StatefulSet"}:
            fixed = [document["spec"]["selector"]["matchLabels"]]
            fixed += [c["metadata"]["labels"] for c in document["spec"].get("volumeClaimTemplates", [])]
            for labels in fixed:
                assert set(labels) == {
                    "app.kubernetes.io/name",
                    "app.kubernetes.io/instance",
                    "app.kubernetes.io/component",
                }


def test_further_objects_may_be_manifests_or_templates(helm):
    rendered = helm.render(EVERYTHING, knows=PROMETHEUS)

    assert rendered.names("ConfigMap") == {"as-object", "agentstream-as-text"}


@pytest.mark.parametrize("name", VARIANTS)
def test_helm_finds_no_fault(helm, tmp_path, name):
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(VARIANTS[name]))

    said = helm.run("lint", "--strict", str(CHART), "--values", str(tmp_path / "values.yaml"))

    assert "1 chart(s) linted, 0 chart(s) failed" in said
    assert "WARNING" not in said


def test_the_chart_installs_the_version_beside_it(helm):
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    operator = tomllib.loads((ROOT / "operator" / "pyproject.toml").read_text())["project"]

    assert chart["appVersion"] == operator["version"]
    assert helm.render(EXTERNAL).operator["containers"][0]["image"] == f"agentstream:{operator['version']}"


def test_a_chart_that_depends_on_this_one_can_switch_it(helm):
    assert isinstance(helm.render({**EXTERNAL, "enabled": True, "global": {"region": "eu"}}), Rendered)


def test_it_packs(helm, tmp_path):
    helm.run("package", str(CHART), "--destination", str(tmp_path))

    (packed,) = tmp_path.iterdir()
    assert helm.run("template", "x", str(packed), *settings(EXTERNAL)) == helm.run(
        "template", "x", str(CHART), *settings(EXTERNAL)
    )


def test_an_old_cluster_is_refused(helm):
    with pytest.raises(Refused, match=r"kubeVersion: >=1\.29\.0-0"):
        helm.run("template", "x", str(CHART), *settings(EXTERNAL), "--kube-version", "1.28.9")


SCHEMA = json.loads((CHART / "values.schema.json").read_text())
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())


def nodes(schema, path=""):
    """Every property of the schema: its path and itself."""
    for name, node in schema.get("properties", {}).items():
        yield f"{path}{name}", node
        yield from nodes(node, f"{path}{name}.")
        yield from nodes(node.get("items", {}), f"{path}{name}[].")


def paths(values, schema, path=""):
    """Every value that has a place of its own in the schema."""
    for name, value in values.items():
        yield f"{path}{name}"
        node = schema["properties"].get(name, {})
        if isinstance(value, dict) and "properties" in node:
            yield from paths(value, node, f"{path}{name}.")


def test_the_schema_is_one():
    jsonschema.Draft7Validator.check_schema(SCHEMA)


def test_every_value_is_described():
    for path, node in nodes(SCHEMA):
        assert node["description"].endswith("."), path
        assert "type" in node or "enum" in node, path


def test_nothing_is_accepted_that_is_not_known():
    for path, node in [("", SCHEMA), *nodes(SCHEMA)]:
        if "properties" in node and node["type"] == "object":
            assert node["additionalProperties"] is False, path


def test_values_and_schema_name_the_same():
    known = {path for path, _ in nodes(SCHEMA) if "[]" not in path} - {"global", "enabled"}

    assert set(paths(VALUES, SCHEMA)) == known


def test_the_defaults_and_the_tested_values_are_valid():
    validator = jsonschema.Draft7Validator(SCHEMA)

    validator.validate(VALUES)
    for name, values in VARIANTS.items():
        if name != "bare":
            # its nulls take defaults away, and helm removes them first
            validator.validate(values)


REFUSED = [
    ({"redis": {"embeded": True}}, "redis", "embeded"),
    ({"replica": 2}, "", "replica"),
    ({"replicas": 0}, "replicas", "1"),
    ({"replicas": "two"}, "replicas", "integer"),
    ({"watchNamespaces": "team-a"}, "watchNamespaces", "array"),
    ({"watchNamespaces": ["Team_A"]}, "watchNamespaces", "match"),
    ({"watchNamespaces": ["a", "a"]}, "watchNamespaces", "unique|equal"),
    ({"installation": "Blue!"}, "installation", "match"),
    ({"allowKeys": ["two words"]}, "allowKeys", "match"),
    ({"image": {"pullPolicy": "Sometimes"}}, "image.pullPolicy", "IfNotPresent"),
    ({"image": {"repository": "agentstream:1"}}, "image.repository", "match"),
    ({"image": {"digest": "latest"}}, "image.digest", "match"),
    ({"redis": {"maxMemory": "0"}}, "redis.maxMemory", "match"),
    ({"redis": {"maxMemory": "512Mi"}}, "redis.maxMemory", "match"),
    ({"redis": {"persistence": {"size": "big"}}}, "redis.persistence.size", "match"),
    ({"redis": {"existingSecret": "Not A Name"}}, "redis.existingSecret", "match"),
    ({"log": {"format": "xml"}}, "log.format", "json"),
    ({"metrics": {"renderMode": "maybe"}}, "metrics.renderMode", "skipIfMissing"),
    ({"metrics": {"prometheusRule": {"disabled": ["Nothing"]}}}, "metrics.prometheusRule.disabled", "Down"),
    ({"networkPolicy": {"apiServerPorts": []}}, "networkPolicy.apiServerPorts", "1"),
    ({"networkPolicy": {"redisPorts": ["redis"]}}, "networkPolicy.redisPorts", "integer"),
    ({"terminationGracePeriodSeconds": 5}, "terminationGracePeriodSeconds", "25"),
    ({"podAnnotations": {"a": 1}}, "podAnnotations", "string"),
    ({"crds": {"enabled": "yes"}}, "crds.enabled", "boolean"),
]


@pytest.mark.parametrize(("values", "path", "why"), REFUSED, ids=[json.dumps(case[0]) for case in REFUSED])
def test_a_wrong_value_is_refused_where_it_stands(helm, values, path, why):
    merged = {**EMBEDDED, **values, "redis": {**EMBEDDED["redis"], **values.get("redis", {})}}

    with pytest.raises(Refused) as refused:
        helm.render(merged)

    message = str(refused.value)
    assert "don't meet the specifications of the schema" in message
    # helm 3 writes a.b, helm 4 /a/b
    assert path in message or f"/{path.replace('.', '/')}" in message
    assert any(word in message for word in why.split("|"))
