"""Commands of this machine."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The project."""


class CommandFailed(Exception):  # noqa: N818 - says what happened
    """A command ended with an error, or did not end in time; the message has what it printed.

    Attributes:
        output: what it printed, both outputs together.
    """

    def __init__(self, command: Sequence[str], why: str, output: str) -> None:
        super().__init__(f"{shlex.join(command)}: {why}\n{output}")
        self.output = output


def run(
    *command: str | Path,
    stdin: str = "",
    env: Mapping[str, str] | None = None,
    timeout: float = 60,
) -> str:
    """Runs a command in the project's directory. Returns its standard output.

    Args:
        command: program and arguments.
        stdin: its input.
        env: variables besides this process's own.
        timeout: for how many seconds it may run.

    Raises:
        CommandFailed: it failed, or was ended because it took too long.
    """
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words,
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
            env={**os.environ, **(env or {})},
            timeout=timeout,
        )
    except subprocess.TimeoutExpired as error:
        output = b"".join(part for part in (error.stdout, error.stderr) if isinstance(part, bytes))
        raise CommandFailed(words, f"not over after {timeout} s", output.decode(errors="replace")) from error
    if done.returncode:
        raise CommandFailed(words, f"exit code {done.returncode}", f"{done.stdout}{done.stderr}".strip())
    return done.stdout
