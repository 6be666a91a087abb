"""The command line and a real API server: what it finds, what it may not, and kubectl with it as a plugin.

There is no kubelet, so that no port is forwarded: tests/unit/cluster/test_tunnel.py plays one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agentstream_operator.cluster.api import Api, ApiError
from agentstream_operator.cluster.connect import bearer_token, connect
from support.apiserver import ApiServer
from support.kubectl import Kubectl

LABELS = {"app.kubernetes.io/part-of": "agentstream", "app.kubernetes.io/component": "queue-server"}
PROGRAMS = Path(sys.executable).parent


def run(server: ApiServer, file: Path, *command: str) -> tuple[int, str, str]:
    """Runs a command with a kubeconfig, in a folder without an `agentstream dev`."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("AGENTSTREAM_", "KUBERNETES_"))}
    path = f"{PROGRAMS}:{server.binaries}:/usr/bin:/bin"
    ran = subprocess.run(
        command,
        cwd=file.parent,
        env=environment | {"KUBECONFIG": str(file), "PATH": path, "HOME": str(file.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    return ran.returncode, ran.stdout, ran.stderr


def declare(kubectl: Kubectl, namespace: str) -> None:
    """The Service of a queue server, and a pod that says that it is ready."""
    service: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "agentstream-queue-server", "namespace": namespace, "labels": LABELS},
        "spec": {"selector": {"app": "q"}, "ports": [{"port": 443, "targetPort": 8443}]},
    }
    pod: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "q", "namespace": namespace, "labels": {"app": "q"}},
        "spec": {
            "containers": [{"name": "c", "image": "none"}],
            "automountServiceAccountToken": False,
            "serviceAccountName": "default",
        },
    }
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}
    kubectl.apply(account)
    kubectl.apply(service, pod)


@pytest.fixture
def user(api_server: ApiServer, namespace: str, kubectl: Kubectl, tmp_path: Path) -> Path:
    """The kubeconfig of somebody without any rights."""
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "somebody"}}
    kubectl.apply(account)
    return api_server.access_of(namespace, "somebody", tmp_path / "kubeconfig")


def test_what_a_user_may_not_do_is_a_line(api_server: ApiServer, namespace: str, user: Path) -> None:
    code, out, err = run(api_server, user, "agentstream", "lag", "--api-namespace", namespace)
    assert (code, out, len(err.splitlines())) == (3, "", 1)
    assert err.startswith("error: the API server refused it: services is forbidden: User ")


def test_a_pod_that_cannot_be_reached_is_a_line(
    api_server: ApiServer, namespace: str, kubectl: Kubectl, tmp_path: Path
) -> None:
    declare(kubectl, namespace)
    file = tmp_path / "kubeconfig"
    file.write_bytes(api_server.kubeconfig.read_bytes())
    missing = run(api_server, file, "agentstream", "lag", "--api-namespace", namespace)
    assert missing[0] == 3
    assert missing[2] == (
        f"error: no pod of the queue server is ready: kubectl -n {namespace} get pods -l app=q\n"
    )
    ready = {"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}}
    api_server.expect(
        "PATCH",
        f"/api/v1/namespaces/{namespace}/pods/q/status",
        ready,
        content_type="application/merge-patch+json",
    )
    code, out, err = run(api_server, file, "agentstream", "lag", "--api-namespace", namespace)
    assert (code, out, len(err.splitlines())) == (3, "", 1)
    assert err.startswith("error: the API server forwards no ports: ")


def test_a_queue_server_elsewhere_is_named_and_not_asked(
    api_server: ApiServer, namespace: str, kubectl: Kubectl, tmp_path: Path
) -> None:
    declare(kubectl, namespace)
    file = tmp_path / "kubeconfig"
    file.write_bytes(api_server.kubeconfig.read_bytes())
    code, _, err = run(api_server, file, "agentstream", "lag")
    assert code == 3
    assert err.startswith("error: there is no queue server in namespace agentstream-system, but in ")
    assert namespace in err


async def test_a_token_of_the_account_for_people_is_minted_by_who_may(
    api_server: ApiServer, namespace: str, user: Path
) -> None:
    admin = await connect(api_server.kubeconfig)
    try:
        token = await Api(admin.client).token(namespace, "somebody", 3600)
    finally:
        await admin.close()
    review = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}}
    seen = api_server.expect("POST", "/apis/authentication.k8s.io/v1/tokenreviews", review)
    assert seen["status"]["user"]["username"] == f"system:serviceaccount:{namespace}:somebody"
    somebody = await connect(user, "test")
    try:
        assert await bearer_token(somebody.client) is not None
        with pytest.raises(ApiError) as refused:
            await Api(somebody.client).token(namespace, "somebody", 3600)
    finally:
        await somebody.close()
    assert refused.value.code == 403


def test_kubectl_runs_it_as_a_plugin_and_completes_it(api_server: ApiServer, user: Path) -> None:
    assert run(api_server, user, "kubectl", "agentstream", "version")[:2] == (
        0,
        run(api_server, user, "agentstream", "version")[1],
    )
    told = run(api_server, user, "kubectl", "agentstream", "lag", "--help")
    assert told[1].startswith("Usage: kubectl agentstream lag ")
    code, out, err = run(api_server, user, "kubectl", "__complete", "agentstream", "repla")
    assert (code, out.split()[:2]) == (0, ["replay", "replays"]), err
