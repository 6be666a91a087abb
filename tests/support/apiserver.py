"""A real Kubernetes API server for tests: etcd and kube-apiserver on the loopback interface, nothing else.

There are no controllers: nothing is scheduled or garbage-collected, a deleted namespace stays `Terminating`,
and a new one has no service account.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import secrets
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from http import HTTPStatus
from pathlib import Path
from typing import Any

import trustme
import yaml

from agentstream_operator.resources.meta import API_VERSION
from support.kubectl import Kubectl
from support.servers import free_port

ROOT = Path(__file__).parents[2]
ADMIN = "admin"
FRONT_PROXY = "front-proxy-client"
WRITES = frozenset({"create", "update", "patch", "delete", "deletecollection"})

# who asked for what and what came of it; the server's own requests are nobody's business
_AUDIT_POLICY = """\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: None
  users: ["system:apiserver"]
- level: Metadata
"""


class NoProgramsError(Exception):
    """There is no kube-apiserver on this machine; says what would bring one."""


def programs() -> Path:
    """The directory with etcd, kube-apiserver and kubectl; makes them where that is possible.

    Raises:
        NoProgramsError: they are not there and cannot be made.
    """
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if assets:
        return Path(assets)
    recipes = (ROOT.parent / "shared" / "kube" / "up", ROOT / "e2e" / "airgap" / "up")
    recipe = next((path for path in recipes if path.exists()), None)
    if recipe is None:
        raise NoProgramsError("set KUBEBUILDER_ASSETS to a directory with etcd, kube-apiserver and kubectl")
    made = subprocess.run([recipe, "bin"], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        last = (made.stderr.strip().splitlines() or ["it failed"])[-1]
        raise NoProgramsError(f"{recipe.relative_to(ROOT.parent)} bin: {last}")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("KUBE_CACHE") or cache / "kubebox") / "bin"


@dataclass(frozen=True)
class Request:
    """A request that the API server answered, from its audit log.

    Attributes:
        user: who made it.
        agent: what the client calls itself.
        verb: such as `get`, `watch` or `patch`.
        resource: its plural, with the subresource: `agentstreams/status`.
        namespace: of the object; empty if it has none.
        name: of the object; empty for collections.
        code: the HTTP status of the answer.
        forbidden: whether the user has no right to it.
    """

    user: str
    agent: str
    verb: str
    resource: str
    namespace: str
    name: str
    code: int
    forbidden: bool

    @property
    def writes(self) -> bool:
        """Whether it was to change something."""
        return self.verb in WRITES

    @classmethod
    def of(cls, event: dict[str, Any]) -> Request:
        """Reads an event of the audit log."""
        about = event.get("objectRef", {})
        parts = (about.get("resource", event["requestURI"]), about.get("subresource"))
        return cls(
            event["user"].get("username", ""),
            event.get("userAgent", ""),
            event["verb"],
            "/".join(part for part in parts if part),
            about.get("namespace", ""),
            about.get("name", ""),
            event.get("responseStatus", {}).get("code", 0),
            # 403 is also the answer in a namespace that ends
            event.get("annotations", {}).get("authorization.k8s.io/decision") == "forbid",
        )


def _parse(data: bytes) -> dict[str, Any]:
    """Reads an answer, however deeply a test has nested what is in it."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)
    try:
        answer: dict[str, Any] = json.loads(data)
    finally:
        sys.setrecursionlimit(before)
    return answer


