"""Completion in a real shell, also as a plugin of kubectl: names that there are, and never an error."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.fake_api import FakeApi

PROGRAMS = Path(sys.executable).parent
# what a terminal would do after Tab: the script that the program prints, and the function that it registers
TAB = """
script=$(agentstream --show-completion) || exit 9
eval "$script"
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
function=$(complete -p agentstream | sed 's/.*-F \\([^ ]*\\).*/\\1/')
"$function" "$1"
printf '%s\\n' "${COMPREPLY[@]}"
"""


def bash(script: str, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": f"{PROGRAMS}:/usr/bin:/bin", "HOME": str(Path.cwd())}
    return subprocess.run(
        ["bash", "-c", script, "bash", *words], capture_output=True, text=True, check=False, env=environment
    )


def tab(*words: str) -> list[str]:
    """What Tab after these words offers."""
    ran = bash(TAB, *words)
    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout.split()


def declare(api: FakeApi, *names: str) -> None:
    """Lets the API know groups of these names in the namespaces a, b and so on."""
    groups: list[dict[str, Any]] = [
        {"namespace": chr(97 + n), "name": name, "stream": "s", "known": False, "ready": True, "reason": "R"}
        for n, name in enumerate(names)
    ]
    answer = {"at": "2026-12-01T09:00:00Z", "server": {"reachable": True}, "streams": [], "groups": groups}
    api.says("/queue/lag", answer)


def test_names_of_groups_are_offered(api: FakeApi) -> None:
    declare(api, "coder", "counter", "boss")
    assert tab("agentstream", "lag", "co") == ["coder", "counter"]
    assert tab("agentstream", "dlq", "-n", "a", "") == ["coder"]
    assert tab("agentstream", "lag", "-n", "") == ["a", "b", "c"]


def test_commands_and_options_are_offered_without_asking_anybody(folder: Path) -> None:
    assert {"replay", "replays"} <= set(tab("agentstream", "rep"))
    assert "--dry-run" in tab("agentstream", "replay", "--d")


def test_names_that_a_shell_would_read_are_not_offered(api: FakeApi) -> None:
    declare(api, "coder", "$(touch x)", "a;b", "`id`", "\x1b[2J")
    assert tab("agentstream", "lag", "") == ["coder"]


@pytest.mark.parametrize("trouble", ["nothing", "ended", "broken", "refused"])
def test_whatever_goes_wrong_a_shell_sees_no_error(api: FakeApi, folder: Path, trouble: str) -> None:
    if trouble == "nothing":
        (folder / ".agentstream" / "console").unlink()
    elif trouble == "ended":
        (folder / ".agentstream" / "console").write_text('{"url": "http://127.0.0.1:9", "token": "t"}')
    elif trouble == "broken":
        api.says("/queue/lag", "<html>")
    else:
        api.fails("/queue/lag", 403, "no")
    assert tab("agentstream", "lag", "co") == []


def test_it_is_installed_for_bash(folder: Path) -> None:
    ran = bash("agentstream --install-completion; true")
    assert "bash completion installed" in ran.stdout
    assert "agentstream" in (folder / ".bashrc").read_text()


def test_kubectl_gets_completions_as_it_asks_for_them(api: FakeApi) -> None:
    declare(api, "coder", "counter")
    ran = bash('kubectl_complete-agentstream "$@"', "lag", "co")
    assert (ran.stdout.split(), ran.stderr) == (["coder", "counter", ":4"], "")
    assert bash('kubectl_complete-agentstream "$@"', "repla").stdout.split() == ["replay", "replays", ":4"]


def test_the_plugin_names_itself_as_it_is_called(folder: Path) -> None:
    assert bash("kubectl-agentstream lag --help").stdout.startswith("Usage: kubectl agentstream lag ")
    assert bash("agentstream lag --help").stdout.startswith("Usage: agentstream lag ")
    told = bash("kubectl-agentstream lag --nonsense")
    assert told.stderr.splitlines()[1] == "Try 'kubectl agentstream lag --help' for help."
