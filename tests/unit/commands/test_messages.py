"""`agentstream show`, `tail` and `trace`: what they ask for, and what they print."""

from __future__ import annotations

import json
from typing import Any

import pytest

from support.fake_api import FakeApi, run

UUID = "7ec428e0-8d7f-4f2e-a0b6-6d5a3f1c2b4d"
STREAM = "/queue/messages/team-a/tasks"


def lag(*streams: str, dead: int = 0) -> dict[str, Any]:
    def of(name: str) -> dict[str, Any]:
        return {"namespace": "team-a", "name": name, "ready": True, "reason": "Ready", "known": True}

    group = {**of("coder"), "stream": "tasks", "dead": dead, "consumers": {}}
    named = [{**of(name), "key": name} for name in streams or ("tasks",)]
    return {"at": "2026-12-01T00:00:00Z", "server": {"reachable": True}, "streams": named, "groups": [group]}


def message(entry: str = "1796040762366-0", **fields: Any) -> dict[str, Any]:
    known = {
        "entry": entry,
        "at": "2020-11-30T09:02:11.125Z",
        "size": 312,
        "id": UUID,
        "type": "task_request",
    }
    return {**known, "from": "planner", "to": "coder", "payload": {"doc": 7}, **fields}


def page(*messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
    answer = {"namespace": "team-a", "stream": "tasks", "scanned": len(messages), "more": False}
    return {**answer, "messages": messages, **fields}


def whole(*groups: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {**message(**fields), "namespace": "team-a", "stream": "tasks", "groups": groups}


HELD = {
    "group": "coder",
    "state": "Held",
    "consumer": "coder-7d9f.abc-1-x",
    "heldSeconds": 1.2,
    "attempts": 1,
}


def test_a_message_is_shown_with_what_became_of_it_in_each_group(api: FakeApi) -> None:
    api.says("/queue/lag", lag())
    dead = {"group": "writer", "state": "Dead", "attempts": 5, "reason": "MaxDeliveries", "error": "boom"}
    later = {"group": "later", "state": "Delayed", "due": "2020-11-30T10:00:00Z", "replay": "again"}
    api.says(f"{STREAM}/1796040762366-0", whole(HELD, dead, later, correlation_id="x"))
    ran = run("show", "1796040762366-0")
    assert ran.code == 0, ran.err
    assert f"message:     {UUID}" in ran.lines
    assert "stream:      team-a/tasks" in ran.lines
    rows = [line.split(maxsplit=3) for line in ran.lines[ran.lines.index("") + 1 :]]
    assert rows[:3] == [
        ["GROUP", "STATE", "ATTEMPTS", "DETAIL"],
        ["coder", "Held", "1", "by coder-7d9f.abc-1-x, lease renewed 1.2s ago"],
        ["writer", "Dead", "5", "MaxDeliveries: boom"],
    ]
    assert rows[3][:3] == ["later", "Delayed", "-"]
    assert rows[3][3].endswith("; by replay again")
    assert '    "doc": 7' in ran.lines


def test_a_message_is_found_by_the_beginning_of_its_uuid(api: FakeApi) -> None:
    api.says("/queue/lag", lag("tasks", "results"))
    cursor = {"more": True, "cursor": "5-0", "scanned": 1000}
    api.says(STREAM, page(**cursor), page(message()))
    api.says("/queue/messages/team-a/results", {**page(), "stream": "results"})
    api.says(f"{STREAM}/1796040762366-0", whole(HELD))
    ran = run("show", "7EC428E0", "-o", "json")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["groups"][0]["state"] == "Held"
    assert [asked.query.get("cursor") for asked in api.asked if asked.path == STREAM] == [None, ["5-0"]]


def test_what_was_trimmed_is_found_by_its_dead_letter(api: FakeApi) -> None:
    api.says("/queue/lag", lag(dead=1))
    api.says(STREAM, page())
    letter = {"letter": "9-0", "origin": "1-0", "reason": "R", "error": "", "message": message("9-0")}
    letters = {"namespace": "team-a", "group": "coder", "total": 1, "scanned": 1, "more": False}
    api.says("/queue/deadletters/team-a/coder", {**letters, "letters": [letter]})
    api.says(f"{STREAM}/1-0", whole(HELD))
    assert run("show", "7ec428e0").code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["xyz"], 2, "is no message"),
        (["7ec"], 2, "at least four"),
        (["7ec428e0"], 1, "no message 7ec428e0 on team-a/tasks"),
        (["1-0"], 1, "no /queue/messages/team-a/tasks/1-0"),
    ],
)
def test_what_is_not_there_is_said(api: FakeApi, arguments: list[str], code: int, said: str) -> None:
    api.says("/queue/lag", lag())
    api.says(STREAM, page())
    ran = run("show", *arguments)
    assert (ran.code, ran.out) == (code, "")
    assert said in ran.err


