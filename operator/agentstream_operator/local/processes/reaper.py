"""Ends the processes of an `agentstream dev` that was killed, as by `kill -9`.

A small process in a session of its own reads from a pipe which process groups run. When the pipe closes, its
writer has ended, and the reaper ends the groups that are left. PR_SET_PDEATHSIG, in contrast, is Linux only,
does not reach grandchildren, and gives no time to end in order.

This file is also the reaper's program and runs without the package: it imports the standard library only.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable

GRACE = 5.0
"""Seconds between SIGTERM and SIGKILL."""


class Reaper:
    """Starts the reaper process, and tells it which process groups run."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(  # noqa: S603 - the interpreter and this file
            [sys.executable, "-I", __file__], stdin=subprocess.PIPE, start_new_session=True
        )

    @property
    def pid(self) -> int:
        """Process id of the reaper."""
        return self._process.pid

    def watch(self, group: int) -> None:
        """Adds a process group that is to end with `agentstream dev`."""
        self._write(f"+{group}\n")

    def forget(self, group: int) -> None:
        """Removes a process group that has ended."""
        self._write(f"-{group}\n")

    def close(self) -> None:
        """Lets the reaper end what is left, and waits for it."""
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        self._process.wait()

    def _write(self, line: str) -> None:
        # a reaper that was killed matters only after a `kill -9`
        if self._process.stdin is not None and not self._process.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(line.encode())
                self._process.stdin.flush()


def signal_group(group: int, number: int) -> bool:
    """Sends a signal to a process group; 0 sends none. Returns whether the group has any process."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    except PermissionError:
        # macOS: the group has only zombies
        return False
    return True


def remaining(lines: Iterable[str]) -> set[int]:
    """Reads until the pipe closes. Returns the process groups that are left."""
    groups: set[int] = set()
    for line in lines:
        group = int(line[1:])
        if line.startswith("+"):
            groups.add(group)
        else:
            groups.discard(group)
    return groups


def end(groups: set[int], grace: float) -> None:
    """Ends process groups: SIGTERM, then SIGKILL after `grace` seconds."""
    groups = {group for group in groups if signal_group(group, signal.SIGTERM)}
    until = time.monotonic() + grace
    while groups and time.monotonic() < until:
        time.sleep(0.02)
        groups = {group for group in groups if signal_group(group, 0)}
    for group in groups:
        signal_group(group, signal.SIGKILL)


if __name__ == "__main__":
    end(remaining(sys.stdin), GRACE)
