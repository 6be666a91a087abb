"""`agentstream metrics-server` as a process of its own, behind the aggregator of an API server."""

from __future__ import annotations

import base64
import os
import signal
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import trustme

from support.apiserver import ApiServer, write_certificate
from support.helm import CHART, Helm, settings
from support.servers import free_port
from support.waiting import until

NAME = "agentstream-metrics-server"
APISERVICE = "v1beta1.external.metrics.k8s.io"
ROOT = "/apis/external.metrics.k8s.io/v1beta1"
_ACCESS = {"ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"}
_VALUES = {"redis": {"embedded": True}, "metricsServer": {"enabled": True}}


class MetricsServer:
    """The metrics server of a cluster, with exactly the rights that the chart gives it.

    Args:
        server: the API server; there is one of these for it.
        home: its namespace.
        url: of the Redis or Valkey server.
        directory: for its access, certificates and log.

    Attributes:
        port: where it serves, with TLS.
        tls: the directory with its certificate.
        authority: who signs that.
        process: the running process.
    """

    def __init__(self, server: ApiServer, home: str, url: str, directory: Path) -> None:
        self.port, self.health_port = free_port(), free_port()
        self.tls = directory / "tls"
        self.authority: trustme.CA = self.renew()
        self.process: subprocess.Popen[bytes] | None = None
        self._server = server
        self._home = home
        self._url_file = directory / "url"
        self._url_file.write_text(url)
        self._log = directory / "metrics-server.log"
        self._kubeconfig = directory / "metrics-server.kubeconfig"

    def renew(self, authority: trustme.CA | None = None) -> trustme.CA:
        """Writes a new certificate. Returns who has signed it: a new authority if none is given."""
        return write_certificate(self.tls, f"{NAME}.metrics.svc", "localhost", authority=authority)

    def install(self) -> None:
        """Makes what the chart makes, but for the process: the aggregator finds that on this machine."""
        command = ("template", "agentstream", str(CHART), "--namespace", self._home, *settings(_VALUES))
        rendered = Helm(4).parse(Helm(4).run(*command))
        objects = [
            found
            for found in rendered
            if found["kind"] in _ACCESS
            and found["metadata"]["labels"].get("app.kubernetes.io/component") == "metrics-server"
        ]
        service = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": NAME, "namespace": self._home},
            "spec": {"type": "ExternalName", "externalName": "localhost"},
        }
        for namespace in (self._home, "kube-system"):
            there = [o for o in objects if o["metadata"].get("namespace", self._home) == namespace]
            self._server.kubectl(namespace).apply(*there)
        self._server.kubectl(self._home).apply(service)
        (aggregated,) = rendered.of("APIService")
        aggregated["spec"]["service"]["port"] = self.port
        aggregated["spec"]["caBundle"] = base64.b64encode(self.authority.cert_pem.bytes()).decode()
        self._server.kubectl(self._home).apply(aggregated)

    def start(self, *arguments: str) -> None:
        """Starts the process."""
        self._server.access_of(self._home, NAME, self._kubeconfig)
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "agentstream_operator", "metrics-server", *arguments],
                env=self.environment,
                stdout=log,
                stderr=log,
            )

    @property
    def environment(self) -> dict[str, str]:
        """Its settings."""
        return os.environ | {
            "KUBECONFIG": str(self._kubeconfig),
            "AGENTSTREAM_REDIS_URL_FILE": str(self._url_file),
            "AGENTSTREAM_TLS_DIRECTORY": str(self.tls),
            "AGENTSTREAM_EXTERNAL_PORT": str(self.port),
            "AGENTSTREAM_HEALTH_PORT": str(self.health_port),
        }

    async def ready(self) -> None:
        """Waits until it is ready, and the aggregator knows."""
        await until(lambda: self.probe("/readyz")[0] == 200, timeout=30)
        await until(lambda: self.available() == "True", timeout=60)

    def probe(self, path: str) -> tuple[int, str]:
        """What its plain port answers; 0 if it does not.

        Raises:
            RuntimeError: the process has ended; has its log.
        """
        if self.process is not None and self.process.poll() is not None:
            raise RuntimeError(f"the metrics server has ended:\n{self.log}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.health_port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    def available(self) -> str:
        """What the aggregator says of it."""
        found = self._server.expect("GET", f"/apis/apiregistration.k8s.io/v1/apiservices/{APISERVICE}")
        conditions = found.get("status", {}).get("conditions", ())
        return str(next((c["status"] for c in conditions if c["type"] == "Available"), "Unknown"))

    def client(self, directory: Path | None = None) -> ssl.SSLContext:
        """How to connect to it directly, with the certificate in a directory or none."""
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        if directory is not None:
            context.load_cert_chain(directory / "tls.crt", directory / "tls.key")
        return context

    def stop(self) -> int:
        """Asks it to end, and waits. Returns the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(25)
        self.process = None
        return code

    def kill(self) -> None:
        """Ends the process at once, as a crash would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    @property
    def log(self) -> str:
        """What it has printed."""
        return self._log.read_text()


def value_of(answer: dict[str, Any]) -> list[str]:
    """The values in an answer."""
    return [item["value"] for item in answer["items"]]
