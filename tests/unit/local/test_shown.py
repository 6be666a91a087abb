"""What people see: lines, the table, the summary, and when it ends by itself."""

from __future__ import annotations

import io
import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from agentstream_operator.local.dev import HOPELESS, IdleDetector
from agentstream_operator.local.screen.advice import (
    QUIET,
    DeadLetterNotices,
    after_ready,
    after_the_end,
    where,
)
from agentstream_operator.local.screen.output import PROGRESS_EVERY, Lines, relayed_logs
from agentstream_operator.local.screen.summary import as_json, as_text, summarise
from agentstream_operator.local.screen.table import ViewTable
from agentstream_operator.plan.accounting import Account, Latency
from agentstream_operator.reconcile.report.view import GroupView, StreamView, View
from agentstream_operator.resources.meta import ResourceKey
from agentstream_operator.resources.reasons import ConditionReason


def a_group(name: str = "coder", stream: str = "tasks", **changes: object) -> GroupView:
    view = GroupView(
        resource=ResourceKey("ConsumerGroup", "default", name),
        stream=stream,
        backlog=0,
        undelivered=0,
        pending=0,
        delayed=0,
        dead=0,
        replicas=1,
        running=1,
        crashing=None,
        ready=True,
        reason=ConditionReason.READY,
        account=Account(),
    )
    return replace(view, **changes)  # type: ignore[arg-type]


def a_stream(name: str = "tasks", **changes: object) -> StreamView:
    key = ResourceKey("AgentStream", "default", name)
    view = StreamView(key, f"{{default.{name}}}", 0, 0, 0.0, ready=True, reason=ConditionReason.READY)
    return replace(view, **changes)  # type: ignore[arg-type]


def a_view(*groups: GroupView, streams: tuple[StreamView, ...] = ()) -> View:
    return View(reachable=True, streams=streams, groups=groups)


def an_account(**counts: int) -> Account:
    return Account(**counts, latency=Latency({10.0: counts.get("acknowledged", 0)}))


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Shown:
    """Lines into memory."""

    def __init__(self) -> None:
        self.file, self.clock, self.closed = io.StringIO(), Clock(), 0
        self.lines = Lines(self.file, closed=self.close, clock=self.clock)

    def close(self) -> None:
        self.closed += 1

    @property
    def text(self) -> list[str]:
        return self.file.getvalue().splitlines()


def test_a_line_of_a_process_begins_with_its_name() -> None:
    shown = Shown()
    shown.lines.relay("coder-0", "hello")
    assert shown.text == ["[coder-0] hello"]


def test_what_happened_has_the_time() -> None:
    shown = Shown()
    shown.lines.say("hello")
    assert len(shown.text[0].split(":")) == 3
    assert shown.text[0].endswith(" hello")


def test_numbers_are_shown_when_they_changed() -> None:
    shown = Shown()
    shown.lines.show(a_view(a_group()))
    shown.clock.now += PROGRESS_EVERY
    shown.lines.show(a_view(a_group()))
    assert shown.text == []
    shown.clock.now += PROGRESS_EVERY
    shown.lines.show(a_view(a_group(backlog=3, delayed=2, account=Account(acknowledged=4, lost=1))))
    assert shown.text[0].endswith(
        "default/coder: backlog 3, 2 delayed retries, 1 running, 4 acknowledged, 0 dead letters, 1 LOST"
    )


def test_numbers_are_shown_only_now_and_then() -> None:
    shown = Shown()
    for backlog in range(5):
        shown.lines.show(a_view(a_group(backlog=backlog)))
    assert shown.text == []


def test_numbers_that_are_not_known_are_not_shown() -> None:
    shown = Shown()
    shown.lines.show(a_view(a_group()))
    shown.clock.now += PROGRESS_EVERY
    shown.lines.show(a_view(a_group(backlog=None)))
    assert shown.text == []


class Unread(io.StringIO):
    """A pipe whose reader has gone away."""

    def write(self, _text: str) -> int:
        raise BrokenPipeError


def test_a_closed_output_is_told() -> None:
    closed: list[bool] = []
    Lines(Unread(), closed=lambda: closed.append(True), clock=Clock()).say("hello")
    assert closed == [True]


@pytest.mark.parametrize(
    ("error", "expected"), [(None, "warning: odd"), (ValueError("why"), "warning: odd: ValueError: why")]
)
def test_what_the_reconcilers_log_is_a_line(error: Exception | None, expected: str) -> None:
    shown = Shown()
    with relayed_logs(shown.lines):
        logging.getLogger("agentstream_operator.reconcile").warning("odd", exc_info=error)
        logging.getLogger("agentstream_operator.reconcile").info("ordinary")
    assert [line.split(" ", 1)[1] for line in shown.text] == [expected]


def rendered(table: ViewTable, view: View) -> str:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(table.render(view))
    return console.export_text()


