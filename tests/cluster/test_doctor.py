"""`agentstream doctor` and a real API server: CRDs, the operator, rights, clocks."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.test_cli import run
from support.apiserver import ApiServer
from support.kubectl import Kubectl
from support.queue_server import bound
from support.servers import free_port

OURS = version("agentstream-operator")
MERGE = "application/merge-patch+json"
CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/agentstreams.agentstream.dev"


def an_operator(namespace: str, version: str = OURS) -> dict[str, Any]:
    """The operator's Deployment, as the chart labels it."""
    labels = {"app.kubernetes.io/part-of": "agentstream", "app.kubernetes.io/component": "operator"}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": "agentstream",
            "namespace": namespace,
            "labels": labels | {"app.kubernetes.io/version": version},
        },
        "spec": {
            "selector": {"matchLabels": {"app": "o"}},
            "template": {
                "metadata": {"labels": {"app": "o"}},
                "spec": {"containers": [{"name": "c", "image": "none"}]},
            },
        },
    }


def ready(server: ApiServer, namespace: str) -> None:
    """Says that the operator's pod is ready, as a kubelet would."""
    path = f"/apis/apps/v1/namespaces/{namespace}/deployments/agentstream/status"
    server.expect("PATCH", path, {"status": {"replicas": 1, "readyReplicas": 1}}, content_type=MERGE)


def doctor(server: ApiServer, file: Path, *arguments: str) -> tuple[int, list[tuple[str, str, str]]]:
    """Runs it. Returns the exit code, and verdict, check and text of each finding."""
    code, out, err = run(server, file, "agentstream", "doctor", "-o", "json", *arguments)
    assert err == ""
    return code, [(found["verdict"], found["check"], found["text"]) for found in json.loads(out)["checks"]]


@pytest.fixture
def admin(api_server: ApiServer, tmp_path: Path) -> Path:
    file = tmp_path / "admin" / "kubeconfig"
    file.parent.mkdir()
    file.write_bytes(api_server.kubeconfig.read_bytes())
    return file


def test_all_but_a_queue_server_that_is_not_there_is_fine(
    api_server: ApiServer, namespace: str, kubectl: Kubectl, admin: Path
) -> None:
    kubectl.apply(an_operator(namespace))
    _, before = doctor(api_server, admin, "--api-namespace", namespace)
    assert ("wrong", "operator", f"{namespace}/agentstream: 0 of 1 pods ready") in before
    ready(api_server, namespace)
    code, found = doctor(api_server, admin, "--api-namespace", namespace)
    assert code == 1
    [wrong] = [each for each in found if each[0] != "ok"]
    assert wrong[:2] == ("wrong", "queue server")
    assert {check for _, check, _ in found} == {
        *("kubernetes", "clock", "crd", "operator", "rights", "queue server")
    }
    assert ("ok", "operator", f"version {OURS}, as this command") in found
    assert [text for _, check, text in found if check == "crd"] == [
        f"{plural}.agentstream.dev is of this version"
        for plural in ("agentstreams", "consumergroups", "streamreplays")
    ]


def test_what_one_may_not_look_at_is_a_note_and_no_mistake(
    api_server: ApiServer, namespace: str, kubectl: Kubectl, tmp_path: Path
) -> None:
    kubectl.apply(*bound(namespace, "somebody"))
    user = api_server.access_of(namespace, "somebody", tmp_path / "kubeconfig")
    _, found = doctor(api_server, user, "--api-namespace", namespace)
    notes = [(check, text) for verdict, check, text in found if verdict == "note"]
    assert [check for check, _ in notes] == ["crd"] * 3 + ["operator"] + ["rights"] * 4
    assert ("rights", f"you may not read dead letters in namespace {namespace}") in notes
    assert "forbidden" in notes[0][1]


@pytest.fixture
def older(own_api_server: ApiServer) -> ApiServer:
    """An API server with a CRD of another version."""
    definition = own_api_server.expect("GET", CRD)
    spec = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    del spec["properties"]["retention"]["properties"]["maxBytes"]
    own_api_server.expect("PUT", CRD, definition)
    own_api_server.call("DELETE", CRD.replace("agentstreams.", "streamreplays."))
    return own_api_server


def test_definitions_of_another_version_and_missing_ones_are_found(older: ApiServer, tmp_path: Path) -> None:
    file = tmp_path / "kubeconfig"
    file.write_bytes(older.kubeconfig.read_bytes())
    code, found = doctor(older, file)
    assert code == 1
    wrong = [text for verdict, check, text in found if (verdict, check) == ("wrong", "crd")]
    assert len(wrong) == 2
    assert wrong[0].endswith("retention.properties.maxBytes differs")
    assert wrong[1] == "streamreplays.agentstream.dev is not there"
    assert ("wrong", "operator", "there is none in namespace agentstream-system") in found


def test_an_api_server_that_is_away_or_does_not_know_the_caller_is_exit_code_3(
    api_server: ApiServer, admin: Path
) -> None:
    config = yaml.safe_load(admin.read_text())
    config["users"][0]["user"]["token"] = "unknown"
    admin.write_text(yaml.safe_dump(config))
    code, [(verdict, check, _)] = doctor(api_server, admin)
    assert (code, verdict, check) == (3, "wrong", "reach")
    config["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{free_port()}"
    admin.write_text(yaml.safe_dump(config))
    code, [(_, _, text)] = doctor(api_server, admin)
    assert code == 3
    assert text.startswith("the API server does not answer: ")
