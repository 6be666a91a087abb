"""`agentstream operator` as a process of its own, with exactly the rights that the chart gives it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import yaml

from support.apiserver import ApiServer, Request
from support.helm import CHART, Helm
from support.servers import free_port

_ACCESS = {
    *("ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"),
    *("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"),
}
_LEASE = "leases"

_SLOW_TO_GIVE_UP = """\
from agentstream_operator.cli import main
from agentstream_operator.cluster import leader

leader.DURATION, leader._DEADLINE = 100, 90.0
main()
"""
"""The operator, with a Lease that outlasts any restart of the API server on a busy machine."""


def grant(server: ApiServer, home: str, namespaces: tuple[str, ...]) -> str:
    """Gives the operator in namespace `home` what the chart gives it; for all namespaces if none is named.

    Returns the operator's name as a user of the API server.
    """
    where = f"watchNamespaces={json.dumps(namespaces)}" if namespaces else "allNamespaces=true"
    values = ["--set", "redis.embedded=true", "--set-json", where]
    rendered = Helm(4).run("template", "agentstream", str(CHART), "--namespace", home, *values)
    objects = [document for document in yaml.safe_load_all(rendered) if document]
    # an object of the whole cluster has the same name in every release
    for found in objects:
        if found["kind"].startswith(("Cluster", "ValidatingAdmissionPolicy")):
            found["metadata"]["name"] += f"-{home}"
        if found["kind"] == "ValidatingAdmissionPolicyBinding":
            found["spec"]["policyName"] += f"-{home}"
        if found.get("roleRef", {}).get("kind") == "ClusterRole":
            found["roleRef"]["name"] += f"-{home}"
    server.kubectl(home).apply(*(found for found in objects if found["kind"] in _ACCESS))
    (account,) = {
        found["spec"]["template"]["spec"]["serviceAccountName"]
        for found in objects
        if found["kind"] == "Deployment"
    }
    return f"system:serviceaccount:{home}:{account}"


class Deployed:
    """The operator of one installation.

    Args:
        server: the API server.
        user: whom it is there, see `grant`.
        url: of the Redis or Valkey server.
        directory: for its access and its log.
        namespaces: the watched ones; all if there are none.
        pod: the name of its pod.

    Attributes:
        user: as above.
        process: the running process.
        metrics_port: where it answers scrapes.
    """

    def __init__(
        self,
        server: ApiServer,
        user: str,
        url: str,
        directory: Path,
        *,
        namespaces: tuple[str, ...] = (),
        pod: str = "agentstream-0",
    ) -> None:
        self.user = user
        self.process: subprocess.Popen[bytes] | None = None
        self._server = server
        self._url_file = directory / f"{pod}.url"
        self._url_file.write_text(url)
        self._namespaces = namespaces
        self._pod = pod
        self._log = directory / f"{pod}.log"
        self._kubeconfig = directory / f"{pod}.kubeconfig"
        self.metrics_port, self._health_port = free_port(), free_port()
        self._since, self._read = server.position, 0

    @property
    def home(self) -> str:
        """The namespace in which it lives."""
        return self.user.split(":")[2]

    def start(self, *arguments: str, long_lease: bool = False) -> None:
        """Starts the process; with a long Lease, it goes on for 90 s without the API server instead of 6."""
        self._server.access_of(self.home, self.user.split(":")[3], self._kubeconfig)
        environment = os.environ | {
            "KUBECONFIG": str(self._kubeconfig),
            "POD_NAMESPACE": self.home,
            "POD_NAME": self._pod,
            "AGENTSTREAM_REDIS_URL_FILE": str(self._url_file),
            "AGENTSTREAM_NAMESPACES": " ".join(self._namespaces),
            "AGENTSTREAM_METRICS_PORT": str(self.metrics_port),
            "AGENTSTREAM_HEALTH_PORT": str(self._health_port),
        }
        program = ("-c", _SLOW_TO_GIVE_UP) if long_lease else ("-m", "agentstream_operator")
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *program, "operator", *arguments],
                env=environment,
                stdout=log,
                stderr=log,
            )

    async def ready(self, deadline: float = 30.0) -> None:
        """Waits until its probe says that it is ready.

        Raises:
            RuntimeError: it ended, or was not; has its log.
        """
        await self._until_page(self._health_port, "/readyz", "", deadline)

    async def leading(self, deadline: float = 60.0) -> None:
        """Waits until it is the one of several that works.

        Raises:
            RuntimeError: it ended, or was not; has its log.
        """
        await self._until_page(self.metrics_port, "/metrics", "\nagentstream_leader 1.0\n", deadline)

    def kill(self) -> None:
        """Ends the process at once, as a crash would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def stop(self) -> int:
        """Asks it to end, and waits for as long as Kubernetes would. Returns the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(25)
        self.process = None
        return code

    async def metrics(self) -> dict[str, float]:
        """Its metrics: values by name and labels, such as `agentstream_resources{kind="AgentStream",…}`."""
        text = await asyncio.to_thread(_page, self.metrics_port, "/metrics")
        lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in lines}

    def most_memory(self) -> int:
        """The most memory that the process has had, in MiB."""
        assert self.process is not None
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) // 1024

    async def probe(self, path: str) -> tuple[int, str]:
        """What a probe of the kubelet gets."""
        try:
            return 200, await asyncio.to_thread(_page, self._health_port, path)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    @property
    def log(self) -> str:
        """What it has printed."""
        return self._log.read_text()

    def forget(self) -> None:
        """Lets `complaints` be about what happens from now on."""
        self._since, self._read = self._server.position, len(self.log)

    def complaints(self) -> list[str]:
        """What a working operator never does: ask for what it has no right to, print an error or a trace."""
        forbidden = [str(request) for request in self.requests() if request.forbidden]
        # an entry begins with a time, or as JSON; a trace belongs to the entry before it
        entries = re.split(r"\n(?=\d{4}-\d\d-\d\dT|\{)", self.log[self._read :])
        return forbidden + [entry for entry in entries if " ERROR " in entry or "Traceback" in entry]

    def requests(self, since: int | None = None) -> list[Request]:
        """What it asked of the API server, since a position in the audit log or since it was made."""
        return self._server.requests_since(self._since if since is None else since, self.user)

    def writes(self, since: int | None = None) -> list[Request]:
        """What it wanted to change there, its lease left out."""
        return [r for r in self.requests(since) if r.writes and r.resource != _LEASE]

    async def _until_page(self, port: int, path: str, part: str, deadline: float) -> None:
        try:
            async with asyncio.timeout(deadline):
                while not await self._page_has(port, path, part):  # noqa: ASYNC110 - it is another process
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise RuntimeError(f"no {part or 'good'} answer of {path}:\n{self.log}") from None

    async def _page_has(self, port: int, path: str, part: str) -> bool:
        if self.process is None or self.process.poll() is not None:
            raise RuntimeError(f"the operator has ended:\n{self.log}")
        try:
            return part in await asyncio.to_thread(_page, port, path)
        except OSError:
            return False


def _page(port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as response:
        body: bytes = response.read()
        return body.decode()
