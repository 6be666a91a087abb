"""Ends what `agentstream dev` started when it can no longer do so itself, as after `kill -9`.

A small process of its own session reads from a pipe which process groups there are. When the pipe closes, its
writer is gone, and the reaper ends the groups that are left. PR_SET_PDEATHSIG, in contrast, is Linux only,
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
    """The side of `agentstream dev`: tells the reaper what to end."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(  # noqa: S603 - the interpreter and this file
            [sys.executable, "-I", __file__], stdin=subprocess.PIPE, start_new_session=True
        )

    @property
    def pid(self) -> int:
        """Process id of the reaper."""
        return self._process.pid

    def watch(self, group: int) -> None:
        """This process group is to end with us."""
        self._tell(f"+{group}\n")

    def forget(self, group: int) -> None:
        """This process group has ended."""
        self._tell(f"-{group}\n")

    def close(self) -> None:
        """Lets the reaper end what is left, and waits for it."""
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        self._process.wait()

    def _tell(self, line: str) -> None:
        # without a reaper everything still works, except ending by `kill -9`
        if self._process.stdin is not None and not self._process.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(line.encode())
                self._process.stdin.flush()


def signal_group(group: int, number: int) -> bool:
    """Sends a signal to a process group; 0 only looks. Returns whether there is anybody in it."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    except PermissionError:
        # macOS says so of a group that has only zombies
        return False
    return True


def remaining(lines: Iterable[str]) -> set[int]:
    """Reads until the pipe closes; the groups that are left then."""
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
