"""Ends what a sandbox started when the test process can no longer do so itself, as after `kill -9`.

A shell of its own session reads from a pipe which process groups there are. When the pipe closes, its writer
is gone, and the shell kills the groups that are left and removes the directory.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path

_SCRIPT = r"""
groups=' '
while read -r change; do
  group=${change#?}
  case $change in
    +*) groups="$groups$group " ;;
    -*) groups="${groups%% $group *} ${groups#* $group }" ;;
  esac
done
for group in $groups; do kill -s KILL -- "-$group"; done 2>/dev/null
rm -rf -- "$1"
"""


class Watchdog:
    """The side of the test process: says what is to end with it.

    Args:
        directory: what is to be removed.
    """

    def __init__(self, directory: Path) -> None:
        self._process = subprocess.Popen(  # noqa: S603 - a script of our own
            ["/bin/sh", "-c", _SCRIPT, "watchdog", str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def watch(self, group: int) -> None:
        """This process group is to end with us."""
        self._tell(f"+{group}\n")

    def forget(self, group: int) -> None:
        """This process group has ended."""
        self._tell(f"-{group}\n")

    def close(self) -> None:
        """Has everything ended and removed that is left, and waits for it."""
        # its remaining output is of no use where the watchdog itself was killed
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()

    def _tell(self, line: str) -> None:
        # without a watchdog everything still works, except ending by `kill -9`
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(line.encode())
                self._process.stdin.flush()


def kill_group(group: int) -> None:
    """Ends a process group at once, if there is any left of it."""
    # macOS refuses to signal a group that has only zombies
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)
