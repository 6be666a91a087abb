"""`agentstream import`: what can be wrong before anything is looked at, and on the way to the server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.fake_api import run
from support.servers import free_port


def test_a_server_must_be_named(folder: Path) -> None:
    del folder
    ran = run("import", "orders")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("error: which server? --redis-url-file FILE names it")


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("redis://user:secret@127.0.0.1:{port}", 3, "error: the server does not answer: "),
        ("http://127.0.0.1:1", 2, "error: "),
        ("", 2, "error: "),
    ],
)
def test_an_address_that_leads_nowhere_is_a_line_without_its_password(
    folder: Path, text: str, code: int, said: str
) -> None:
    (folder / "url").write_text(text.format(port=free_port()))
    ran = run("import", "orders", "--redis-url-file", "url")
    assert (ran.code, ran.out, len(ran.err.splitlines())) == (code, "", 1)
    assert ran.err.startswith(said)
    assert "secret" not in ran.err


def test_a_file_that_cannot_be_read_and_a_bad_namespace_are_lines(folder: Path) -> None:
    (folder / "url").write_bytes(b"\xff\xfe")
    assert run("import", "orders", "--redis-url-file", "url").err == (
        "error: --redis-url-file: cannot read url: it is not text\n"
    )
    assert run("import", "orders", "--redis-url-file", "none").code == 2
    ran = run("import", "orders", "-n", "Team A", "--redis-url-file", "url")
    assert (ran.code, ran.err) == (2, "error: --namespace: 'Team A' is not the name of a namespace\n")


def test_a_dev_that_has_ended_is_a_line(folder: Path) -> None:
    data = folder / ".agentstream"
    data.mkdir()
    (data / "console").write_text(json.dumps({"url": "http://127.0.0.1:9", "token": "t"}))
    ran = run("import", "orders")
    assert (ran.code, len(ran.err.splitlines())) == (3, 1)
    assert ran.err.startswith("error: `agentstream dev` has ended: ")
    (data / "operator").write_text("secret")
    (data / "server.conf").write_text(f"bind 127.0.0.1\nport {free_port()}\n")
    ran = run("import", "orders")
    assert (ran.code, len(ran.err.splitlines())) == (3, 1)
    assert "secret" not in ran.err
