"""The API server of the tests itself: that all share one, who may do what, and what it records."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil

from support.apiserver import ADMIN, ROOT, ApiServer
from support.kubectl import Kubectl
from support.waiting import until
from unit.resources.manifests import a_stream

USER = """\
import os, sys
from pathlib import Path
from support.apiserver import shared_server
with shared_server(Path(sys.argv[1])) as server:
    print(server.directory, flush=True)
    sys.stdin.read()
    if len(sys.argv) > 2:
        os.kill(os.getpid(), 9)
"""


class User:
    """Another process that uses a shared server until it is told to leave."""

    def __init__(self, meeting_point: Path, *crashes: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", USER, meeting_point, *crashes],
            env={"PYTHONPATH": str(ROOT / "tests"), "PATH": "/usr/bin:/bin", "HOME": str(Path.home())},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.server = Path(self.process.stdout.readline().strip())

    def leave(self) -> None:
        self.process.communicate()


def programs_of(server: Path) -> list[psutil.Process]:
    """The processes that keep their data there."""
    return [p for p in psutil.process_iter(["cmdline"]) if str(server) in " ".join(p.info["cmdline"] or ())]


async def test_users_share_one_server_that_ends_with_the_last_of_them(tmp_path: Path) -> None:
    first, second = User(tmp_path), User(tmp_path, "by a crash")
    assert first.server == second.server
    assert len(programs_of(first.server)) == 2
    # the one that started it waits for the others
    first.process.stdin.close()
    assert len(programs_of(first.server)) == 2
    second.leave()
    await until(lambda: not programs_of(second.server))
    await until(lambda: not second.server.exists())
    assert first.process.wait() == 0
    first.process.stdout.close()


def test_a_service_account_may_do_what_it_is_allowed_and_the_server_records_who_did_what(
    kubectl: Kubectl, api_server: ApiServer, tmp_path: Path
) -> None:
    kubectl.apply(a_stream())
    kubectl("create", "serviceaccount", "reader")
    kubectl("create", "role", "reader", "--verb=get", "--resource=agentstreams.agentstream.dev")
    user = f"system:serviceaccount:{kubectl.namespace}:reader"
    kubectl("create", "rolebinding", "reader", "--role=reader", f"--user={user}")
    reader = api_server.kubectl(
        kubectl.namespace, api_server.access_of(kubectl.namespace, "reader", tmp_path / "kubeconfig")
    )
    before = api_server.position
    assert reader.get("agentstreams", "tasks")["metadata"]["name"] == "tasks"
    assert "cannot delete resource" in reader.fails("delete", "agentstreams", "tasks")
    kubectl("delete", "agentstreams", "tasks")
    asked = [
        (request.verb, request.resource, request.name, request.code, request.writes)
        for request in api_server.requests_since(before, user)
        if request.namespace
    ]
    assert asked == [
        ("get", "agentstreams", "tasks", 200, False),
        ("delete", "agentstreams", "tasks", 403, True),
    ]
    requests = [r for r in api_server.requests_since(before) if r.namespace == kubectl.namespace]
    deletions = [request for request in requests if request.verb == "delete" and request.code == 200]
    assert [(r.user, r.namespace) for r in deletions] == [(ADMIN, kubectl.namespace)]