def test_the_table_has_a_row_for_everything() -> None:
    text = rendered(
        ViewTable(),
        a_view(
            a_group(backlog=1234, replicas=3, running=2, dead=5, account=Account(acknowledged=99)),
            a_group("elsewhere", replicas=None, running=None),
            streams=(a_stream(length=1_000_000, rate=12.34),),
        ),
    )
    assert [line.split() for line in text.splitlines()] == [
        ["stream", "length", "per", "second", "state"],
        ["tasks", "1,000,000", "12.3", "ready"],
        ["group", "backlog", "consumers", "acknowledged", "dead", "letters", "state"],
        ["coder", "1,234", "2/3", "99", "5", "ready"],
        ["elsewhere", "0", "-", "0", "0", "ready"],
    ]


def test_the_table_says_why_something_is_not_ready() -> None:
    group = a_group(ready=False, reason=ConditionReason.STREAM_MISSING)
    assert "StreamMissing" in rendered(ViewTable(), a_view(group))


def test_the_table_says_why_processes_crash() -> None:
    assert "exit code 1" in rendered(ViewTable(), a_view(a_group(crashing="exit code 1")))


def test_the_table_names_other_namespaces() -> None:
    key = ResourceKey("ConsumerGroup", "team-a", "coder")
    assert "team-a/coder" in rendered(ViewTable(), a_view(a_group(resource=key)))


def test_the_table_keeps_the_table_number_that_was_known() -> None:
    table = ViewTable()
    assert "?" in rendered(table, a_view(a_group(backlog=None)))
    rendered(table, a_view(a_group(backlog=77)))
    assert "77" in rendered(table, a_view(a_group(backlog=None)))


def test_what_two_groups_read_was_sent_once() -> None:
    summary = summarise(
        a_view(
            a_group("a", account=an_account(sent=10, acknowledged=10)),
            a_group("b", account=an_account(sent=10, acknowledged=8, dead=2)),
            a_group("c", "results", account=an_account(sent=5, acknowledged=4), backlog=1),
        ),
        1.5,
    )
    total = summary.total
    assert (total.sent, total.acknowledged, total.dead_lettered, total.waiting) == (15, 22, 2, 1)


def test_the_summary_is_a_table() -> None:
    summary = summarise(
        a_view(
            a_group("a", account=an_account(sent=1000, acknowledged=1000)),
            a_group("b", "s", account=replace(Account(), acknowledged=1, latency=Latency({5000.0: 1}))),
            a_group("c", "t"),
        ),
        1.5,
    )
    assert [line.split() for line in as_text(summary).splitlines()] == [
        ["sent", "acknowledged", "dead-lettered", "lost", "waiting", "p50", "p95"],
        ["a", "1,000", "1,000", "0", "0", "0", "8.5", "ms", "9.8", "ms"],
        ["b", "0", "1", "0", "0", "0", "4.0", "s", "4.9", "s"],
        ["c", "0", "0", "0", "0", "0", "-", "-"],
        ["total", "1,000", "1,001", "0", "0", "0", "8.5", "ms", "9.9", "ms"],
    ]


def test_the_summary_is_json() -> None:
    summary = summarise(a_view(a_group(account=an_account(sent=1, acknowledged=1))), 1.5)
    decoded = json.loads(as_json(summary))
    assert decoded["seconds"] == 1.5
    assert decoded["groups"][0]["numbers"]["p95Ms"] == decoded["total"]["p95Ms"] == 9.8


def test_a_time_beyond_the_last_bucket_is_not_known() -> None:
    account = Account(acknowledged=1, latency=Latency({float("inf"): 1}))
    assert summarise(a_view(a_group(account=account)), 1.0).total.p50_ms is None


WORKED = Account(acknowledged=1)


@pytest.mark.parametrize(
    ("views", "expected"),
    [
        ([(0, a_group()), (9, a_group())], False),
        ([(0, a_group(account=WORKED)), (4, a_group(account=WORKED))], False),
        ([(0, a_group(account=WORKED)), (5, a_group(account=WORKED))], True),
        ([(0, a_group(account=Account(dead=1))), (5, a_group(account=Account(dead=1)))], True),
        ([(0, a_group(account=WORKED)), (5, a_group(account=WORKED, backlog=1))], False),
        ([(0, a_group(account=WORKED)), (5, a_group(account=WORKED, backlog=None))], False),
        ([(0, a_group(account=WORKED)), (5, a_group(account=WORKED, delayed=1))], False),
        ([(0, a_group(account=WORKED)), (3, a_group()), (5, a_group(account=WORKED))], False),
    ],
)
def test_it_is_quiet_when_nothing_happened_for_a_while_after_some_work(
    views: list[tuple[float, GroupView]], *, expected: bool
) -> None:
    quiet = IdleDetector(5.0)
    assert [quiet.reached(a_view(group), now) for now, group in views][-1] is expected


