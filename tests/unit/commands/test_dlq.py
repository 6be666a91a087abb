"""`agentstream dlq`: dead letters together and one by one, written down, and removed after a question."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from support.fake_api import FakeApi, run

PATH = "/queue/deadletters/team-a/coder"
UUID = "7ec428e0-8d7f-4f2e-a0b6-6d5a3f1c2b4d"
OTHER = "9f1f4653-8d7f-4f2e-a0b6-6d5a3f1c2b4d"


def a_group(count: int, reason: str = "MaxDeliveries", error: str = "E", **fields: Any) -> dict[str, Any]:
    times = {"first": "2020-11-30T09:02:11Z", "last": "2020-11-30T09:39:50Z"}
    return {
        "reason": reason,
        "error": error,
        "count": count,
        "sample": UUID,
        "letter": "5-0",
        **times,
        **fields,
    }


def groups(*found: dict[str, Any], scanned: int = 3, **fields: Any) -> dict[str, Any]:
    answer = {"namespace": "team-a", "group": "coder", "total": scanned, "scanned": scanned, "more": False}
    return {**answer, "groups": found, **fields}


def a_letter(letter: str = "5-0", id_: str = UUID, **fields: Any) -> dict[str, Any]:
    message = {
        "entry": letter,
        "size": 9,
        "id": id_,
        "type": "task_request",
        "from": "boss",
        "payload": {"n": 1},
    }
    at = "2020-11-30T09:39:50Z"
    known = {
        "letter": letter,
        "origin": "1-0",
        "at": at,
        "attempts": 5,
        "reason": "MaxDeliveries",
        "error": "E",
    }
    return {**known, "message": message, **fields}


def letters(*found: dict[str, Any], **fields: Any) -> dict[str, Any]:
    size = len(found)
    answer = {"namespace": "team-a", "group": "coder", "total": size, "scanned": size, "more": False}
    return {**answer, "letters": found, **fields}


def dropped(**fields: Any) -> dict[str, Any]:
    """What a dry run of a removal answers."""
    answer = {"namespace": "team-a", "group": "coder", "source": "DeadLetters", "total": 9, "matched": 3}
    more = {"wouldMove": 3, "skipped": {}, "seconds": 1, "sample": [], "warnings": [], "scanned": 9}
    return {**answer, **more, "more": False, "last": "2020-11-30T09:39:50.123Z", **fields}


def removed() -> dict[str, Any]:
    spec = {
        "groupRef": {"name": "coder"},
        "from": {"source": "DeadLetters"},
        "select": {"reasons": ["InvalidPayload"]},
        "action": "Drop",
    }
    done = {"phase": "Complete", "matched": 3, "moved": 3}
    return {"namespace": "team-a", "name": "r", "uid": "u", "phase": "Complete", "spec": spec, "status": done}


def test_what_died_of_the_same_is_a_line_with_a_count(api: FakeApi) -> None:
    api.says(f"{PATH}/groups", groups(a_group(2114), a_group(3, "InvalidPayload", "\x1b[31mx"), scanned=2117))
    ran = run("dlq", "coder", "-n", "team-a")
    assert (ran.code, ran.err) == (0, "")
    assert ran.lines[0].split() == ["COUNT", "REASON", "ERROR", "FIRST", "LAST", "SAMPLE"]
    assert ran.lines[1].startswith("2,114  MaxDeliveries ")
    assert ran.lines[1].endswith("  7ec428e0")
    assert "\\x1b[31mx" in ran.lines[2]
    assert len(ran.lines) == 3


def test_pages_of_groups_are_joined(api: FakeApi) -> None:
    early = {"first": "2020-01-01T00:00:00Z", "last": "2020-01-02T00:00:00Z"}
    first = groups(a_group(2), more=True, cursor="c1", total=9)
    second = groups(a_group(5, "Other"), a_group(4, sample=OTHER, **early), total=9)
    api.says(f"{PATH}/groups", first, second)
    ran = run("dlq", "coder", "-n", "team-a", "-o", "json")
    found = json.loads(ran.out)
    assert [(g["reason"], g["count"], g["sample"]) for g in found["groups"]] == [
        ("MaxDeliveries", 6, UUID),
        ("Other", 5, UUID),
    ]
    joined = found["groups"][0]
    assert (joined["first"], joined["last"]) == ("2020-01-01T00:00:00Z", "2020-11-30T09:39:50Z")
    assert (found["scanned"], found["more"]) == (6, False)
    assert [asked.query.get("cursor") for asked in api.asked] == [None, ["c1"]]


def test_what_was_not_looked_at_is_said(api: FakeApi) -> None:
    api.says(f"{PATH}/groups", groups(a_group(3), more=True, cursor="c", total=90))
    ran = run("dlq", "coder", "-n", "team-a", "--limit", "3")
    assert ran.lines[-1] == "Looked at the newest 3 of 90: --limit N looks at more."
    api.says(f"{PATH}/groups", groups(scanned=0))
    assert run("dlq", "coder", "-n", "team-a").out == "no dead letters of team-a/coder\n"


def test_letters_are_listed_and_filtered(api: FakeApi) -> None:
    api.says(PATH, letters(a_letter(), a_letter("4-0", OTHER, reason="InvalidPayload")))
    assert len(run("dlq", "coder", "-n", "team-a", "--list").lines) == 3
    ran = run("dlq", "coder", "-n", "team-a", "--list", "--reason", "InvalidPayload")
    assert [line.split()[0] for line in ran.lines[1:]] == ["4-0"]
    assert run("dlq", "coder", "-n", "team-a", "--list", "--sender", "x").lines == [
        "no such dead letters of team-a/coder"
    ]


def test_one_is_shown_by_the_beginning_of_its_id_with_its_payload(api: FakeApi) -> None:
    hostile = a_letter(error="first\nreason: forged")
    hostile["message"]["payload"] = {"text": "\x1b[2J\u202e"}
    api.says(PATH, letters(hostile, a_letter("4-0", OTHER)))
    ran = run("dlq", "coder", "-n", "team-a", "--show", "7ec4")
    assert "reason:      MaxDeliveries" in ran.lines
    assert [line for line in ran.lines if line.startswith("reason:")] == ["reason:      MaxDeliveries"]
    assert ran.lines[-2] == '    "text": "\\u001b[2J\\u202e"'
    assert run("dlq", "coder", "-n", "team-a", "--show", "4-0").code == 0
    nothing = run("dlq", "coder", "-n", "team-a", "--show", "abcd")
    assert (nothing.code, nothing.err) == (
        1,
        "error: no dead letter of team-a/coder is abcd: --list shows them\n",
    )
    several = run("dlq", "coder", "-n", "team-a", "--show", "1-0")
    assert (several.code, several.err) == (2, "error: 1-0 is 2 dead letters (5-0, 4-0 …): say which\n")


def test_letters_are_written_down_whole_for_their_owner_alone(api: FakeApi, folder: Path) -> None:
    no_payload = a_letter("3-0")
    no_payload["message"] |= {"payload": None, "problem": "too large"}
    api.says(PATH, letters(a_letter(), more=True, cursor="c"), letters(a_letter("4-0"), no_payload))
    ran = run("dlq", "coder", "-n", "team-a", "--export", "letters.jsonl")
    assert ran.code == 0
    assert ran.err.splitlines() == [
        "3 dead letters written to letters.jsonl",
        "warning: 1 of them without their payload: see `problem`",
    ]
    written = [json.loads(line) for line in (folder / "letters.jsonl").read_text().splitlines()]
    assert [letter["letter"] for letter in written] == ["5-0", "4-0", "3-0"]
    assert written[0]["message"]["from"] == "boss"
    assert stat.S_IMODE((folder / "letters.jsonl").stat().st_mode) == 0o600
    again = run("dlq", "coder", "-n", "team-a", "--export", "letters.jsonl")
    assert (again.code, len(again.err.splitlines())) == (2, 1)
    api.says(PATH, letters(a_letter()))
    assert json.loads(run("dlq", "coder", "-n", "team-a", "--export", "-").out)["letter"] == "5-0"


def test_half_an_export_leaves_no_file(api: FakeApi, folder: Path) -> None:
    api.says(PATH, letters(a_letter(), more=True, cursor="c"), "no json")
    assert run("dlq", "coder", "-n", "team-a", "--export", "letters.jsonl").code == 3
    assert [path.name for path in folder.iterdir()] == [".agentstream"]


def test_nothing_is_removed_without_a_selection_or_an_answer(api: FakeApi) -> None:
    ran = run("dlq", "coder", "-n", "team-a", "--drop", "--yes")
    assert (ran.code, api.asked) == (2, [])
    assert ran.err.startswith("error: --drop needs a selection: ")
    api.says("/queue/replay", dropped(), method="POST")
    ran = run("dlq", "coder", "-n", "team-a", "--drop", "--reason", "InvalidPayload")
    assert (ran.code, ran.err) == (
        2,
        "error: Remove 3 of 9 dead letters of team-a/coder? Nothing was removed: add --yes\n",
    )
    assert [asked.body["dryRun"] for asked in api.asked] == [True]
    api.says("/queue/replay", dropped(matched=0, wouldMove=0), method="POST")
    assert run("dlq", "coder", "-n", "team-a", "--drop", "--id", "1-0", "--yes").code == 1


@pytest.mark.parametrize(("given", "code", "asked"), [("y\n", 0, 2), ("n\n", 1, 1), ("\n", 1, 1), ("", 1, 1)])
def test_on_a_terminal_it_asks_and_only_a_yes_removes(
    api: FakeApi, monkeypatch: pytest.MonkeyPatch, given: str, code: int, asked: int
) -> None:
    terminal = SimpleNamespace(stdin=SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("agentstream_operator.commands.letters.sys", terminal)
    api.says("/queue/replay", dropped(), removed(), method="POST")
    ran = run("dlq", "coder", "-n", "team-a", "--drop", "--reason", "InvalidPayload", given=given)
    assert "Remove 3 of 9 dead letters of team-a/coder for good? [y/N]" in ran.err
    assert (ran.code, len([each for each in api.asked if each.method == "POST"])) == (code, asked), ran.err


def test_what_was_counted_is_removed_and_nothing_that_came_later(api: FakeApi) -> None:
    api.says("/queue/replay", dropped(), removed(), method="POST")
    ran = run(
        "dlq", "coder", "-n", "team-a", "--drop", "--reason", "InvalidPayload", "--yes", "--because", "x"
    )
    assert (ran.code, ran.err) == (0, "")
    assert ran.lines == ["replay team-a/r Complete: 3/3 removed"]
    assert api.asked[1].body == {
        "namespace": "team-a",
        "groupRef": {"name": "coder"},
        "from": {"source": "DeadLetters", "until": "2020-11-30T09:39:50.123000Z"},
        "select": {"reasons": ["InvalidPayload"]},
        "action": "Drop",
        "reason": "x",
    }


@pytest.mark.parametrize(
    "options",
    [("--list", "--drop"), ("--show", "1", "--export", "-"), ("--watch", "--list"), ("--reason", "X")],
)
def test_what_makes_no_sense_together_is_a_line(api: FakeApi, options: tuple[str, ...]) -> None:
    ran = run("dlq", "coder", "-n", "team-a", *options)
    assert (ran.code, len(ran.err.splitlines()), api.asked) == (2, 1, [])
