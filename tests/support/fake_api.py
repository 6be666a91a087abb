"""An HTTP API that answers what a test says, for commands that ask it as they ask a real one."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from typer.testing import CliRunner

from agentstream_operator.cli import app
from agentstream_operator.commands.target import CONSOLE
from agentstream_operator.local.manifests.metadata import StoredMetadata, write_metadata
from agentstream_operator.resources.agentstream import AgentStream
from agentstream_operator.resources.parse import parse_resource

TOKEN = "a-token"


@dataclass(frozen=True)
class Asked:
    """A request that was sent."""

    method: str
    path: str
    query: dict[str, list[str]]
    body: Any
    headers: dict[str, str]


@dataclass
class FakeApi:
    """Answers by method and path; the last of several answers stays. Everything else is not found."""

    url: str = ""
    answers: dict[tuple[str, str], list[tuple[int, bytes, str]]] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)

    def says(
        self, path: str, *bodies: Any, method: str = "GET", status: int = 200, kind: str = "application/json"
    ) -> None:
        """Lets a path answer with these bodies, one after the other; str and bytes as they are."""
        raw = [b if isinstance(b, bytes) else b.encode() if isinstance(b, str) else _json(b) for b in bodies]
        self.answers[method, path] = [(status, body, kind) for body in raw]

    def fails(self, path: str, status: int, detail: str, remedy: str = "", method: str = "GET") -> None:
        """Lets a path answer with a problem."""
        problem = {"title": "T", "status": status, "detail": detail, "remedy": remedy}
        self.says(path, problem, method=method, status=status, kind="application/problem+json")

    def answer(self, asked: Asked) -> tuple[int, bytes, str]:
        self.asked.append(asked)
        queue = self.answers.get((asked.method, asked.path))
        if not queue:
            problem = {
                "title": "Not Found",
                "status": 404,
                "detail": f"no {asked.path}",
                "remedy": "ask else",
            }
            return 404, _json(problem), "application/problem+json"
        return queue.pop(0) if len(queue) > 1 else queue[0]


def _json(body: Any) -> bytes:
    return json.dumps(body).encode()


@contextmanager
def fake_api(folder: Path) -> Iterator[FakeApi]:
    """Runs the API of an `agentstream dev` in a folder."""
    api = FakeApi()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            parts = urlsplit(self.path)
            length = int(self.headers.get("Content-Length") or 0)
            data = self.rfile.read(length)
            body = json.loads(data) if data else None
            asked = Asked(self.command, parts.path, parse_qs(parts.query), body, dict(self.headers))
            status, said, kind = api.answer(asked)
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        do_GET = do_POST = do_PATCH = do_DELETE = _serve  # noqa: N815 - names of the base class

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    api.url = f"http://127.0.0.1:{server.server_port}"
    (folder / CONSOLE).parent.mkdir(exist_ok=True)
    (folder / CONSOLE).write_text(json.dumps({"url": api.url, "token": TOKEN}))
    try:
        yield api
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def runs(api: FakeApi, folder: Path, *manifests: Any, earlier: Sequence[Any] = ()) -> None:
    """Lets the `agentstream dev` of a folder have these in effect; `earlier` ones are only remembered."""
    stored = {}
    streams, groups = list[Any](), list[Any]()
    for manifest in (*manifests, *earlier):
        resource = parse_resource(manifest)
        spec = json.dumps(resource.spec.as_manifest())
        born = datetime(2026, 1, 1, tzinfo=UTC)
        stored[resource.key] = StoredMetadata(*resource.key, uid="u", created=born, generation=1, spec=spec)
        shared = {
            "namespace": resource.key.namespace,
            "name": resource.key.name,
            "known": True,
            "ready": True,
        }
        shared |= {"reason": "Ready"}
        if manifest in earlier:
            continue
        if isinstance(resource, AgentStream):
            streams.append({**shared, "key": resource.stream_key, "length": 1200, "historySeconds": 7200.0})
        else:
            groups.append({**shared, "stream": manifest["spec"]["streamRef"]["name"]})
    write_metadata(folder / ".agentstream" / "resources.json", stored)
    server = {"reachable": True}
    answer = {"at": "2026-12-01T09:00:00Z", "server": server, "streams": streams, "groups": groups}
    api.says("/queue/lag", answer)


@dataclass(frozen=True)
class Ran:
    """What a command came to."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


def run(*arguments: str, given: str | None = None) -> Ran:
    """Runs a command of `agentstream` in this process; `given` is its standard input."""
    result = CliRunner().invoke(app, arguments, input=given)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return Ran(result.exit_code, result.stdout, result.stderr)
