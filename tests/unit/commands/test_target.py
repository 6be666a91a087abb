"""Where commands find the API, and what they say where there is none."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from agentstream_operator.commands.failure import CommandFailed
from agentstream_operator.commands.options import ApiOptions
from agentstream_operator.commands.target import CONSOLE, find
from support.fake_api import FakeApi, run
from support.servers import free_port


def refused(options: ApiOptions) -> tuple[int, str]:
    """The exit code and the line of a failure."""
    with pytest.raises(CommandFailed) as failure, find(options):
        pass
    [line] = failure.value.lines
    return failure.value.code, line


def console(folder: Path, url: str = "http://127.0.0.1:1", **more: object) -> Path:
    (folder / CONSOLE).parent.mkdir(exist_ok=True)
    (folder / CONSOLE).write_text(json.dumps({"url": url, "token": "t", **more}))
    return folder / CONSOLE


def test_a_run_of_dev_mode_is_found_from_folders_below(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    console(folder)
    (folder / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(folder / "a" / "b")
    with find(ApiOptions()) as target:
        assert (target.url, target.token(), target.namespace) == ("http://127.0.0.1:1", "t", None)


def test_an_address_comes_before_it(folder: Path) -> None:
    console(folder)
    (folder / "token").write_text("secret\n")
    with find(ApiOptions(api="https://q.example/", token_file=folder / "token")) as target:
        assert (target.url, target.token()) == ("https://q.example", "secret")
        (folder / "token").write_text("rotated")
        assert target.token() == "rotated"


def test_a_context_comes_before_it_too(folder: Path) -> None:
    console(folder)
    code, line = refused(ApiOptions(context="prod"))
    assert code == 2
    assert line.startswith(f"no cluster: run it in a pod, or set KUBECONFIG (there is no file {folder}/kube")


def test_a_run_that_has_ended_is_said_in_a_line(folder: Path) -> None:
    console(folder, f"http://127.0.0.1:{free_port()}")
    ran = run("lag")
    assert ran.code == 3
    assert ran.err == (
        f"error: the API of `agentstream dev` in {folder} does not answer: "
        "it has ended: start it again, or name a cluster: --context NAME\n"
    )


@pytest.mark.parametrize("text", ["", "{", '{"url": "http://127.0.0.1"}', '{"url": 1, "token": 2}', "\x00"])
def test_a_file_of_another_kind_is_said_in_a_line(folder: Path, text: str) -> None:
    console(folder).write_text(text)
    code, line = refused(ApiOptions())
    assert code == 3
    assert line.startswith(f"{folder / CONSOLE} is not what `agentstream dev` writes: ")


def test_no_file_sends_anybody_to_another_machine(folder: Path) -> None:
    console(folder, "http://evil.example:80")
    assert "does not name an address of this machine" in refused(ApiOptions())[1]


def test_what_another_user_wrote_is_not_believed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    console(folder)
    monkeypatch.setattr(os, "getuid", lambda: 12_345)
    code, line = refused(ApiOptions())
    assert code == 2
    assert "belongs to another user" in line


@pytest.mark.parametrize(
    "url", ["queue.example", "ftp://queue", "https://", "https://[", "https://q?token=1"]
)
def test_an_address_that_is_none_is_said_in_a_line(folder: Path, url: str) -> None:
    code, line = refused(ApiOptions(api=url))
    assert (code, line) == (2, f"--api: {url!r} is not an address such as https://queue.example.com")


def test_a_token_goes_over_no_network_in_clear(folder: Path) -> None:
    assert refused(ApiOptions(api="http://queue.example"))[0] == 2
    with find(ApiOptions(api="http://localhost:8090")) as target:
        assert target.token() is None


@pytest.mark.parametrize("content", [None, b"\xff", b"", b"two words", b"two\nlines"])
def test_a_token_that_cannot_be_read_is_not_quoted(folder: Path, content: bytes | None) -> None:
    file = folder / "token"
    if content is not None:
        file.write_bytes(content)
    code, line = refused(ApiOptions(api="https://q", token_file=file))
    assert code == 2
    assert line.startswith("--token-file: ")
    assert "words" not in line


def test_without_anything_a_line_says_what_there_could_be(folder: Path) -> None:
    ran = run("lag")
    assert ran.code == 2
    assert ran.err.endswith("; or run the command in the folder of a running `agentstream dev`\n")


def test_two_namespaces_at_once_make_no_sense(api: FakeApi) -> None:
    ran = run("lag", "-n", "a", "-A")
    assert (ran.code, ran.err) == (2, "error: --namespace and --all-namespaces exclude each other\n")
    assert not api.asked
