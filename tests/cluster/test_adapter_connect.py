"""How the API server is found: from inside a pod, or by a kubeconfig."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from agentstream_operator.cluster import connect as module
from agentstream_operator.cluster.api import Api
from agentstream_operator.cluster.connect import ClusterConnection, NoCluster, connect
from agentstream_operator.cluster.kinds import SECRETS
from support.apiserver import ApiServer

LOADER = "kubernetes.aio.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION"
IN_POD = "kubernetes.aio.config.incluster_config"


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in a pod nor with a kubeconfig, until the test says otherwise."""
    for name in ("POD_NAMESPACE", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setattr(LOADER, str(tmp_path / "kubeconfig"))
    monkeypatch.setattr(module, "_NAMESPACE", tmp_path / "namespace")
    monkeypatch.setattr(f"{IN_POD}.SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(f"{IN_POD}.SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))


@pytest.fixture
def pod(api_server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a pod, with the administrator's token as that of its service account."""
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(api_server.port))
    (tmp_path / "namespace").write_text("from-the-pod\n")
    (tmp_path / "token").write_text(api_server.token)
    (tmp_path / "ca.crt").write_bytes(api_server.ca_file.read_bytes())


def kubeconfig(server: ApiServer, tmp_path: Path, **context: Any) -> None:
    """Writes a kubeconfig whose context also says this."""
    content = yaml.safe_load(server.kubeconfig.read_text())
    content["contexts"][0]["context"].update(context)
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(content))


async def works(connection: ClusterConnection) -> bool:
    """Whether the API server answers as it does its administrator."""
    try:
        found = Api(connection.client).list(SECRETS, "default")
        return [secret async for secret in found] == []
    finally:
        await connection.close()


async def test_a_kubeconfig_says_where_the_api_server_is(api_server: ApiServer, tmp_path: Path) -> None:
    kubeconfig(api_server, tmp_path)
    connection = await connect()
    assert not connection.in_cluster
    assert await works(connection)


@pytest.mark.parametrize(("named", "namespace"), [("team-a", "team-a"), (None, "default"), ("", "default")])
async def test_outside_a_pod_our_namespace_is_that_of_the_context(
    api_server: ApiServer, tmp_path: Path, named: str | None, namespace: str
) -> None:
    kubeconfig(api_server, tmp_path, namespace=named)
    connection = await connect()
    await connection.close()
    assert connection.namespace == namespace


async def test_in_a_pod_its_service_account_is_used(api_server: ApiServer, pod: None) -> None:
    connection = await connect()
    assert (connection.in_cluster, connection.namespace) == (True, "from-the-pod")
    assert await works(connection)


async def test_a_pod_that_is_told_its_namespace_believes_that(
    pod: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POD_NAMESPACE", "told")
    connection = await connect()
    await connection.close()
    assert connection.namespace == "told"


async def test_with_the_environment_of_a_pod_and_no_service_account_a_kubeconfig_counts(
    api_server: ApiServer, pod: None, tmp_path: Path
) -> None:
    (tmp_path / "namespace").unlink()
    kubeconfig(api_server, tmp_path)
    connection = await connect()
    await connection.close()
    assert not connection.in_cluster


async def test_a_pod_without_a_token_says_what_is_missing(pod: None, tmp_path: Path) -> None:
    (tmp_path / "token").unlink()
    with pytest.raises(NoCluster, match=r"no cluster: .*token file does not exist"):
        await connect()


@pytest.mark.parametrize(
    "content",
    [
        None,
        "",
        "{",
        "- a\n- b\n",
        "apiVersion: v1\nkind: Config\n",
        "apiVersion: v1\nkind: Config\ncurrent-context: gone\ncontexts: []\nclusters: []\nusers: []\n",
    ],
    ids=["missing", "empty", "no YAML", "a list", "nothing in it", "no such context"],
)
async def test_a_kubeconfig_that_cannot_be_used_is_no_crash(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "kubeconfig").write_text(content)
    with pytest.raises(NoCluster, match=r"^no cluster: run it in a pod, or set KUBECONFIG"):
        await connect()


@pytest.mark.parametrize(
    "cluster",
    [
        {"certificate-authority": "/nowhere/ca.crt"},
        {"certificate-authority-data": "not base64"},
        {"certificate-authority-data": "bm8gUEVN"},
    ],
)
async def test_a_kubeconfig_with_a_wrong_authority_is_no_crash(
    api_server: ApiServer, tmp_path: Path, cluster: dict[str, str]
) -> None:
    content = yaml.safe_load(api_server.kubeconfig.read_text())
    content["clusters"][0]["cluster"] = {"server": api_server.url, **cluster}
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(content))
    with pytest.raises(NoCluster, match=r"^no cluster: run it in a pod, or set KUBECONFIG"):
        await connect()


@pytest.mark.parametrize(("variable", "trusted"), [({}, False), ({"HTTPS_PROXY": "http://p:3128"}, True)])
async def test_proxies_are_used_where_there_are_any(
    pod: None, monkeypatch: pytest.MonkeyPatch, variable: dict[str, str], *, trusted: bool
) -> None:
    for name in ("HTTP_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name, value in variable.items():
        monkeypatch.setenv(name, value)
    connection = await connect()
    await connection.close()
    assert connection.client.configuration.client_session_kwargs == {"trust_env": trusted}
