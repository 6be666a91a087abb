"""The chart on a real API server: installed, upgraded and uninstalled by both versions of helm."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from base64 import b64decode
from collections.abc import Callable
from typing import Any

import pytest

from agentstream_operator.resources.meta import FINALIZER
from support.apiserver import NoProgramsError, private_server
from support.helm import CHART, HELMS, PROMETHEUS, RELEASE, Helm, Refused, settings
from support.waiting import until
from unit.chart.test_rendering import ADDED
from unit.chart.variants import VARIANTS

RESTRICTED = {"pod-security.kubernetes.io/warn": "restricted"}
ALL = "all,secrets,configmaps,serviceaccounts,networkpolicies,roles,rolebindings,poddisruptionbudgets"


@pytest.fixture(params=HELMS, ids=lambda helm: f"helm{helm.major}")
def helm(request: pytest.FixtureRequest) -> Helm:
    chosen: Helm = request.param
    return chosen


@pytest.fixture
def name(namespace) -> str:
    """What the release's objects are called; those of the whole cluster are not alone there."""
    return f"agentstream-{namespace}"


@pytest.fixture
def release(helm, api_server, namespace, name) -> Callable[..., str]:
    """Runs helm for a release in the namespace of the test, without the CRDs, which the server has."""

    def run(*command: str, **values: Any) -> str:
        given = {"fullnameOverride": name, "crds": {"enabled": False}, "redis": {"embedded": True}, **values}
        chart = [str(CHART), *settings(given)] if command[0] in {"install", "upgrade"} else []
        return helm.run(*command, RELEASE, *chart, "--namespace", namespace, kubeconfig=api_server.kubeconfig)

    return run


def test_a_password_is_made_once_and_kept(release, kubectl, name):
    def entries():
        data = kubectl.get("secret", f"{name}-redis")["data"]
        return {entry: b64decode(value).decode() for entry, value in data.items()}

    def pods():
        for kind, owner in (("deployment", name), ("statefulset", f"{name}-redis")):
            yield kubectl.get(kind, owner)["spec"]["template"]

    release("install")
    first, running = entries(), list(pods())
    assert first["url"].startswith(f"redis://operator:{first['password']}@{name}-redis.")
    assert first["password"] not in release("get", "values", "--all")

    release("upgrade")
    assert entries() == first
    assert list(pods()) == running

    # whoever wants another one
    kubectl("delete", "secret", f"{name}-redis")
    release("upgrade")
    assert entries()["password"] != first["password"]
    assert all(now["metadata"] != before["metadata"] for now, before in zip(pods(), running, strict=True))
    release("uninstall", "--no-hooks")


EXTERNAL_METRICS = "v1beta1.external.metrics.k8s.io"


@pytest.fixture
def own_release(helm, own_api_server) -> Callable[..., str]:
    """The same on an API server of the test's own: of some objects there is only one."""

    def run(*command: str, **values: Any) -> str:
        given = {"crds": {"enabled": False}, "redis": {"embedded": True}, **values}
        chart = [str(CHART), *settings(given)] if command[0] in {"install", "upgrade"} else []
        return helm.run(*command, RELEASE, *chart, kubeconfig=own_api_server.kubeconfig)

    return run


def test_a_certificate_is_made_once_and_anothers_external_metrics_stay(own_release, own_api_server):
    kubectl = own_api_server.kubectl()
    wanted = {"metricsServer": {"enabled": True}}

    def certificate():
        return kubectl.get("secret", "agentstream-metrics-tls")["data"]

    def aggregated():
        return kubectl.get("apiservice", EXTERNAL_METRICS)["spec"]

    own_release("install", **wanted)
    first = certificate()
    assert aggregated()["caBundle"] == first["ca.crt"]
    own_release("upgrade", **wanted)
    assert certificate() == first
    # whoever wants another one
    kubectl("delete", "secret", "agentstream-metrics-tls")
    own_release("upgrade", **wanted)
    assert certificate()["tls.crt"] != first["tls.crt"]
    assert aggregated()["caBundle"] == certificate()["ca.crt"]
    own_release("upgrade")
    assert EXTERNAL_METRICS not in kubectl("get", "apiservices", "-o", "name")

    service = {"name": "keda-metrics-apiserver", "namespace": "keda"}
    version = {"group": "external.metrics.k8s.io", "version": "v1beta1"}
    priorities = {"groupPriorityMinimum": 100, "versionPriority": 100, "insecureSkipTLSVerify": True}
    kubectl.apply(
        {
            "apiVersion": "apiregistration.k8s.io/v1",
            "kind": "APIService",
            "metadata": {"name": EXTERNAL_METRICS},
            "spec": {**version, **priorities, "service": service},
        }
    )
    with pytest.raises(Refused) as refused:
        own_release("upgrade", **wanted)
    assert "Service keda/keda-metrics-apiserver already serves the APIService" in str(refused.value)
    assert "autoscaling.mode: Direct in ConsumerGroups" in str(refused.value)