def test_a_message_on_a_stream_without_groups_is_something_that_happens() -> None:
    quiet = IdleDetector(5.0)
    quiet.reached(a_view(a_group(account=WORKED), streams=(a_stream(added=1),)), 0.0)
    assert not quiet.reached(a_view(a_group(account=WORKED), streams=(a_stream(added=2),)), 5.0)


def test_a_server_that_is_away_is_no_quiet_one() -> None:
    quiet, view = IdleDetector(5.0), a_view(a_group(account=WORKED))
    away = View(reachable=False, streams=view.streams, groups=view.groups)
    assert [quiet.reached(v, now) for v, now in ((view, 0), (away, 4), (view, 8))] == [False] * 3


CRASHING = a_group(crashing="exit code 1", backlog=3)
DANGLING = a_group(ready=False, reason=ConditionReason.STREAM_MISSING)
OTHER = a_group("other")


@pytest.mark.parametrize(
    ("views", "expected"),
    [
        ([a_view(CRASHING)], "the consumers of ConsumerGroup default/coder keep ending: exit code 1"),
        ([a_view(OTHER, DANGLING)], "ConsumerGroup default/coder is not ready: StreamMissing"),
        ([a_view(a_group(backlog=3))], None),
        ([a_view(a_group())], None),
        # somebody may still succeed
        ([a_view(CRASHING, a_group("other", pending=1))], None),
        ([View(reachable=False, streams=(), groups=(CRASHING,))], None),
        # something moves
        ([a_view(CRASHING), a_view(a_group(crashing="exit code 1", backlog=2))], None),
        ([a_view(CRASHING), a_view(a_group(crashing="exit code 1", account=WORKED))], None),
        ([a_view(CRASHING), a_view(a_group(backlog=3))], None),
    ],
)
def test_it_gives_up_on_what_is_broken_when_nothing_moves(views: list[View], expected: str | None) -> None:
    quiet = IdleDetector(5.0)
    assert quiet.stuck(views[0], 0.0) is None
    assert quiet.stuck(views[0], HOPELESS - 1) is None
    assert quiet.stuck(views[-1], HOPELESS) == expected


def test_it_waits_for_as_long_as_it_was_told_to() -> None:
    quiet = IdleDetector(60.0)
    quiet.stuck(a_view(CRASHING), 0.0)
    assert quiet.stuck(a_view(CRASHING), 59.0) is None
    assert quiet.stuck(a_view(CRASHING), 60.0) is not None


def test_after_it_is_ready_it_names_commands_that_help() -> None:
    told = after_ready(a_view(a_group(), streams=(a_stream(),)), "in this folder")
    assert told == (
        "next, in another terminal in this folder: "
        "agentstream lag · agentstream top · agentstream tail tasks · agentstream dlq coder · "
        "agentstream --help"
    )
    assert "agentstream lag · agentstream top · agentstream --help" in after_ready(a_view(), "in this folder")


@pytest.mark.parametrize(
    ("data", "place"),
    [
        (".agentstream", "in this folder"),
        ("/home/me/.agentstream", "in this folder"),
        ("/elsewhere/.agentstream", "in /elsewhere"),
        ("data", None),
    ],
)
def test_commands_are_named_only_where_they_find_the_run(
    data: str, place: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    data = data.replace("/home/me", str(tmp_path))
    assert where(Path(data), tmp_path) == place


def test_dead_letters_are_told_of_once_in_a_while_for_each_group() -> None:
    notices = DeadLetterNotices()

    def told(now: float, **dead: int) -> list[str]:
        groups = (a_group(name, account=an_account(dead=count)) for name, count in dead.items())
        return list(notices.lines(a_view(*groups), now))

    assert told(100, coder=0) == []
    assert told(101, coder=1) == ["ConsumerGroup default/coder: 1 new dead letter: agentstream dlq coder"]
    assert told(102, coder=900, tester=0) == []
    # the other one is not held back
    assert told(103, coder=900, tester=2) == [
        "ConsumerGroup default/tester: 2 new dead letters: agentstream dlq tester"
    ]
    assert told(101 + QUIET, coder=1000, tester=2) == [
        "ConsumerGroup default/coder: 999 new dead letters: agentstream dlq coder"
    ]
    assert told(900, coder=1000, tester=2) == []


def test_the_summary_is_followed_by_what_became_dead_letters() -> None:
    fine, dead = a_group("boss"), a_group("coder", account=an_account(dead=1200))
    assert after_the_end(summarise(a_view(fine), 1)) is None
    assert after_the_end(summarise(a_view(fine, dead), 1)) == (
        "dead letters: 1,200 of coder; they are kept: `agentstream dlq coder` shows them while"
        " `agentstream dev` runs"
    )
