"""What agents and tenants can write never ends a line of a log, and moves no cursor of a terminal."""

from __future__ import annotations

import ast
import io
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from rich.console import Console
from typer import Exit

from agentstream.errors import AgentStreamError
from agentstream.printable import printable
from agentstream.transport.retry import FailureLog
from agentstream_operator import logs
from agentstream_operator.commands import services
from agentstream_operator.local.screen.output import Lines, relayed_logs
from agentstream_operator.local.screen.table import LiveTable, ViewTable
from agentstream_operator.plan.accounting import Account
from agentstream_operator.reconcile.report.view import GroupView, View
from agentstream_operator.resources.meta import ResourceKey
from agentstream_operator.resources.status import ConditionReason

ROOT = Path(__file__).parents[2]
HOSTILE = "1-0\n2026-11-30 CRITICAL all is well\x1b]0;title\x07\x1b[2J\x9b2J\r\u2028\u202e\u061cgood\x00\x7f"
UNFIT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202e\u061c\ud800-\udfff]")
texts = st.text(st.characters(codec=None)) | st.sampled_from([HOSTILE, HOSTILE * 1_000])


@given(value=texts | st.binary() | st.lists(texts), longest=st.integers(1, 3_000))
@example(HOSTILE, 2_000)
@example("half of a character: \ud800", 2_000)
def test_a_printable_text_is_one_bounded_line_and_unicode(value: object, longest: int) -> None:
    shown = printable(value, longest)
    assert len(shown) <= longest
    assert not UNFIT.search(shown)
    assert "\n" not in shown
    shown.encode()


def test_what_is_fit_stays_as_it_is() -> None:
    for text in ("", "task-1: 3 µs, 日本語 👩‍💻\tok", "a \\n b", "é"):
        assert printable(text) == text


def test_a_value_that_cannot_be_printed_raises_nothing() -> None:
    class Strange:
        def __str__(self) -> str:
            raise SystemExit

        __repr__ = __str__

    assert printable(Strange()) == "(it cannot be printed)"


@pytest.fixture(params=["text", "json"])
def service_log(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What the services write to standard error."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    logs.configure(request.param)
    yield written
    root.handlers[:], root.level = before, level


@pytest.fixture
def program_log() -> Iterator[io.StringIO]:
    """What a program writes that configures logging in the simplest way."""
    written, log = io.StringIO(), logging.getLogger("agentstream")
    handler = logging.StreamHandler(written)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    log.addHandler(handler)
    yield written
    log.removeHandler(handler)


def calls() -> list[tuple[str, int, str, int]]:
    """Every call that logs: file, line, the text, and how many arguments it has besides."""
    found = []
    for path in sorted([*(ROOT / "sdk").rglob("*.py"), *(ROOT / "operator").rglob("*.py")]):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id == "_log"
            ):
                first = node.args[0]
                text = first.value if isinstance(first, ast.Constant) else "%s" * (len(node.args) - 1)
                assert isinstance(text, str)
                starred = any(isinstance(arg, ast.Starred) for arg in node.args)
                count = text.count("%") - 2 * text.count("%%") if starred else len(node.args) - 1
                found.append((str(path.relative_to(ROOT)), node.lineno, text, count))
    return found


CALLS = calls()


def value_for(conversion: str) -> object:
    return 7 if conversion in "dgf" else HOSTILE if conversion == "s" else [HOSTILE]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: f"{call[0]}:{call[1]}")
def test_no_call_that_logs_lets_hostile_values_through(
    call: tuple[str, int, str, int], service_log: io.StringIO, program_log: io.StringIO
) -> None:
    place, line, text, count = call
    conversions = re.findall(r"%[-0-9.]*([a-z])", text.replace("%%", ""))
    assert len(conversions) == count, f"{place}:{line}: a text is put together before it is logged"
    log = logging.getLogger("agentstream" if place.startswith("sdk") else "agentstream_operator.any")
    log.error(text, *map(value_for, conversions), exc_info=AgentStreamError(HOSTILE))
    for written in (service_log, program_log if place.startswith("sdk") else service_log):
        shown = written.getvalue()
        assert shown
        assert not UNFIT.search(shown)
        assert not re.search(r"^2026-11-30 CRITICAL", shown, re.MULTILINE)


@pytest.mark.parametrize(
    "message", [f"put together: {HOSTILE}", ValueError(HOSTILE)], ids=["text", "an error"]
)
def test_no_library_lets_hostile_values_through(message: object, service_log: io.StringIO) -> None:
    logging.getLogger("kopf.any").error(message)
    assert "CRITICAL" in service_log.getvalue()
    assert service_log.getvalue().count("\n") == 1
    assert not UNFIT.search(service_log.getvalue())


def test_errors_of_the_server_are_one_line(program_log: io.StringIO) -> None:
    FailureLog("read tasks").failed(AgentStreamError(HOSTILE))
    assert program_log.getvalue().count("\n") == 1
    assert not UNFIT.search(program_log.getvalue())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text() | st.just(HOSTILE))
@example("\x1b[31mred\x1b[0m\x1b[2J")
@example(HOSTILE)
def test_the_screen_of_local_mode_shows_lines_and_colours_only(text: str) -> None:
    line = text.replace("\n", " ")
    plain, terminal = io.StringIO(), io.StringIO()
    table = LiveTable(Console(file=terminal, force_terminal=True, width=100, color_system=None))
    table._live.stop()
    terminal.truncate(0)
    for screen in (Lines(plain, lambda: None), table):
        screen.say(text)
        screen.relay("coder", line)
        with relayed_logs(screen):
            logging.getLogger("agentstream_operator.any").warning("%s", text, exc_info=ValueError(text))
    for written in (plain, terminal):
        shown = re.sub(r"\x1b\[[0-9;]*m", "", written.getvalue()).replace("\x00" * 1_000, "")
        assert not UNFIT.search(shown.lstrip("\x00"))
    assert plain.getvalue().count("\n") == 3


def test_colours_of_a_process_stay() -> None:
    plain = io.StringIO()
    Lines(plain, lambda: None).relay("coder", "\x1b[31mred\x1b[0m \x1b[2Jgone")
    assert plain.getvalue() == "[coder] \x1b[31mred\x1b[0m \\x1b[2Jgone\x1b[0m\n"


def test_no_process_colours_or_hides_the_lines_of_others() -> None:
    plain = io.StringIO()
    Lines(plain, lambda: None).relay("coder", "\x1b[8mhidden from here on")
    assert plain.getvalue() == "[coder] \x1b[8mhidden from here on\x1b[0m\n"


def test_an_error_of_the_command_line_is_fit_for_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Exit):
        services.fail(HOSTILE, "second")
    shown = capsys.readouterr().err
    assert shown.count("\n") == 2
    assert not UNFIT.search(shown)


def test_why_a_process_ended_is_fit_for_a_terminal() -> None:
    key = ResourceKey("ConsumerGroup", "team", "coder")
    numbers = (None,) * 7
    group = GroupView(
        key, "tasks", *numbers, HOSTILE, ready=False, reason=ConditionReason.CRASH_LOOP, account=Account()
    )
    written = io.StringIO()
    table = ViewTable().render(View(reachable=True, streams=(), groups=(group,)))
    Console(file=written, width=300, color_system=None).print(table)
    assert not UNFIT.search(written.getvalue())