def test_several_messages_of_one_beginning_are_named(api: FakeApi) -> None:
    api.says("/queue/lag", lag())
    api.says(STREAM, page(message("1-0"), message("2-0")))
    ran = run("show", "7ec4")
    assert ran.code == 2
    assert "1-0 on team-a/tasks, 2-0 on team-a/tasks" in ran.err


def test_the_last_messages_are_shown_oldest_first(api: FakeApi) -> None:
    api.says("/queue/lag", lag())
    unreadable = {"entry": "1-0", "size": 3, "problem": "it cannot be read: \x1b[2J"}
    newest = page(message("3-0"), **{"from": "3-0", "to": "3-0"})
    api.says(STREAM, newest, page(message("9-0"), message("3-0"), unreadable))
    ran = run("tail", "tasks", "--no-follow", "--type", "task_request", "-g", "doc")
    assert ran.code == 0, ran.err
    first, second = ran.lines
    assert first.startswith("?  1-0  it cannot be read: ")
    assert "\x1b" not in first
    assert second.split("  ")[1:] == ["task_request", "planner → coder", "7ec428e0", '{"doc": 7}']
    assert api.asked[-1].query == {"type": ["task_request"], "q": ["doc"], "limit": ["10"]}


def test_tail_goes_on_from_the_last_message_that_was_looked_at(
    api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.says("/queue/lag", lag())

    def stop(_: float) -> None:
        if len(api.asked) > 4:
            raise KeyboardInterrupt

    monkeypatch.setattr("agentstream_operator.commands.tailing.time.sleep", stop)
    newest = page(message("3-0"), **{"from": "3-0", "to": "3-0"})
    came = page(message("4-0"), **{"from": "4-0", "to": "8-0"})
    api.says(STREAM, newest, came, page())
    ran = run("tail", "tasks", "--last", "0", "-o", "json")
    assert ran.code == 130
    assert [json.loads(line)["entry"] for line in ran.lines] == ["4-0"]
    assert [asked.query.get("cursor") for asked in api.asked[2:]] == [["3-0"], ["8-0"], ["8-0"]]


def test_a_conversation_is_a_table_in_the_order_of_time(api: FakeApi) -> None:
    api.says("/queue/lag", lag())
    looked = {"scanned": 2, "more": False}
    answer = message("1796040769000-0", stream="results", type="task_result", at="2020-11-30T09:02:18.125Z")
    shared = {"namespace": "team-a", "correlationId": "c", "more": True, "cursor": "tasks@"}
    failed = {"stream": "results", **looked, "problem": "WRONGTYPE"}
    api.says(
        "/queue/conversations/team-a/a%2Fb",
        {**shared, "messages": [answer], "streams": [failed]},
        {**shared, "more": False, "cursor": None, "messages": [message(stream="tasks")], "streams": []},
    )
    ran = run("trace", "a/b", "-n", "team-a")
    assert ran.code == 0, ran.err
    assert [line.split()[1:4] for line in ran.lines[1:3]] == [
        ["+0.0s", "tasks", "task_request"],
        ["+7.0s", "results", "task_result"],
    ]
    assert ran.lines[3] == "warning: results could not be searched: WRONGTYPE"


def test_no_conversation_says_how_much_was_looked_at(api: FakeApi) -> None:
    api.says("/queue/lag", lag())
    empty = {"namespace": "team-a", "correlationId": "c", "messages": [], "more": False}
    api.says(
        "/queue/conversations/team-a/c",
        {**empty, "streams": [{"stream": "tasks", "scanned": 1234, "more": False}]},
    )
    ran = run("trace", "c")
    assert ran.code == 1
    assert "looked at 1,234 messages" in ran.err
