"""What stays and what goes: resource definitions, the hook before an uninstall, the test, the notes."""

from __future__ import annotations

import ast

import pytest
import yaml

from agentstream_operator.resources.crd import KINDS
from support.helm import CHART, EMBEDDED, EXTERNAL, NAMESPACE, ROOT, notes
from unit.chart.variants import BARE, EVERYTHING


def hook(document):
    prefix = "helm.sh/hook"
    return {
        key.removeprefix(prefix): value
        for key, value in document["metadata"].get("annotations", {}).items()
        if key.startswith(prefix)
    }


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.plural)
def test_definitions_are_the_generated_ones(helm, kind):
    rendered = helm.render(EXTERNAL).one("CustomResourceDefinition", kind.name)

    metadata = rendered.pop("metadata")
    wanted = yaml.safe_load((ROOT / "crds" / f"{kind.name}.yaml").read_text())
    assert rendered == {key: value for key, value in wanted.items() if key != "metadata"}
    assert metadata.pop("annotations") == {"helm.sh/resource-policy": "keep"}
    assert metadata.pop("labels")["app.kubernetes.io/instance"] == "agentstream"
    assert metadata == wanted["metadata"]


def test_braces_in_definitions_are_no_templates(helm, tmp_path):
    # a chart like this one, but for a description that looks like a template and a number that has no float
    copy = tmp_path / "agentstream"
    (copy / "files" / "crds").mkdir(parents=True)
    (copy / "templates").mkdir()
    for path in ("Chart.yaml", "templates/_names.tpl", "templates/crds.yaml"):
        (copy / path).write_text((CHART / path).read_text())
    (copy / "values.yaml").write_text(
        "crds: {enabled: true, keep: true}\nnameOverride: ''\ncommonLabels: {}\n"
    )
    (copy / "files" / "crds" / "a.yaml").write_text(
        "apiVersion: v1\nmetadata:\n  name: a\nspec:\n  metadata:\n    text: '{{ .Values }} {<ns>.<name>}'\n"
        "    maximum: 9007199254740993\n"
    )

    rendered = helm.run("template", "x", str(copy))

    assert "text: '{{ .Values }} {<ns>.<name>}'" in rendered
    assert "maximum: 9007199254740993\n" in rendered
    assert rendered.count("helm.sh/resource-policy: keep") == 1


def test_definitions_can_be_left_out_or_go_with_the_release(helm):
    going = helm.render({**EXTERNAL, "crds": {"keep": False}}).of("CustomResourceDefinition")

    assert helm.render(BARE).of("CustomResourceDefinition") == []
    assert len(going) == len(KINDS)
    assert all("annotations" not in definition["metadata"] for definition in going)


def test_before_an_uninstall_the_finalizers_go(helm):
    (job,) = helm.render(EMBEDDED).of("Job")
    spec = job["spec"]["template"]["spec"]
    (container,) = spec["containers"]

    assert hook(job) == {
        "": "pre-delete",
        "-weight": "0",
        "-delete-policy": "before-hook-creation,hook-succeeded",
    }
    assert container["args"] == ["remove-finalizers", "--stop-deployment", "agentstream"]
    assert container["env"] == [
        {"name": "POD_NAMESPACE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}}
    ]
    assert spec["serviceAccountName"] == "agentstream-pre-delete"
    assert spec["restartPolicy"] == "Never"
    assert job["spec"]["activeDeadlineSeconds"] == 120


def test_it_looks_only_into_watched_namespaces(helm):
    (job,) = helm.render({**EMBEDDED, "watchNamespaces": ["team-a", "team-b"]}).of("Job")

    assert job["spec"]["template"]["spec"]["containers"][0]["args"][3:] == [
        *("--namespace", "team-a"),
        *("--namespace", "team-b"),
    ]


def test_the_rights_of_the_hook_come_before_it_and_go_after_it(helm):
    rendered = helm.render(EVERYTHING | {"metrics": {}})
    rights = [d for d in rendered if d["kind"] != "Job" and hook(d).get("") == "pre-delete"]

    assert {d["kind"] for d in rights} == {"ServiceAccount", "Role", "RoleBinding"}
    for document in rights:
        assert int(hook(document)["-weight"]) < 0
        assert hook(document)["-delete-policy"] == "before-hook-creation,hook-succeeded,hook-failed"


def test_the_hook_can_be_left_out(helm):
    rendered = helm.render({**EXTERNAL, "removeFinalizers": {"enabled": False}})

    assert [d for d in rendered if hook(d).get("") == "pre-delete"] == []


def test_an_installation_can_be_tested(helm):
    (pod,) = helm.render(EMBEDDED).of("Pod")
    (container,) = pod["spec"]["containers"]
    *command, script = container["command"]

    assert hook(pod) == {"": "test", "-delete-policy": "before-hook-creation,hook-succeeded"}
    assert command == ["python", "-c"]
    assert script.strip() == (CHART / "files" / "test" / "installed.py").read_text().strip()
    ast.parse(script)
    assert container["env"] == [{"name": "OPERATOR", "value": f"agentstream-metrics.{NAMESPACE}.svc:8081"}]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (EMBEDDED, f"kubectl -n {NAMESPACE} rollout status deployment/agentstream"),
        (EMBEDDED, "kubectl apply -f - <<END"),
        (EMBEDDED, f"helm test agentstream -n {NAMESPACE}"),
        (EMBEDDED, "is for trials: one pod, no failover. Its volume is kept"),
        (EMBEDDED, "watches all namespaces."),
        ({**EMBEDDED, "watchNamespaces": ["team-a", "team-b"]}, "watches the namespaces team-a, team-b"),
        (EMBEDDED, "metadata: {name: tasks, namespace: default}"),
        ({**EMBEDDED, "watchNamespaces": ["team-a"]}, "metadata: {name: tasks, namespace: team-a}"),
        (
            {"redis": {"embedded": True, "persistence": {"enabled": False}}},
            "WARNING: it has no volume (redis.persistence.enabled=false): when its pod is deleted, all",
        ),
        ({**EXTERNAL, "crds": {"enabled": False}}, "not part of this release (crds.enabled=false)"),
        (
            {**EXTERNAL, "crds": {"keep": False}},
            "WARNING: uninstalling this release deletes the CRDs",
        ),
        ({**EXTERNAL, "rbac": {"create": False}}, "bind them to the ServiceAccount agentstream."),
    ],
)
def test_what_a_person_is_told(values, said):
    assert said in notes(values)


def test_who_has_a_server_is_told_nothing_of_the_embedded_one():
    said = notes(EXTERNAL)

    assert "trials" not in said
    assert "WARNING" not in said
