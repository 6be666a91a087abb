"""An agent in a process of its own, which a test may stop, go on with, and kill."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from agentstream.testing.watchdog import Watchdog, kill_group

_LOOK_EVERY = 0.005


class AgentProcess:
    """A Python program that runs until it ends, is killed, or the sandbox closes.

    Args:
        command: arguments of the interpreter.
        environ: its environment.
        log: the file that takes what it prints.
        watchdog: ends it if this process cannot.
    """

    def __init__(
        self, command: tuple[str, ...], environ: Mapping[str, str], log: Path, watchdog: Watchdog
    ) -> None:
        self._log = log
        self._watchdog = watchdog
        self._killed = False
        with log.open("wb") as output:
            self._process = subprocess.Popen(  # noqa: S603 - the test names the program
                [sys.executable, *command],
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
        watchdog.watch(self.pid)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """How it ended, as in `subprocess`; None while it runs."""
        return self._process.poll()

    @property
    def output(self) -> str:
        """What it has printed up to now, errors included."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def kill(self) -> None:
        """Ends it at once, with everything that it started, and waits for it. It can hand nothing back."""
        if not self._killed:
            self._killed = True
            kill_group(self.pid)
            # its id can be another's once it is waited for
            self._watchdog.forget(self.pid)
            self._process.wait()

    def pause(self) -> None:
        """Stops it where it is: it holds what it has, and does nothing until `resume`."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Goes on after `pause`."""
        self._process.send_signal(signal.SIGCONT)

    def terminate(self) -> None:
        """Asks it to end, as Kubernetes does."""
        self._process.send_signal(signal.SIGTERM)

    async def printed(self, text: str, timeout: float = 10.0) -> None:
        """Waits until a text is in its output.

        Raises:
            TimeoutError: it was not within `timeout` seconds; says what was.
            RuntimeError: the process ended without; says what it printed.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while True:
            code = self.returncode
            if text in self.output:
                return
            if code is not None:
                raise RuntimeError(f"it ended with {code} and had not printed {text!r}, but: {self.output}")
            if loop.time() >= deadline:
                raise TimeoutError(f"no {text!r} was printed in {timeout} s, but: {self.output}")
            await asyncio.sleep(_LOOK_EVERY)

    async def ended(self, timeout: float = 10.0) -> int:
        """Waits until it has ended. Returns how, as in `subprocess`: minus a signal's number if by that.

        Raises:
            TimeoutError: it has not within `timeout` seconds; says what it printed.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while (code := self.returncode) is None:
            if loop.time() >= deadline:
                raise TimeoutError(f"it still runs after {timeout} s, and printed: {self.output}")
            await asyncio.sleep(_LOOK_EVERY)
        return code
