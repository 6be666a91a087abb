"""Pages name only what there is: commands, targets, files, conditions, settings, tests of promises."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import typer.main

from agentstream.protocol.reasons import Reason
from agentstream_operator.cli import app
from agentstream_operator.resources.reasons import ConditionReason, ConditionType

ROOT = Path(__file__).parents[2]
# decisions and old releases may name what is gone
PAGES = (
    *(
        "README.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "CHANGELOG.md",
        "sdk/README.md",
        "operator/README.md",
        "e2e/README.md",
    ),
    "charts/agentstream/templates/NOTES.txt",
    *(
        str(path.relative_to(ROOT))
        for path in sorted([*(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")])
        if path.parent.name != "adr"
    ),
)
COMMANDS = {
    name: {option for parameter in command.params for option in parameter.opts} | {"--help"}
    for name, command in typer.main.get_command(app).commands.items()
}
TARGETS = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
FOLDERS = "bench|charts|crds|docs|e2e|examples|operator|sdk|tests"


@cache
def text_of(page: str) -> str:
    """A page; of the changelog only what is not released."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return text.partition("\n## [")[0] if page == "CHANGELOG.md" else text


@cache
def code_of(page: str) -> tuple[str, ...]:
    """The lines of code blocks and the code spans of a page; a line that goes on below is one line."""
    text = text_of(page)
    if not page.endswith(".md"):
        return tuple(line.strip() for line in text.splitlines())
    blocks = re.findall(r"^ *```[^\n]*\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    prose = re.sub(r"^ *```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE)
    spans = re.findall(r"`([^`]+)`", prose)
    return tuple(" ".join(part.split()).removeprefix("$ ") for part in (*lines, *spans))


def commands(page: str) -> Iterator[tuple[str, list[str]]]:
    """Every command line of ours on a page: the command and its options."""
    for part in code_of(page):
        line = re.match(r"(?:uv run |kubectl exec .* -- )?agentstream ([a-z][a-z-]*)\b(.*)", part)
        if line:
            yield line[1], re.findall(r"(?<!\S)--[a-z][a-z-]*", line[2])


@cache
def environment() -> frozenset[str]:
    """The environment variables that programs here read or write."""
    sources = [path for folder in ("sdk", "operator", "tests") for path in (ROOT / folder).rglob("*.py")]
    texts = [path.read_text(encoding="utf-8") for path in sources if path != Path(__file__)]
    return frozenset(name for text in texts for name in re.findall(r"\bAGENTSTREAM_[A-Z_]+", text))


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_options_exist(page: str) -> None:
    wrong = [
        f"agentstream {command} {' '.join(options)}"
        for command, options in commands(page)
        if command not in COMMANDS or not COMMANDS[command].issuperset(options)
    ]
    assert not wrong, f"{page} names what `agentstream --help` does not"


@pytest.mark.parametrize("page", PAGES)
def test_make_targets_exist(page: str) -> None:
    named = {name for part in code_of(page) for name in re.findall(r"^make ([a-z0-9-]+)", part)}
    assert named <= TARGETS, f"{page} names targets that `make help` does not"


@pytest.mark.parametrize("page", PAGES)
def test_files_exist(page: str) -> None:
    named = [re.fullmatch(rf"((?:{FOLDERS})/[\w./*-]+)(?:::(\w+))?", part) for part in code_of(page)]
    # the page about guarantees names tests from their folder on
    missing = [
        found[0]
        for found in named
        if found and not exists(found[1], found[2]) and not exists(f"tests/{found[1]}", found[2])
    ]
    assert not missing, f"{page} names files that are not there"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text_of(page))
    missing = [link for link in links if ":" not in link and not ((ROOT / page).parent / link).exists()]
    assert not missing, f"{page} has links to files that are not there"


@pytest.mark.parametrize("page", PAGES)
def test_conditions_and_reasons_exist(page: str) -> None:
    text = " ".join(text_of(page).split())
    types = set(re.findall(r"[Cc]onditions? `([A-Z]\w+)`", text))
    reasons = set(re.findall(r"[Rr]easons? `([A-Z]\w+)`", text))
    assert types <= set(ConditionType)
    assert reasons <= set(ConditionReason) | set(Reason)


@pytest.mark.parametrize("page", PAGES)
def test_environment_variables_exist(page: str) -> None:
    named = set(re.findall(r"\bAGENTSTREAM_[A-Z_]+", text_of(page)))
    assert named <= environment(), f"{page} names variables that no program reads"


def test_the_questions_of_newcomers_are_answered() -> None:
    section = text_of("CONTRIBUTING.md").partition("## Where is")[2].partition("\n## ")[0]
    answers = re.findall(r"^\| .+ \| `[\w./]+::\w+`", section, re.MULTILINE)
    assert len(answers) >= 15


def exists(path: str, name: str | None) -> bool:
    """Whether there is such a file, and it defines a function or class of this name."""
    found = [*ROOT.glob(path)]
    if not name or not found:
        return bool(found)
    text = found[0].read_text(encoding="utf-8")
    return (
        re.search(rf"^ *(?:(?:async |local )?(?:def|function)|class) {name}\b", text, re.MULTILINE)
        is not None
    )


def promises() -> list[tuple[str, str]]:
    """Each promise, and each kind of attacker, and what the page says proves it."""
    pages = (text_of(f"docs/{name}.md") for name in ("guarantees", "security"))
    rows = [line.strip("| ").split(" | ") for page in pages for line in page.splitlines()]
    return [(cells[0], cells[-1]) for cells in rows if len(cells) >= 3 and cells[0].startswith("**")]


@cache
def functions_of(path: Path) -> frozenset[str]:
    """The names of the functions in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return frozenset(node.name for node in tree.body if isinstance(node, functions))


def test_there_are_promises() -> None:
    assert len(promises()) > 30


@pytest.mark.parametrize(("promise", "proof"), promises(), ids=lambda text: text[:40])
def test_a_promise_names_tests_that_there_are(promise: str, proof: str) -> None:
    named = re.findall(r"`([^`]+)`", proof)
    assert named, f"{promise} is proved by nothing"
    for one in named:
        path, _, test = one.partition("::")
        if path.startswith("e2e/"):
            assert (ROOT / path).exists()
        else:
            assert test, f"name a test, as `{path}::test_…`"
            assert test in functions_of(ROOT / "tests" / path), f"{one} does not exist"
