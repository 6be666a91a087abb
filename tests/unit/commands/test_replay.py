"""`agentstream replay` and `agentstream replays`: what the API is asked, and what is said of its answers."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from agentstream_operator.commands.failure import CommandFailed
from agentstream_operator.commands.times import bound
from support.fake_api import FakeApi, run

NOW = datetime(2026, 12, 1, 10, 30, tzinfo=timezone(timedelta(hours=2)))


def preview(**fields: Any) -> dict[str, Any]:
    return {
        "namespace": "team-a",
        "group": "coder",
        "source": "DeadLetters",
        "total": 2117,
        "matched": 2114,
        "wouldMove": 2102,
        "skipped": {"expired": 12, "notAddressed": 0},
        "first": "2020-11-30T09:02:11Z",
        "last": "2020-11-30T09:39:50Z",
        "seconds": 43.0,
        "sample": [],
        "warnings": [],
        "scanned": 2117,
        "more": False,
        **fields,
    }


def replay(phase: str = "Running", **status: Any) -> dict[str, Any]:
    return {
        "namespace": "team-a",
        "name": "coder-b7k2x",
        "uid": "u",
        "created": "2026-12-01T08:00:00Z",
        "requestedBy": "jane",
        "phase": phase,
        "message": "waits for replay coder-first" if phase == "Pending" else "",
        "spec": {"groupRef": {"name": "coder"}, "from": {"source": "DeadLetters"}},
        "status": {"phase": phase, **status},
    }


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentstream_operator.commands.replaying.time.sleep", lambda _: None)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("09:00", "2026-12-01T07:00:00.000Z"),
        ("10:30", "2026-12-01T08:30:00.000Z"),
        # not later than now: that of yesterday
        ("23:50", "2026-11-30T21:50:00.000Z"),
        ("10m", "2026-12-01T08:20:00.000Z"),
        ("1h30m", "2026-12-01T07:00:00.000Z"),
        ("2d", "2026-11-29T08:30:00.000Z"),
        ("2026-11-30T09:00:00Z", "2026-11-30T09:00:00.000Z"),
        ("2026-11-30T09:00:00+01:00", "2026-11-30T08:00:00.000Z"),
        ("2026-11-30T09:00", "2026-11-30T07:00:00.000Z"),
        ("1796040762366-0", "1796040762366-0"),
    ],
)
def test_times_as_people_write_them(text: str, meant: str) -> None:
    assert bound("--since", text, NOW) == meant


@pytest.mark.parametrize(
    "text", ["", "24:00", "9", "ten", "10x", "-5m", "2026-11-30", "2026-13-01T00:00:00Z", "99999d", "\x1b[2J"]
)
def test_what_is_no_time_is_said_with_what_is_one(text: str) -> None:
    if text == "99999d":
        # so long ago that nothing is older is a time
        assert bound("--since", text, NOW) < "1970"
        return
    with pytest.raises(CommandFailed, match=r"^--since: .* is no time: use 09:00, 10m, ") as failure:
        bound("--since", text, NOW)
    assert failure.value.code == 2


def test_a_dry_run_says_what_would_happen_and_asks_for_nothing_else(api: FakeApi) -> None:
    api.says(
        "/queue/replay", preview(warnings=["10 messages are from before the contract changed"]), method="POST"
    )
    ran = run(
        *(
            "replay",
            "coder",
            "-n",
            "team-a",
            "--dead",
            "--reason",
            "MaxDeliveries",
            "--rate",
            "50",
            "--dry-run",
        )
    )
    assert ran.code == 0, ran.err
    assert ran.lines[0].startswith("2,114 of 2,117 dead letters of team-a/coder match (2020-11-30 ")
    assert ran.lines[0].endswith("; 12 expired and stay; 2,102 to move, about 43s.")
    assert ran.lines[1:] == [
        "warning: 10 messages are from before the contract changed",
        "Only coder gets them again. Nothing was changed; leave --dry-run out to start.",
    ]
    [asked] = api.asked
    assert asked.body == {
        "namespace": "team-a",
        "groupRef": {"name": "coder"},
        "from": {"source": "DeadLetters"},
        "select": {"reasons": ["MaxDeliveries"]},
        "rate": 50,
        "dryRun": True,
    }


def test_a_dry_run_that_has_not_looked_at_everything_says_so(api: FakeApi) -> None:
    api.says("/queue/replay", preview(more=True, scanned=5000, to="9-0"), method="POST")
    ran = run("replay", "coder", "-n", "team-a", "--dead", "--dry-run")
    assert ran.lines[0].startswith("at least 2,114 of")
    assert "Looked at 5,000, up to 9-0: there are more." in ran.lines


def test_all_options_arrive(api: FakeApi) -> None:
    api.says("/queue/replay", preview(), method="POST")
    options = (
        "--since 1-0 --until 2-0 --type event --type task_request --sender boss --correlation c --id 1-1"
    )
    more = "--limit 7 --rate 8 --window 9 --expired --because INC-4711 --dry-run -o json"
    ran = run("replay", "team-a/coder", *options.split(), *more.split())
    assert json.loads(ran.out)["wouldMove"] == 2102
    assert api.asked[0].body == {
        "namespace": "team-a",
        "groupRef": {"name": "coder"},
        "from": {"source": "Stream", "since": "1-0", "until": "2-0"},
        "select": {
            "types": ["event", "task_request"],
            "senders": ["boss"],
            "correlation": "c",
            "ids": ["1-1"],
        },
        "limit": 7,
        "rate": 8,
        "window": 9,
        "reason": "INC-4711",
        "expired": "Deliver",
        "dryRun": True,
    }


def test_a_replay_is_shown_until_it_has_ended(api: FakeApi) -> None:
    path = "/queue/replays/team-a/coder-b7k2x"
    api.says("/queue/replay", replay("Pending"), method="POST", status=202)
    running = replay(matched=1000, moved=812, handled=640)
    done = replay("Complete", matched=1000, moved=988, handled=988, skipped={"notAddressed": 12})
    api.says(path, running, running, done)
    ran = run("replay", "coder", "-n", "team-a", "--dead")
    assert (ran.code, ran.err) == (0, "")
    assert ran.lines == [
        "replay team-a/coder-b7k2x Pending: 0/0 moved · 0 handled (waits for replay coder-first)",
        "replay team-a/coder-b7k2x Running: 812/1,000 moved · 640 handled",
        "replay team-a/coder-b7k2x Complete: 988/1,000 moved · 988 handled · 12 not addressed",
    ]
    key = next(v for k, v in api.asked[0].headers.items() if k.lower() == "idempotency-key")
    assert key.startswith("coder-")


def test_a_running_replay_says_how_fast_it_is(api: FakeApi) -> None:
    began = datetime.now(UTC) - timedelta(seconds=20)
    running = replay(matched=1000, moved=1000, handled=640, startedAt=began.isoformat())
    api.says("/queue/replay", running, method="POST", status=202)
    api.says("/queue/replays/team-a/coder-b7k2x", replay("Complete", matched=1000, moved=1000, handled=1000))
    ran = run("replay", "coder", "--dead", "-n", "team-a")
    speed = re.search(r" · (\d+)/s$", ran.lines[0])
    assert speed is not None
    # 20 s ago, and however long this machine took since
    assert 1 <= int(speed[1]) <= 50
    assert "/s" not in ran.lines[-1]


def test_what_died_again_and_what_failed_are_exit_codes(api: FakeApi) -> None:
    ended = replay("Complete", matched=3, moved=3, handled=0, dead=3)
    api.says("/queue/replay", ended, method="POST", status=202)
    ran = run("replay", "coder", "-n", "team-a", "--dead")
    assert (ran.code, ran.err) == (
        1,
        "error: 3 of them are dead letters again: agentstream dlq coder -n team-a\n",
    )
    failed = replay("Failed") | {"message": "the group was deleted"}
    api.says("/queue/replay", failed, method="POST", status=202)
    ran = run("replay", "coder", "-n", "team-a", "--dead", "-o", "json")
    assert json.loads(ran.out)["phase"] == "Failed"
    assert (ran.code, ran.err) == (1, "error: replay team-a/coder-b7k2x failed: the group was deleted\n")


def test_ctrl_c_leaves_it_running_and_says_what_can_be_done(
    api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("agentstream_operator.commands.replaying.time.sleep", interrupt)
    api.says("/queue/replay", replay(), method="POST", status=202)
    ran = run("replay", "coder", "-n", "team-a", "--dead")
    assert ran.code == 0
    assert ran.lines[1] == "replay team-a/coder-b7k2x goes on without this command:"
    assert [line.split()[2] for line in ran.lines[2:]] == ["show", "suspend", "delete"]
    assert not [asked for asked in api.asked if asked.method == "DELETE"]


def test_an_answer_that_gets_lost_says_where_to_look(api: FakeApi) -> None:
    api.fails("/queue/replay", 503, "the API server does not answer", "later", method="POST")
    ran = run("replay", "coder", "-n", "team-a", "--dead")
    assert ran.code == 3
    assert ran.err.splitlines()[1].startswith("error: whether it began: agentstream replays show coder-")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "say which messages: --dead, --since TIME (with --until TIME), or --id ID"),
        (("--type", "event"), "say which messages"),
        (("--since", "10m", "--reason", "X"), "--reason is one of dead letters: add --dead"),
        (("--since", "nine"), "--since: 'nine' is no time"),
    ],
)
def test_what_makes_no_sense_is_not_asked(api: FakeApi, options: tuple[str, ...], said: str) -> None:
    ran = run("replay", "coder", "-n", "team-a", *options)
    assert ran.code == 2
    assert ran.err.startswith(f"error: {said}")
    assert not api.asked


def test_replays_are_listed_and_the_reason_is_in_the_wide_table(api: FakeApi) -> None:
    api.says("/queue/replays", {"replays": []})
    assert run("replays").out == "no replays\n"
    api.says("/queue/replays", {"replays": [replay(matched=10, moved=8, handled=None, dead=0)]})
    ran = run("replays", "-A")
    assert ran.lines[0].split() == [
        "NAMESPACE",
        "NAME",
        "GROUP",
        "SOURCE",
        "MATCHED",
        "MOVED",
        "HANDLED",
        "DEAD",
        "PHASE",
        "AGE",
    ]
    assert ran.lines[1].split()[:9] == [
        "team-a",
        "coder-b7k2x",
        "coder",
        "DeadLetters",
        "10",
        "8",
        "-",
        "0",
        "Running",
    ]
    assert "jane" in run("replays", "-o", "wide").out


def test_one_is_held_let_go_and_ended(api: FakeApi) -> None:
    path = "/queue/replays/team-a/coder-b7k2x"
    api.says("/queue/replays", {"replays": [replay()]})
    api.says(path, replay("Suspended"), method="PATCH")
    api.says(path, "", method="DELETE", status=204)
    api.says(path, replay(matched=2, moved=1))
    assert run("replays", "suspend", "coder-b7k2x").lines == [
        "replay team-a/coder-b7k2x is held: `agentstream replays resume coder-b7k2x -n team-a` lets it go on"
    ]
    assert run("replays", "resume", "coder-b7k2x", "-n", "team-a", "--rate", "5").code == 0
    assert run("replays", "show", "team-a/coder-b7k2x").lines[-1].endswith("1/2 moved · 0 handled")
    assert run("replays", "delete", "coder-b7k2x", "-n", "team-a").out == (
        "replay team-a/coder-b7k2x is deleted\n"
    )
    changes = [asked.body for asked in api.asked if asked.method == "PATCH"]
    assert changes == [{"suspend": True}, {"suspend": False, "rate": 5}]
    missing = run("replays", "show", "other")
    assert (missing.code, missing.err) == (
        1,
        "error: there is no replay other: `agentstream replays -A` lists all\n",
    )
