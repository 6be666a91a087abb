"""`agentstream queue-server` as a process of its own, with the rights that the chart gives it."""

from __future__ import annotations

import os
import signal
import ssl
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from support.apiserver import ApiServer, write_certificate
from support.helm import CHART, Helm, settings
from support.servers import free_port
from support.waiting import until

NAME = "agentstream-queue-server"
_ACCESS = {"ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"}
_VALUES = {"redis": {"embedded": True}, "queueServer": {"enabled": True}}
_ROLES = {"agentstream-view", "agentstream-edit"}


class QueueServer:
    """The queue server of a cluster.

    Attributes:
        port: where it serves, with TLS.
        log: the file with what it prints.
    """

    def __init__(self, server: ApiServer, home: str, url: str, directory: Path) -> None:
        self.port, self.health_port = free_port(), free_port()
        self.log = directory / "queue-server.log"
        self._tls = directory / "tls"
        self._authority = write_certificate(self._tls, f"{NAME}.{home}.svc", "localhost")
        self._server, self._home, self._directory = server, home, directory
        self._process: subprocess.Popen[bytes] | None = None
        (directory / "url").write_text(url)

    def install(self) -> None:
        """Makes the accounts and roles of the chart, for it and for its callers."""
        command = ("template", "agentstream", str(CHART), "--namespace", self._home, *settings(_VALUES))
        rendered = Helm(4).parse(Helm(4).run(*command))
        objects = [
            found
            for found in rendered
            if found["kind"] in _ACCESS
            and (
                found["metadata"]["labels"].get("app.kubernetes.io/component") == "queue-server"
                or found["metadata"]["name"] in _ROLES
            )
        ]
        self._server.kubectl(self._home).apply(*objects)

    def start(self, *arguments: str, env: Mapping[str, str] | None = None) -> None:
        """Starts the process."""
        kubeconfig = self._server.access_of(self._home, NAME, self._directory / "kubeconfig")
        environment = {
            "KUBECONFIG": str(kubeconfig),
            "AGENTSTREAM_REDIS_URL_FILE": str(self._directory / "url"),
            "AGENTSTREAM_TLS_DIRECTORY": str(self._tls),
            "AGENTSTREAM_QUEUE_PORT": str(self.port),
            "AGENTSTREAM_HEALTH_PORT": str(self.health_port),
            **(env or {}),
        }
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "agentstream_operator", "queue-server", *arguments],
                env=os.environ | environment,
                stdout=log,
                stderr=log,
            )

    async def ready(self) -> None:
        """Waits until it is ready.

        Raises:
            AssertionError: it has ended.
        """

        def is_ready() -> bool:
            assert self._process is not None
            assert self._process.poll() is None, self.log.read_text()
            try:
                return httpx.get(f"http://127.0.0.1:{self.health_port}/readyz").status_code == 200
            except httpx.TransportError:
                return False

        await until(is_ready, timeout=30)

    def client(self, token: str | None, certificate: Path | None = None) -> httpx.AsyncClient:
        """A client with a token, and with a client certificate in a directory if one is given."""
        context = ssl.create_default_context()
        self._authority.configure_trust(context)
        if certificate is not None:
            context.load_cert_chain(certificate / "tls.crt", certificate / "tls.key")
        headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
        return httpx.AsyncClient(base_url=f"https://localhost:{self.port}", headers=headers, verify=context)

    def metrics(self) -> str:
        """What it exposes to Prometheus."""
        return httpx.get(f"http://127.0.0.1:{self.health_port}/metrics").text

    def stop(self) -> int:
        """Asks it to end, and waits. Returns the exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        code = self._process.wait(25)
        self._process = None
        return code


def token_of(server: ApiServer, namespace: str, account: str) -> str:
    """A fresh token of a ServiceAccount."""
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
    found: dict[str, Any] = server.expect("POST", path, body)
    return str(found["status"]["token"])


def bound(namespace: str, account: str, *roles: str) -> list[dict[str, Any]]:
    """An account, bound to ClusterRoles in its namespace."""
    group = "rbac.authorization.k8s.io"
    bindings = [
        {
            "apiVersion": f"{group}/v1",
            "kind": "RoleBinding",
            "metadata": {"name": f"{account}-{role}", "namespace": namespace},
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": namespace}],
        }
        for role in roles
    ]
    owner = {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": account, "namespace": namespace},
    }
    return [owner, *bindings]
