"""`agentstream plan` and a real API server: what it says is what `kubectl apply` then does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.test_cli import run
from support.apiserver import ApiServer
from support.kubectl import Kubectl
from support.queue_server import bound
from unit.resources.manifests import a_group, a_replay, a_stream

API = "/apis/agentstream.dev/v1alpha1/namespaces"


class Folder:
    """A folder with a kubeconfig and a manifest."""

    def __init__(self, server: ApiServer, namespace: str, directory: Path) -> None:
        self.server, self.namespace, self.directory = server, namespace, directory
        self.kubeconfig = directory / "kubeconfig"
        self.kubeconfig.write_bytes(server.kubeconfig.read_bytes())

    def write(self, *manifests: dict[str, Any]) -> str:
        file = self.directory / "m.yaml"
        file.write_text(yaml.safe_dump_all(manifests))
        return str(file)

    def plan(self, *manifests: dict[str, Any]) -> tuple[int, str, str]:
        return run(
            self.server, self.kubeconfig, "agentstream", "plan", "-n", self.namespace, self.write(*manifests)
        )

    def spec(self, manifest: dict[str, Any]) -> dict[str, Any]:
        """The spec of a resource that is there."""
        path = f"{API}/{self.namespace}/{manifest['kind'].lower()}s/{manifest['metadata']['name']}"
        found: dict[str, Any] = self.server.expect("GET", path)
        return found["spec"]  # type: ignore[no-any-return]

    def changed(self, *manifests: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
        """The fields that the plan for a single resource says change."""
        command = ("agentstream", "plan", "-o", "json", "-n", self.namespace, self.write(*manifests))
        _, out, err = run(self.server, self.kubeconfig, *command)
        assert err == ""
        changes = json.loads(out)["changes"]
        return {f["path"]: (f["before"], f["after"]) for each in changes for f in each["fields"]}


@pytest.fixture
def folder(api_server: ApiServer, namespace: str, tmp_path: Path) -> Folder:
    return Folder(api_server, namespace, tmp_path)


def test_what_is_new_is_created_and_then_nothing_changes(folder: Folder, kubectl: Kubectl) -> None:
    manifests = a_stream(), a_group(), a_replay()
    code, out, _ = folder.plan(*manifests)
    assert code == 1
    where = folder.namespace
    assert [line for line in out.splitlines() if line.startswith("create")] == [
        f"create   AgentStream {where}/tasks",
        f"create   ConsumerGroup {where}/coder",
        f"create   StreamReplay {where}/again",
    ]
    assert folder.server.call("GET", f"{API}/{where}/agentstreams/tasks")[0] == 404
    kubectl.apply(*manifests)
    assert folder.plan(*manifests) == (0, "3 as declared\n", "")


@pytest.mark.parametrize("way", ["--server-side", "--server-side=false"])
def test_it_says_what_apply_then_does_also_with_what_is_left_out_and_what_others_set(
    folder: Folder, kubectl: Kubectl, way: str
) -> None:
    template = {"spec": {"containers": [{"name": "c", "image": "a:1"}]}}
    before = a_group(template=template, suspend=True, deliver="All")
    kubectl("apply", way, "-f", folder.write(before))
    path = f"{API}/{folder.namespace}/consumergroups/coder/scale"
    folder.server.expect(
        "PATCH", path, {"spec": {"replicas": 3}}, content_type="application/merge-patch+json"
    )
    after = a_group(template=template, delivery={"lease": "20s"}, deliver="All")
    was = folder.spec(after)
    told = folder.changed(after)
    assert folder.spec(after) == was
    assert told == {"spec.suspend": (True, False), "spec.delivery.lease": ("10s", "20s")}
    kubectl("apply", way, "-f", folder.write(after))
    now = folder.spec(after)
    assert (now["suspend"], now["delivery"]["lease"], now["replicas"]) == (False, "20s", 3)
    assert folder.changed(after) == {}


def test_what_the_api_server_would_refuse_is_refused_in_its_words(folder: Folder, kubectl: Kubectl) -> None:
    kubectl.apply(a_stream(), a_group())
    code, out, _ = folder.plan(a_stream(key="other"), a_group(startFrom="Beginning"))
    assert code == 2
    assert "key is immutable" in out
    assert "startFrom is immutable" in out
    assert out.endswith("2 refused\n")
    elsewhere = a_stream()
    elsewhere["metadata"]["namespace"] = "nowhere"
    code, out, _ = folder.plan(elsewhere)
    assert code == 2
    assert 'namespaces "nowhere" not found' in out


def test_a_group_whose_stream_is_nowhere_is_said(folder: Folder, kubectl: Kubectl) -> None:
    assert "StreamMissing" in folder.plan(a_group())[1]
    assert "StreamMissing" not in folder.plan(a_stream(), a_group())[1]
    kubectl.apply(a_stream())
    assert "StreamMissing" not in folder.plan(a_group())[1]


def test_one_who_may_not_look_or_write_is_told_in_a_line(
    folder: Folder, kubectl: Kubectl, api_server: ApiServer
) -> None:
    kubectl.apply(*bound(folder.namespace, "nobody"))
    manifest = folder.write(a_stream())
    folder.kubeconfig.unlink()
    user = api_server.access_of(folder.namespace, "nobody", folder.kubeconfig)
    code, out, err = run(api_server, user, "agentstream", "plan", manifest)
    assert (code, out, len(err.splitlines())) == (3, "", 1)
    assert "agentstreams" in err
    rules = [{"apiGroups": ["agentstream.dev"], "resources": ["*"], "verbs": ["get"]}]
    role = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "r"}}
    subject = {"kind": "ServiceAccount", "name": "nobody", "namespace": folder.namespace}
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "r"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"},
        "subjects": [subject],
    }
    kubectl.apply({**role, "rules": rules}, binding)
    code, out, _ = run(api_server, user, "agentstream", "plan", manifest)
    assert code == 2
    assert "the API server refuses it: agentstreams.agentstream.dev is forbidden" in out
