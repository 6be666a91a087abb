"""How the operator logs: lines for people, or JSON."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator

import pytest

from agentstream_operator.logs import configure

CHANGED = ("kopf", "kopf._core.reactor.running", "kubernetes", "aiohttp")
_log = logging.getLogger("agentstream_operator.test")


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Leaves the logging of the tests as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in CHANGED}
    # what pytest adds is not to be closed
    root.handlers[:] = []
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)


def fail() -> None:
    """Logs an error with its trace."""
    try:
        int("why")
    except ValueError:
        _log.exception("it failed")


def test_people_get_lines(capsys: pytest.CaptureFixture[str]) -> None:
    configure("text")
    _log.info("the pod %s is gone", "a")
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO    the pod a is gone\n", err)


def test_collectors_get_one_object_per_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure("json")
    _log.warning("the pod %s is gone", "a")
    fail()
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first.pop("time"))
    assert first == {
        "level": "WARNING",
        "logger": "agentstream_operator.test",
        "message": "the pod a is gone",
    }
    assert second["message"] == "it failed"
    assert "ValueError: invalid literal" in second["exc_info"]


@pytest.mark.parametrize("style", ["text", "json"])
def test_times_are_those_of_greenwich(
    style: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(style)
    record = logging.LogRecord("a", logging.INFO, "", 0, "words", None, None)
    record.created, record.msecs = 1_800_000_000.25, 250.0
    logging.getLogger().handle(record)
    assert "2027-01-15T08:00:00.250Z" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["kopf.objects", "kubernetes.client", "aiohttp.access"])
def test_what_libraries_say_is_for_their_authors(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    configure("text")
    logging.getLogger(name).info("chatter")
    logging.getLogger(name).warning("trouble")
    err = capsys.readouterr().err
    assert "chatter" not in err
    assert "trouble" in err


def test_a_warning_about_signals_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    configure("text")
    logging.getLogger("kopf._core.reactor.running").warning("OS signals are ignored")
    assert capsys.readouterr().err == ""


def test_a_second_call_changes_the_style(capsys: pytest.CaptureFixture[str]) -> None:
    configure("text")
    configure("json")
    _log.info("once")
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["message"] == "once"
