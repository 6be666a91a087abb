"""Processes of a sandbox: agents that a test may pause, resume and kill, and a watchdog that ends them.

The watchdog matters when the test process itself dies, as after `kill -9`: a shell in a session of its own
reads from a pipe which process groups there are. When the pipe closes, the shell kills the groups that are
left and removes the directory.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT, Popen
from typing import IO, Any

_POLL_EVERY = 0.005
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
    """Ends processes and removes a directory when the test process ends."""

    def __init__(self, directory: Path) -> None:
        self._process = Popen(  # noqa: S603 - a script of our own
            ["/bin/sh", "-c", _SCRIPT, "watchdog", str(directory)],
            stdin=PIPE,
            stdout=DEVNULL,
            stderr=DEVNULL,
            start_new_session=True,
        )

    def start(self, command: Sequence[str], output: IO[bytes] | int, **options: Any) -> Popen[bytes]:
        """Starts a process in a group of its own, which ends with the test process."""
        process = Popen(  # noqa: S603 - a server, or a program that the test names
            command, stdin=DEVNULL, stdout=output, stderr=STDOUT, process_group=0, **options
        )
        self._tell(f"+{process.pid}\n")
        return process

    def kill(self, process: Popen[bytes]) -> None:
        """Kills the group of a process, and waits for the process."""
        # macOS refuses to signal a group that has only zombies
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        # the id may be reused after `wait`
        self._tell(f"-{process.pid}\n")
        process.wait()

    def close(self) -> None:
        """Ends the processes, removes the directory, and waits for that."""
        # the watchdog may have been killed
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()

    def _tell(self, line: str) -> None:
        # without the watchdog, only the cleanup after `kill -9` is missing
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(line.encode())
                self._process.stdin.flush()


class AgentProcess:
    """A Python program that runs until it ends, is killed, or the sandbox closes.

    Args:
        command: arguments of the interpreter.
        environ: the environment.
        log: file for the output.
        watchdog: ends the process with the test process.
    """

    def __init__(
        self, command: tuple[str, ...], environ: Mapping[str, str], log: Path, watchdog: Watchdog
    ) -> None:
        self._log = log
        self._watchdog = watchdog
        self._killed = False
        with log.open("wb") as output:
            self._process = watchdog.start([sys.executable, *command], output, env=environ)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit code, as in `subprocess`; None while the process runs."""
        return self._process.poll()

    @property
    def output(self) -> str:
        """Output up to now, standard error included."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def kill(self) -> None:
        """Kills the process and its children, and waits for the end. Nothing is handed back."""
        if not self._killed:
            self._killed = True
            self._watchdog.kill(self._process)

    def pause(self) -> None:
        """Stops the process until `resume` (SIGSTOP); its connections and messages stay with it."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Continues after `pause`."""
        self._process.send_signal(signal.SIGCONT)

    def terminate(self) -> None:
        """Sends SIGTERM, as Kubernetes does."""
        self._process.send_signal(signal.SIGTERM)

    async def printed(self, text: str, timeout: float = 10.0) -> None:
        """Waits until a text is in its output.

        Raises:
            TimeoutError: the text was not printed within `timeout` seconds; shows the output.
            RuntimeError: the process ended without printing the text; shows the output.
        """
        deadline = time.monotonic() + timeout
        while True:
            code = self.returncode
            if text in self.output:
                return
            if code is not None:
                raise RuntimeError(f"it ended with {code} and had not printed {text!r}, but: {self.output}")
            if time.monotonic() >= deadline:
                raise TimeoutError(f"no {text!r} was printed in {timeout} s, but: {self.output}")
            await asyncio.sleep(_POLL_EVERY)

    async def ended(self, timeout: float = 10.0) -> int:
        """Waits until the process has ended. Returns its exit code, as in `subprocess`: `-N` for signal N.

        Raises:
            TimeoutError: the process still runs after `timeout` seconds; shows the output.
        """
        deadline = time.monotonic() + timeout
        while (code := self.returncode) is None:
            if time.monotonic() >= deadline:
                raise TimeoutError(f"it still runs after {timeout} s, and printed: {self.output}")
            await asyncio.sleep(_POLL_EVERY)
        return code
