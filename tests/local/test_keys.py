"""Keys at the terminal of `agentstream dev`: one opens the console; the terminal is as before in the end."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.dev import a_stream
from support.waiting import until


class Terminal:
    """`agentstream dev` in front of a terminal of its own.

    Attributes:
        ours: our end of the terminal.
        theirs: the other one.
        screen: everything that was shown.
    """

    def __init__(self, directory: Path, **environ: str) -> None:
        self.ours, self.theirs = os.openpty()
        self.screen = ""
        known = {
            name: value for name, value in os.environ.items() if "DISPLAY" not in name and name != "BROWSER"
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "agentstream_operator", "dev", "m.yaml"],
            cwd=directory,
            env={**known, **environ},
            stdin=self.theirs,
            stdout=self.theirs,
            stderr=self.theirs,
            start_new_session=True,
            # the terminal of its session; no thread of ours runs at that moment
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509
        )
        self._reading = threading.Thread(target=self._read)
        self._reading.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while chunk := os.read(self.ours, 4096):
                self.screen += chunk.decode(errors="replace")

    @property
    def echoes(self) -> bool:
        """Whether what is typed is shown, and taken line by line."""
        flags = termios.tcgetattr(self.theirs)[3]
        return bool(flags & termios.ECHO) and bool(flags & termios.ICANON)

    def type(self, keys: str) -> None:
        os.write(self.ours, keys.encode())

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.theirs)
        self._reading.join()
        os.close(self.ours)


@pytest.fixture
def browser(tmp_path: Path) -> Path:
    """A browser that notes what it was to open, beside itself."""
    program = tmp_path / "browser"
    program.write_text(f'#!/bin/sh\necho "$1" >> {tmp_path}/opened\n')
    program.chmod(0o700)
    return program


@pytest.fixture
def terminal(request: pytest.FixtureRequest, tmp_path: Path, browser: Path) -> Iterator[Terminal]:
    (tmp_path / "m.yaml").write_text(a_stream("tasks", "producers: [boss]"))
    more = {"BROWSER": f"{browser} %s"} if request.param else {}
    found = Terminal(tmp_path, **more)
    yield found
    found.close()


@pytest.mark.parametrize("terminal", [True], indirect=True)
@pytest.mark.parametrize("ending", ["\x03", signal.SIGTERM], ids=["ctrl-c", "sigterm"])
async def test_a_key_opens_the_console_and_the_terminal_is_as_before_in_the_end(
    terminal: Terminal, tmp_path: Path, ending: str | signal.Signals
) -> None:
    await until(lambda: "(o opens it)" in terminal.screen, timeout=30)
    assert not terminal.echoes
    terminal.type("xo\n")
    opened = tmp_path / "opened"
    await until(lambda: opened.exists() and opened.read_text().count("\n") == 1)
    assert opened.read_text().startswith("http://127.0.0.1:")
    assert "/console/login?code=" in opened.read_text()
    if isinstance(ending, str):
        terminal.type(ending)
    else:
        terminal.process.send_signal(ending)
    await until(lambda: terminal.process.poll() is not None, timeout=30)
    assert terminal.process.returncode == 0
    assert terminal.echoes


@pytest.mark.parametrize("terminal", [False], indirect=True)
async def test_without_a_browser_it_shows_the_link(terminal: Terminal) -> None:
    await until(lambda: "(o opens it)" in terminal.screen, timeout=30)
    terminal.type("o")
    await until(lambda: "no browser can be opened here" in terminal.screen)