@dataclass
class ApiServer:
    """An API server and its etcd.

    Attributes:
        binaries: the directory with the programs.
        directory: where everything is kept.
        port: the server's port, the same after a restart.
        token: the administrator's.
        processes: those that run.
        front_proxies: who signs certificates of front proxies.
    """

    binaries: Path
    directory: Path
    port: int = field(default_factory=free_port)
    token: str = field(default_factory=lambda: secrets.token_hex(16), repr=False)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    front_proxies: trustme.CA = field(default_factory=trustme.CA, repr=False)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def ca_file(self) -> Path:
        """The certificate of who signed the server's; the server makes both when it first starts."""
        return self.directory / "certificates" / "apiserver.crt"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's access."""
        return self.directory / "kubeconfig"

    def start(self, deadline: float = 60.0) -> None:
        """Starts both processes and waits until the server is ready.

        Raises:
            RuntimeError: it did not become ready; has the end of its log.
        """
        self._write_settings()
        client, peer = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
        self._run(
            "etcd",
            f"--data-dir={self.directory / 'etcd'}",
            # a crash of the machine may lose what tests wrote
            "--unsafe-no-fsync",
            *(f"--listen-client-urls={client}", f"--advertise-client-urls={client}"),
            *(f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}"),
            f"--initial-cluster=default={peer}",
        )
        key = self.directory / "service-accounts.key"
        self._run(
            "kube-apiserver",
            f"--etcd-servers={client}",
            *("--bind-address=127.0.0.1", f"--secure-port={self.port}", f"--cert-dir={self.ca_file.parent}"),
            *("--service-cluster-ip-range=10.0.0.0/24", "--endpoint-reconciler-type=none"),
            *("--authorization-mode=RBAC", f"--token-auth-file={self.directory / 'tokens'}"),
            # it speaks for its callers to servers that extend it
            f"--requestheader-client-ca-file={self._front_proxy / 'ca.crt'}",
            f"--requestheader-allowed-names={FRONT_PROXY}",
            *(
                "--requestheader-username-headers=X-Remote-User",
                "--requestheader-group-headers=X-Remote-Group",
            ),
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            f"--proxy-client-cert-file={self._front_proxy / 'tls.crt'}",
            f"--proxy-client-key-file={self._front_proxy / 'tls.key'}",
            "--service-account-issuer=https://kubernetes.default.svc",
            *(f"--service-account-key-file={key}", f"--service-account-signing-key-file={key}"),
            # pods may be made in namespaces where no controller has put a service account
            "--disable-admission-plugins=ServiceAccount",
            f"--audit-policy-file={self.directory / 'audit-policy'}",
            *(f"--audit-log-path={self._audit_log}", "--audit-log-maxsize=0"),
        )
        until = time.monotonic() + deadline
        while not self._ready():
            if time.monotonic() > until or any(p.poll() is not None for p in self.processes.values()):
                self.kill()
                logs = [(self.directory / f"{name}.log").read_text()[-2000:] for name in self.processes]
                raise RuntimeError("\n".join(["the API server did not become ready:", *logs]))
            time.sleep(0.02)
        self._write_kubeconfig(self.kubeconfig, self.token, "default")

    def kill(self) -> None:
        """Ends both processes at once; on a request to end the server would wait a minute for its clients."""
        for process in reversed(self.processes.values()):
            process.kill()
            process.wait()

    def restart(self) -> None:
        """Crashes and starts again, with what was stored."""
        self.kill()
        self.start()

    def kubectl(self, namespace: str = "default", kubeconfig: Path | None = None) -> Kubectl:
        """The command as the administrator, or whom a kubeconfig names, types it."""
        return Kubectl(
            self.binaries / "kubectl", kubeconfig or self.kubeconfig, namespace, self.directory / "cache"
        )

    def apply_crds(self) -> None:
        """Applies this project's CRDs and waits until the server knows them everywhere."""
        kubectl = self.kubectl()
        kubectl("apply", "--server-side", "-f", str(ROOT / "crds"))
        kubectl("wait", "--for=condition=Established", "--timeout=30s", "-f", str(ROOT / "crds"))
        until = time.monotonic() + 30
        # kubectl reads the schema, which follows a moment later
        while f"/apis/{API_VERSION}" not in json.dumps(self.call("GET", "/openapi/v3")[1]):
            if time.monotonic() > until:
                raise RuntimeError("the server does not publish the schema of the CRDs")
            time.sleep(0.02)
        # for two seconds the server lets the first object wait, and ends watches
        for kind, spec in {"AgentStream": {}, "ConsumerGroup": {"streamRef": {"name": "a"}}}.items():
            path = f"/apis/{API_VERSION}/namespaces/default/{kind.lower()}s?dryRun=All"
            body = {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": "a"}, "spec": spec}
            self.expect("POST", path, body)

    def create_namespace(self, name: str) -> None:
        """Makes a namespace."""
        self.expect("POST", "/api/v1/namespaces", {"metadata": {"name": name}})

    def drop_policies(self, home: str) -> None:
        """Deletes the policies of an operator in a namespace: with each, the server takes longer."""
        for plural in ("validatingadmissionpolicybindings", "validatingadmissionpolicies"):
            path = f"/apis/admissionregistration.k8s.io/v1/{plural}"
            for found in self.expect("GET", path)["items"]:
                if found["metadata"]["name"].endswith(f"-{home}"):
                    self.call("DELETE", f"{path}/{found['metadata']['name']}")

    def call(
        self, method: str, path: str, body: Any = None, *, content_type: str = "application/json"
    ) -> tuple[int, dict[str, Any]]:
        """A request as administrator. Returns the HTTP status and what was answered, errors included."""
        request = urllib.request.Request(
            self.url + path,
            None if body is None else json.dumps(body).encode(),
            {"Authorization": f"Bearer {self.token}", "Content-Type": content_type},
            method=method,
        )
        try:
            with urllib.request.urlopen(request, context=self._tls, timeout=30) as response:
                return response.status, _parse(response.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, _parse(error.read())

    def expect(self, method: str, path: str, body: Any = None, **more: Any) -> dict[str, Any]:
        """As `call`, for what must succeed.

        Raises:
            RuntimeError: it does not; has the server's message.
        """
        status, answer = self.call(method, path, body, **more)
        if status >= HTTPStatus.MULTIPLE_CHOICES:
            raise RuntimeError(f"{method} {path}: {answer.get('message', answer)}")
        return answer

    def access_of(self, namespace: str, service_account: str, file: Path) -> Path:
        """Writes a kubeconfig with a fresh token of a service account, and its namespace as the default."""
        answer = self.expect(
            "POST",
            f"/api/v1/namespaces/{namespace}/serviceaccounts/{service_account}/token",
            {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}},
        )
        self._write_kubeconfig(file, answer["status"]["token"], namespace)
        return file

    def requests_since(self, position: int, user: str | None = None) -> list[Request]:
        """What was asked of the server since `position`; by anybody, or by one user."""
        with self._audit_log.open("rb") as log:
            log.seek(position)
            lines = log.read().split(b"\n")
        # the last one is empty, or not written to its end
        events = [json.loads(line) for line in lines[:-1] if user is None or user.encode() in line]
        seen = [Request.of(event) for event in events]
        return [request for request in seen if user in {None, request.user}]

    @property
    def position(self) -> int:
        """Where the record of requests ends just now; for `requests_since`."""
        return self._audit_log.stat().st_size

    @property
    def _front_proxy(self) -> Path:
        """Where the certificate is that the server shows to servers that extend it."""
        return self.directory / "front-proxy"

    @property
    def _audit_log(self) -> Path:
        return self.directory / "audit.log"

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.ca_file)

    def _ready(self) -> bool:
        with contextlib.suppress(OSError, ssl.SSLError):
            request = urllib.request.Request(
                f"{self.url}/readyz", headers={"Authorization": f"Bearer {self.token}"}
            )
            with urllib.request.urlopen(request, context=self._tls, timeout=5):
                return True
        return False

    def _write_settings(self) -> None:
        key = self.directory / "service-accounts.key"
        if not key.exists():
            key.write_text(_private_key())
            write_certificate(self._front_proxy, common_name=FRONT_PROXY, authority=self.front_proxies)
        (self.directory / "tokens").write_text(f"{self.token},{ADMIN},{ADMIN},system:masters\n")
        (self.directory / "audit-policy").write_text(_AUDIT_POLICY)

    def _write_kubeconfig(self, file: Path, token: str, namespace: str) -> None:
        authority = base64.b64encode(self.ca_file.read_bytes()).decode()
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {"name": "test", "cluster": {"server": self.url, "certificate-authority-data": authority}}
            ],
            "users": [{"name": "test", "user": {"token": token}}],
            "contexts": [
                {"name": "test", "context": {"cluster": "test", "user": "test", "namespace": namespace}}
            ],
            "current-context": "test",
        }
        file.write_text(yaml.safe_dump(content))

    def _run(self, program: str, *arguments: str) -> None:
        with (self.directory / f"{program}.log").open("ab") as log:
            self.processes[program] = subprocess.Popen(
                [self.binaries / program, *arguments], stdout=log, stderr=log
            )


