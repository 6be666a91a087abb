"""Keys that are typed at the terminal while `agentstream dev` runs, and what they do."""

from __future__ import annotations

import asyncio
import os
import sys
import termios
import tty
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO


@contextmanager
def reading_keys(terminal: TextIO, pressed: Callable[[str], None]) -> Iterator[bool]:
    """Calls back for each key as long as it is entered; yields whether there is a terminal to type at.

    A run in the background reads nothing, for which the shell would stop it.
    """
    if not terminal.isatty() or not _is_in_front(terminal.fileno()):
        yield False
        return
    file, loop = terminal.fileno(), asyncio.get_running_loop()
    before = termios.tcgetattr(file)

    def read() -> None:
        # somebody may have sent it to the background since
        typed = os.read(file, 64) if _is_in_front(file) else b""
        if not typed:
            loop.remove_reader(file)
        for key in typed.decode("ascii", "ignore"):
            pressed(key)

    # without waiting for a line and without an echo; Ctrl-C and Ctrl-Z do what they did
    tty.setcbreak(file, termios.TCSADRAIN)
    loop.add_reader(file, read)
    try:
        yield True
    finally:
        loop.remove_reader(file)
        if _is_in_front(file):
            termios.tcsetattr(file, termios.TCSADRAIN, before)


async def open_browser(link: str) -> bool:
    """Opens a browser. Returns whether there is one with windows: others would take the terminal."""
    has_windows = sys.platform == "darwin" or any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
    )
    try:
        return has_windows and await asyncio.to_thread(webbrowser.open, link)
    except (webbrowser.Error, OSError):
        return False


def _is_in_front(file: int) -> bool:
    try:
        return os.tcgetpgrp(file) == os.getpgrp()
    except OSError:
        # a terminal that is not that of this session, or is gone
        return False