def test_a_release_changes_and_goes(release, kubectl, namespace, name):
    release("install")
    release("upgrade", replicas=2)
    spec = kubectl.get("deployment", name)["spec"]
    assert (spec["replicas"], spec["strategy"]["type"]) == (2, "RollingUpdate")
    release("upgrade", replicas=1)
    spec = kubectl.get("deployment", name)["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})

    release("upgrade", redis={"existingSecret": "mine"})
    assert kubectl.list("statefulsets,secrets", "-l", f"app.kubernetes.io/instance={RELEASE}") == []

    release("uninstall", "--no-hooks")
    assert kubectl.list(ALL) == []
    assert namespace not in kubectl("get", "clusterroles,clusterrolebindings", "-o", "name")


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_server_takes_every_object_and_finds_its_pods_restricted(api_server, unique, variant):
    namespace = f"chart-{unique}"
    metadata = {"name": namespace, "labels": RESTRICTED}
    api_server.expect("POST", "/api/v1/namespaces", {"metadata": metadata})
    values = {**VARIANTS[variant], "fullnameOverride": f"agentstream-{unique}"}
    if "watchNamespaces" in values:
        values["watchNamespaces"] = [namespace]
    rendered = HELMS[0].render(values, knows=PROMETHEUS)
    for document in rendered:
        if document["metadata"].get("namespace"):
            document["metadata"]["namespace"] = namespace

    said = api_server.kubectl(namespace)(
        *("apply", "-f", "-", "--dry-run=server", "--server-side", "--validate=strict"),
        manifest=[
            document
            for document in rendered
            if not document["apiVersion"].startswith(ADDED) and document["kind"] != "CustomResourceDefinition"
        ],
    )

    assert "Warning" not in said


def test_pods_that_are_not_restricted_would_be_found(api_server, unique):
    metadata = {"name": f"chart-{unique}", "labels": RESTRICTED}
    api_server.expect("POST", "/api/v1/namespaces", {"metadata": metadata})
    (pod,) = HELMS[0].render({"redis": {"existingSecret": "mine"}}).of("Pod")
    pod["metadata"]["namespace"] = f"chart-{unique}"
    pod["spec"]["securityContext"] = {}

    said = api_server.kubectl(f"chart-{unique}")(
        "apply", "-f", "-", "--dry-run=server", "--server-side", manifest=pod
    )

    assert 'Warning: would violate PodSecurity "restricted:latest"' in said


def test_definitions_that_are_there_can_be_taken_over_and_stay():
    chart = (str(CHART), *settings({"redis": {"embedded": True}}))
    try:
        with private_server() as server:

            def helm(command: str, *arguments: str) -> str:
                return HELMS[0].run(command, RELEASE, *arguments, kubeconfig=server.kubeconfig)

            with pytest.raises(Refused, match="exists and cannot be imported into the current release"):
                helm("install", *chart)
            helm("install", *chart, "--take-ownership")
            assert "agentstreams.agentstream.dev" in helm("uninstall", "--no-hooks")
            assert len(server.kubectl("default").list("customresourcedefinitions")) == 3
            # the next release of this name needs to take nothing
            helm("install", *chart)
    except NoProgramsError as missing:
        pytest.skip(str(missing))


async def test_the_hook_has_the_rights_that_it_needs(api_server, kubectl, namespace, tmp_path):
    values = {"redis": {"existingSecret": "mine"}, "watchNamespaces": [namespace]}
    text = HELMS[0].run("template", RELEASE, str(CHART), "--namespace", namespace, *settings(values))
    rendered = HELMS[0].parse(text)
    (job,) = rendered.of("Job")
    spec = job["spec"]["template"]["spec"]
    made = {"ServiceAccount", "Role", "RoleBinding", "Deployment"}
    kubectl.apply(
        *(document for document in rendered if document["kind"] in made),
        {
            "apiVersion": "agentstream.dev/v1alpha1",
            "kind": "AgentStream",
            "metadata": {"name": "tasks", "finalizers": [FINALIZER]},
            "spec": {},
        },
    )
    access = api_server.access_of(namespace, spec["serviceAccountName"], tmp_path / "kubeconfig")
    since = api_server.position

    hook = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "agentstream_operator", *spec["containers"][0]["args"]),
        env=os.environ | {"KUBECONFIG": str(access), "POD_NAMESPACE": namespace},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    # there is no controller here to see what the hook wants
    await until(lambda: kubectl.get("deployment", RELEASE)["spec"]["replicas"] == 0, timeout=60)
    generation = kubectl.get("deployment", RELEASE)["metadata"]["generation"]
    status = json.dumps({"status": {"observedGeneration": generation}})
    kubectl("patch", "deployment", RELEASE, "--subresource=status", "--type=merge", "-p", status)
    said, _ = await asyncio.wait_for(hook.communicate(), 30)

    assert (hook.returncode, said) == (0, b"1 finalizer removed\n")
    assert "finalizers" not in kubectl.get("agentstreams", "tasks")["metadata"]
    user = f"system:serviceaccount:{namespace}:{spec['serviceAccountName']}"
    asked = api_server.requests_since(since, user)
    assert asked
    assert not [request for request in asked if request.forbidden]