def write_certificate(
    directory: Path, *names: str, common_name: str | None = None, authority: trustme.CA | None = None
) -> trustme.CA:
    """Writes a new certificate, its key and that of who signed it, as a Secret of certificates has them.

    Args:
        directory: where `tls.crt`, `tls.key` and `ca.crt` go.
        names: hosts that the certificate is for.
        common_name: whom it is for.
        authority: who signs it; a new one if absent.

    Returns:
        Who has signed it.
    """
    directory.mkdir(exist_ok=True)
    authority = authority or trustme.CA()
    made = authority.issue_cert(*names, common_name=common_name)
    (directory / "tls.key").write_bytes(made.private_key_pem.bytes())
    (directory / "tls.crt").write_bytes(b"".join(pem.bytes() for pem in made.cert_chain_pems))
    authority.cert_pem.write_to_path(directory / "ca.crt")
    return authority


def _private_key() -> str:
    """A new key on the curve P-256 in PEM (RFC 5915), without the public part, which its readers compute."""
    version, curve = bytes.fromhex("30310201010420"), bytes.fromhex("a00a06082a8648ce3d030107")
    text = base64.b64encode(version + secrets.token_bytes(32) + curve).decode()
    return f"-----BEGIN EC PRIVATE KEY-----\n{text}\n-----END EC PRIVATE KEY-----\n"


