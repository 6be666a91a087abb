"""`agentstream doctor` in the folder of an `agentstream dev`: lines, documents, exit codes."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

from agentstream.protocol import library
from support.fake_api import FakeApi, run

OURS = version("agentstream-operator")


def answers(api: FakeApi, *, version: str = OURS, streams: tuple[Any, ...] = (), **server: Any) -> None:
    """Lets the API answer as one that works."""
    whole: dict[str, Any] = {
        "reachable": True,
        "role": "master",
        "usedMemory": 2**20,
        "maxMemory": 2**30,
        "program": "valkey",
        "version": "9.1.2",
        "evictionPolicy": "noeviction",
        "appendOnly": True,
        "writeFailed": False,
        "clock": datetime.now(UTC).isoformat(),
        "library": library.revision(),
    }
    api.says("/openapi.json", {"openapi": "3.1.0", "info": {"title": "T", "version": version}})
    at = datetime.now(UTC).isoformat()
    api.says("/queue/lag", {"at": at, "server": whole | server, "streams": list(streams), "groups": []})


def test_everything_fine_is_a_line_each_and_no_error(api: FakeApi) -> None:
    answers(api)
    ran = run("doctor")
    assert (ran.code, ran.err) == (0, "")
    assert ran.lines[0].split() == ["VERDICT", "CHECK", "FOUND"]
    assert {line.split()[0] for line in ran.lines[1:]} == {"ok"}


def test_what_is_wrong_is_said_with_its_remedy(api: FakeApi) -> None:
    stream = {"namespace": "a", "name": "tasks", "key": "k", "known": True, "length": 7, "unsettled": 5}
    stream |= {"admission": "Closed", "historySeconds": 90, "ready": True, "reason": "Ready"}
    late = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    answers(api, version="0.0.1", streams=(stream,), evictionPolicy="allkeys-lru", clock=late)
    ran = run("doctor")
    assert ran.code == 1
    wrong = [" ".join(line.split()) for line in ran.lines if line.startswith("wrong")]
    assert [line.split()[1] for line in wrong] == ["api", "eviction", "clock", "AgentStream"]
    assert wrong[1].endswith("not noeviction: Set `maxmemory-policy noeviction` on the server.")
    read = json.loads(run("doctor", "-o", "json").out)
    assert read["wrong"] == 4
    assert {check["check"] for check in read["checks"] if check["verdict"] == "wrong"} == {
        *("api", "eviction", "clock", "AgentStream a/tasks")
    }


def test_a_server_that_is_away_is_wrong_and_the_api_is_not(api: FakeApi) -> None:
    answers(api, reachable=False, program=None, clock=None)
    ran = run("doctor")
    assert ran.code == 1
    assert [line.split()[:2] for line in ran.lines[1:]] == [["ok", "api"], ["wrong", "server"]]


def test_nothing_that_can_be_reached_is_exit_code_3(folder: Path) -> None:
    (folder / ".agentstream").mkdir()
    (folder / ".agentstream" / "console").write_text('{"url": "http://127.0.0.1:9", "token": "t"}')
    ran = run("doctor", "-o", "json")
    assert ran.code == 3
    [check] = json.loads(ran.out)["checks"]
    assert (check["check"], check["verdict"]) == ("reach", "wrong")
    assert "does not answer: it has ended" in check["text"]


def test_neither_a_cluster_nor_dev_is_a_line_as_of_every_command(folder: Path) -> None:
    ran = run("doctor")
    assert (ran.code, ran.out, len(ran.err.splitlines())) == (2, "", 1)
    assert ran.err.startswith("error: no cluster: ")


def test_an_older_api_that_says_less_of_the_server_is_no_mistake_of_the_server(api: FakeApi) -> None:
    answers(api, version="0.0.1", program=None, clock=None)
    ran = run("doctor")
    assert ran.code == 1
    assert [line.split()[:2] for line in ran.lines[1:3]] == [["wrong", "api"], ["note", "server"]]


def test_whoever_may_not_read_numbers_gets_a_note(api: FakeApi) -> None:
    answers(api)
    api.fails("/queue/lag", 403, "jane cannot get", "ask for a Role")
    ran = run("doctor")
    assert (ran.code, ran.err) == (0, "")
    assert ran.lines[-1].split(maxsplit=2) == [
        "note",
        "server",
        "not allowed: jane cannot get: ask for a Role",
    ]
