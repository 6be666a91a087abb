"""`agentstream lag`: tables, documents and everything that can go wrong on the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from agentstream_operator.commands.output import Printer
from support.fake_api import TOKEN, FakeApi, run

GROUP = {
    "namespace": "team-a",
    "name": "coder",
    "stream": "tasks",
    "known": True,
    "undelivered": 4640,
    "pending": 172,
    "retrying": 12,
    "delayed": 30,
    "nextDue": None,
    "dead": 3,
    "backlog": 4812,
    "exact": True,
    "oldestSeconds": 72.4,
    "arrivalRate": 81.0,
    "serviceRate": 120.44,
    "drainSeconds": 123.0,
    "consumers": {"wanted": 20, "running": 8},
    "ready": True,
    "reason": "Ready",
}
UNKNOWN = {
    "namespace": "team-b",
    "name": "reviewer",
    "stream": "results",
    "known": False,
    "consumers": {"wanted": 1, "running": 1},
    "ready": False,
    "reason": "BackendUnavailable",
}


def lag(*groups: dict[str, Any], reachable: bool = True, **server: Any) -> dict[str, Any]:
    """The answer of `/queue/lag`."""
    server = {"reachable": reachable, "role": "master", "usedMemory": 2**21, "maxMemory": None, **server}
    return {"at": "2026-12-01T09:00:00Z", "server": server, "streams": [], "groups": list(groups)}


def test_a_group_is_a_line_and_what_is_unknown_is_a_question_mark(api: FakeApi) -> None:
    api.says("/queue/lag", lag(GROUP, UNKNOWN))
    ran = run("lag", "-A")
    assert (ran.code, ran.err) == (0, "")
    assert [" ".join(line.split()) for line in ran.lines] == [
        "NAMESPACE GROUP STREAM BACKLOG WAIT RUN RETRY LATER DEAD OLDEST IN/S OUT/S DRAIN PODS STATE",
        "team-a coder tasks 4,812 4,640 172 12 30 3 1m12s 81.0 120.4 2m03s 8/20 Ready",
        "team-b reviewer results ? ? ? ? ? ? ? - - - 1/1 BackendUnavailable",
        (
            "ConsumerGroup team-b/reviewer: BackendUnavailable: the operator has not said more. "
            "Check the server, the network policy and the operator's credentials; the operator retries."
        ),
        (
            "ConsumerGroup team-a/coder: 3 dead letters: messages that could not be handled wait for "
            "a decision. See what they died of (`agentstream dlq`), repair it, "
            "then `agentstream replay --dead`."
        ),
    ]
    words = ("STREAM", "tasks", "results")
    starts = {line.index(word) for line, word in zip(ran.lines[:3], words, strict=True)}
    assert len(starts) == 1


def test_an_estimate_is_marked(api: FakeApi) -> None:
    api.says("/queue/lag", lag(GROUP | {"exact": False}))
    assert "~4,812" in run("lag").lines[1].split()


def test_the_request_says_who_asks_and_what_is_meant(api: FakeApi) -> None:
    api.says("/queue/lag", lag(GROUP))
    assert run("lag", "coder", "-n", "team-a").code == 0
    [asked] = api.asked
    assert asked.headers["Authorization"] == f"Bearer {TOKEN}"
    assert asked.query == {"namespace": ["team-a"], "group": ["coder"]}


@pytest.mark.parametrize("output", ["json", "yaml"])
def test_programs_get_the_document_as_the_api_gave_it(api: FakeApi, output: str) -> None:
    hostile = GROUP | {"reason": "\x1b[31m red \u202e"}
    api.says("/queue/lag", lag(hostile))
    ran = run("lag", "-o", output)
    read = json.loads(ran.out) if output == "json" else yaml.safe_load(ran.out)
    assert {k: read["groups"][0][k] for k in hostile} == hostile
    assert "\x1b" not in ran.out


def test_texts_of_others_move_no_cursor(api: FakeApi) -> None:
    api.says("/queue/lag", lag(UNKNOWN | {"reason": "\x1b[2J\nhidden"}))
    ran = run("lag")
    assert len(ran.lines) == 3
    assert ran.lines[1].endswith(r"\x1b[2J\nhidden")
    assert r": \x1b[2J\nhidden: " in ran.lines[2]


def test_a_name_alone_is_found_in_any_namespace_if_it_is_there_once(api: FakeApi) -> None:
    api.says("/queue/lag", lag(GROUP, UNKNOWN))
    assert run("lag", "coder").code == 0
    assert api.asked[-1].query == {"namespace": ["team-a"], "group": ["coder"]}
    assert run("lag", "team-b/reviewer").code == 0
    assert api.asked[-1].query == {"namespace": ["team-b"], "group": ["reviewer"]}
    missing = run("lag", "nobody")
    assert (missing.code, missing.err) == (
        1,
        "error: there is no group nobody: `agentstream lag -A` lists all\n",
    )
    api.says("/queue/lag", lag(GROUP, GROUP | {"namespace": "team-c"}))
    twice = run("lag", "coder")
    assert (twice.code, twice.err) == (
        2,
        "error: coder is in several namespaces: say which with -n (team-a, team-c)\n",
    )


def test_a_server_that_is_away_is_an_exit_code(api: FakeApi) -> None:
    api.says("/queue/lag", lag(UNKNOWN, reachable=False, role=None, usedMemory=None))
    ran = run("lag")
    assert ran.code == 3
    assert "BackendUnavailable" in ran.out
    assert ran.err.startswith("error: Redis or Valkey does not answer: ")
    assert "Check the server, the network policy and the operator's credentials" in ran.err


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (401, 3, "the API does not know who asks: D: "),
        (403, 1, "not allowed: D"),
        (404, 1, "D"),
        (409, 1, "it is in the way of something else: D"),
        (422, 2, "the request is not valid: D"),
        (429, 3, "the API has too much to do: D"),
        (500, 3, "D"),
        (503, 3, "the API cannot answer now: D"),
    ],
)
def test_a_refusal_is_a_line_with_its_remedy(api: FakeApi, status: int, code: int, said: str) -> None:
    api.fails("/queue/lag", status, "D\x1b[2J", "do this")
    ran = run("lag")
    assert ran.code == code
    assert ran.err.startswith(f"error: {said.rstrip(': ')}\\x1b[2J: do this")
    assert len(ran.err.splitlines()) == 1


def test_the_mistakes_of_a_request_are_a_line_each(api: FakeApi) -> None:
    problem = {
        "title": "T",
        "status": 422,
        "detail": "two mistakes",
        "remedy": "",
        "errors": [{"pointer": "query/a", "detail": "1"}, {"pointer": "query/b", "detail": "2"}],
    }
    api.says("/queue/lag", problem, status=422)
    assert run("lag").err.splitlines()[1:] == ["error: query/a: 1", "error: query/b: 2"]


def test_what_is_not_of_the_api_is_said_in_a_line(api: FakeApi) -> None:
    where = f"error: the API of `agentstream dev` in {Path.cwd()} answered"
    api.says("/queue/lag", "<html>", status=502, kind="text/html")
    assert run("lag").err == f"{where} 502 Bad Gateway\n"
    api.says("/queue/lag", "<html>", kind="text/html")
    ran = run("lag")
    assert (ran.code, len(ran.err.splitlines())) == (3, 1)
    assert ran.err.startswith(f"{where} what this version does not understand")


def test_output_that_nobody_reads_any_more_is_no_error(api: FakeApi) -> None:
    api.says("/queue/lag", lag(*([GROUP] * 20_000)))
    command = f"{sys.executable} -m agentstream_operator lag | head -1; echo ${{PIPESTATUS[0]}}"
    ran = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert ran.stdout.splitlines()[0].startswith("NAMESPACE")
    assert (ran.stdout.splitlines()[1:], ran.stderr) == (["141"], "")


@pytest.mark.parametrize("output", ["table", "json", "yaml"])
@pytest.mark.parametrize("groups", [1, 2_000])
def test_a_full_disk_is_a_line(api: FakeApi, output: str, groups: int) -> None:
    api.says("/queue/lag", lag(*([GROUP] * groups)))
    command = [sys.executable, "-m", "agentstream_operator", "lag", "-o", output]
    with Path("/dev/full").open("w") as full:
        ran = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (
        1,
        "error: the output is not whole: No space left on device\n",
    )


def test_what_the_encoding_of_the_output_lacks_is_escaped(api: FakeApi) -> None:
    api.says("/queue/lag", lag(GROUP | {"name": "caf\u00e9\u2192"}))
    command = [sys.executable, "-m", "agentstream_operator", "lag"]
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert r"caf\xe9\u2192" in ran.stdout


def test_watching_elsewhere_than_on_a_terminal_appends_what_changed(
    api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = iter([1, 2])

    def sleep(_: float) -> None:
        if next(frames, None) is None:
            raise KeyboardInterrupt

    monkeypatch.setattr("agentstream_operator.commands.output.time.sleep", sleep)
    api.says("/queue/lag", lag(GROUP, UNKNOWN), lag(GROUP, UNKNOWN), lag(GROUP | {"dead": 4}, UNKNOWN))
    ran = run("lag", "--watch")
    assert (ran.code, ran.err) == (130, "")
    assert [line.split()[:2] for line in ran.lines] == [
        ["NAMESPACE", "GROUP"],
        ["team-a", "coder"],
        ["team-b", "reviewer"],
        ["ConsumerGroup", "team-b/reviewer:"],
        ["ConsumerGroup", "team-a/coder:"],
        ["team-a", "coder"],
        ["ConsumerGroup", "team-a/coder:"],
    ]


def test_a_terminal_is_drawn_anew_and_left_as_it_was(
    api: FakeApi, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Printer, "terminal", True, raising=False)

    class Terminal:
        """Standard output as a terminal."""

        def __init__(self) -> None:
            self.text = ""

        def isatty(self) -> bool:
            return True

        def write(self, text: str) -> None:
            self.text += text

        def flush(self) -> None:
            pass

    terminal = Terminal()
    printer = Printer(terminal)  # type: ignore[arg-type]
    looks = iter(["first", "second"])

    def look() -> str:
        found = next(looks, None)
        if found is None:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr("agentstream_operator.commands.output.time.sleep", lambda _: None)
    with pytest.raises(KeyboardInterrupt):
        printer.watch(look, lambda paper, text: paper.line(text))
    assert terminal.text.index("\x1b[?1049h") < terminal.text.index("first") < terminal.text.index("second")
    assert terminal.text.endswith("\x1b[?1049l")


def test_top_shows_the_largest_backlog_first(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("agentstream_operator.commands.output.time.sleep", stop)
    stream = {"namespace": "a", "name": "tasks", "key": "k", "known": True, "length": 7, "unsettled": 5}
    stream |= {"admission": "Closed", "historySeconds": 90_000, "ready": True, "reason": "Ready"}
    answer = lag(GROUP | {"name": "small", "backlog": 1}, GROUP, UNKNOWN, usedMemory=3 * 2**20)
    api.says("/queue/lag", answer | {"streams": [stream]})
    ran = run("top")
    assert ran.code == 130
    assert ran.lines[0].endswith("server master, 3.0 MiB")
    assert ran.lines[3].split() == ["a", "tasks", "7", "-", "5", "-", "1d01h", "Closed", "Ready"]
    assert [line.split()[1] for line in ran.lines[6:]] == ["reviewer", "coder", "small"]


def test_the_ledger_is_shown_when_asked_for(api: FakeApi) -> None:
    line = {"added": 10_010, "acknowledged": 9_989, "skipped": 10, "dead": 1, "discarded": 0, "lost": 0}
    ledger = line | {"waiting": 10, "ratio": 0.9999}
    answer = lag(GROUP | {"delivered": ledger}, UNKNOWN)
    api.says("/queue/lag", answer | {"delivered": ledger})
    ran = run("lag", "-o", "wide")
    assert "99.990 %" in ran.lines[1]
    assert ran.lines[3] == "delivered: 99.990 % of 10,010 messages; 1 dead, 0 lost, 10 waiting"