@contextlib.contextmanager
def private_server() -> Iterator[ApiServer]:
    """A server of one's own with the CRDs, which may be killed and started again; nothing of it stays."""
    binaries = programs()
    with tempfile.TemporaryDirectory(prefix="agentstream-api-") as directory:
        server = ApiServer(binaries, Path(directory))
        try:
            server.start()
            server.apply_crds()
            yield server
        finally:
            server.kill()


@contextlib.contextmanager
def shared_server(meeting_point: Path) -> Iterator[ApiServer]:
    """The one server of all who name the same directory. The first one in has it started.

    Whoever uses it holds a shared lock. A process of its own, the keeper, waits for the exclusive one: so the
    server ends after the last user, even if all of them were killed.
    """
    with (meeting_point / "api-server.door").open("w") as door, _users(meeting_point).open("w") as users:
        fcntl.flock(door, fcntl.LOCK_EX)
        fcntl.flock(users, fcntl.LOCK_SH)
        card = _card(meeting_point)
        keeper = None if card.exists() else _start_keeper(meeting_point)
        fcntl.flock(door, fcntl.LOCK_UN)
        found = json.loads(card.read_text())
        try:
            yield ApiServer(Path(found["binaries"]), Path(found["directory"]), found["port"], found["token"])
        finally:
            fcntl.flock(users, fcntl.LOCK_UN)
            if keeper is not None:
                keeper.wait()


def _users(meeting_point: Path) -> Path:
    return meeting_point / "api-server.users"


def _card(meeting_point: Path) -> Path:
    return meeting_point / "api-server.json"


def _start_keeper(meeting_point: Path) -> subprocess.Popen[bytes]:
    binaries = programs()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    log = meeting_point / "api-server.log"
    with log.open("wb") as output:
        keeper = subprocess.Popen(
            [sys.executable, "-m", "support.apiserver", meeting_point, binaries],
            env=environment | {"PYTHONPATH": str(ROOT / "tests")},
            stdout=output,
            stderr=output,
            # Ctrl-C is for the tests, which then let go of the server
            start_new_session=True,
        )
    while not _card(meeting_point).exists():
        if keeper.poll() is not None:
            raise RuntimeError(log.read_text())
        time.sleep(0.02)
    return keeper


def keep(meeting_point: Path, binaries: Path) -> None:
    """Runs the shared server until nobody uses it any more."""
    card = _card(meeting_point)
    with _users(meeting_point).open("w") as users, tempfile.TemporaryDirectory() as directory:
        server = ApiServer(binaries, Path(directory))
        try:
            server.start()
            server.apply_crds()
            draft = card.with_suffix(".new")
            draft.write_text(
                json.dumps(
                    {
                        "binaries": str(binaries),
                        "directory": directory,
                        "port": server.port,
                        "token": server.token,
                    }
                )
            )
            # nobody sees it half-written
            draft.rename(card)
            fcntl.flock(users, fcntl.LOCK_EX)
        finally:
            card.unlink(missing_ok=True)
            server.kill()


if __name__ == "__main__":
    keep(Path(sys.argv[1]), Path(sys.argv[2]))
