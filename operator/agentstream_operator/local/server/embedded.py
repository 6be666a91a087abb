"""Runs the embedded Valkey: starts it, restarts it when it ends, and stops it in order."""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
from collections import deque
from collections.abc import Callable
from pathlib import Path

from agentstream_operator.local.bindings import write_private
from agentstream_operator.local.processes.reaper import Reaper, signal_group
from agentstream_operator.local.processes.supervisor import STEADY, Pipe, describe_exit, restart_delay
from agentstream_operator.local.screen.output import LocalError, cannot
from agentstream_operator.local.server.valkey import (
    READY,
    ValkeySettings,
    cause_of_end,
    config_text,
    explain,
    users_text,
)

_SHUTDOWN = 10.0
"""Seconds that the server gets for writing its data before it is killed."""

_TAIL = 40


def pick_port(port: int | None) -> int:
    """Returns the given port if it is free, or else any free port of the loopback interface.

    Raises:
        LocalError: the port is in use, or not permitted.
    """
    with socket.socket() as probe:
        # as the server sets it: lingering connections of an earlier one do not count
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port or 0))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise LocalError(f"port {port} is in use; choose another one with --port") from error
            raise cannot(f"listen on port {port}", error) from error
        free: int = probe.getsockname()[1]
        return free


class EmbeddedServer:
    """A Valkey process that is restarted until it is stopped.

    The process inherits the descriptor `lock` of the data directory's lock. `shown` is the directory as the
    user named it.
    """

    def __init__(
        self, settings: ValkeySettings, *, shown: Path, lock: int, reaper: Reaper, say: Callable[[str], None]
    ) -> None:
        self._settings = settings
        self._shown = shown
        self._lock = lock
        self._reaper = reaper
        self._say = say
        self._process: asyncio.subprocess.Process | None = None
        self._log: asyncio.Task[None] | None = None
        self._tail: deque[str] = deque(maxlen=_TAIL)
        self._explained: str | None = None

    @property
    def pid(self) -> int | None:
        """Process id, while it runs."""
        return self._process.pid if self._process is not None else None

    async def start(self) -> None:
        """Starts the server with its data and waits until it accepts connections.

        Raises:
            LocalError: it does not start; names the cause.
        """
        try:
            write_private(self._settings.config, config_text(self._settings))
            write_private(self._settings.users, users_text(self._settings.password))
        except OSError as error:
            raise cannot(f"write to {self._shown}", error) from error
        await self._launch()

    async def supervise(self) -> None:
        """Restarts the server whenever it ends; until cancelled."""
        failures = 0
        clock = asyncio.get_running_loop().time
        while self._process is not None:
            since = clock()
            code = await self._process.wait()
            await self._ended()
            failures = 1 if clock() - since >= STEADY else failures + 1
            # a killed process could not log the cause
            cause = "" if code == -signal.SIGKILL else f": {self._cause()}"
            self._say(f"valkey ended ({describe_exit(code)}){cause}; restarting it")
            while self.pid is None:
                await asyncio.sleep(restart_delay(failures))
                try:
                    await self._launch()
                except LocalError as error:
                    failures += 1
                    self._say(f"{error}; trying again in {restart_delay(failures):.1f} s")
            self._say("valkey is back, with its data")

    async def stop(self) -> None:
        """Lets the server write its data, and ends it."""
        if self._process is None:
            return
        signal_group(self._process.pid, signal.SIGTERM)
        try:
            # not wait_for, which in Python 3.11 loses a cancellation that comes with the end
            async with asyncio.timeout(_SHUTDOWN):
                await self._process.wait()
        except TimeoutError:
            signal_group(self._process.pid, signal.SIGKILL)
            await self._process.wait()
        await self._ended()

    async def _launch(self) -> None:
        self._tail.clear()
        log = Pipe()
        ready = asyncio.Event()
        try:
            self._process = await asyncio.create_subprocess_exec(
                self._settings.binary,
                self._settings.config,
                cwd=self._settings.directory,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log.inlet,
                stderr=asyncio.subprocess.STDOUT,
                process_group=0,
                pass_fds=(self._lock,),
                # keep ignoring SIGXFSZ: a limit on file sizes is to be a write error that the server reports
                restore_signals=False,
            )
        except OSError as error:
            log.abandon()
            raise cannot(f"start {self._settings.binary}", error) from error
        self._reaper.watch(self._process.pid)
        self._log = asyncio.create_task(self._read_log(log, ready), name="valkey log")
        waits = [asyncio.create_task(ready.wait()), asyncio.create_task(self._process.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if not ready.is_set():
            await self._ended()
            raise LocalError(f"valkey does not start: {self._cause()}")

    async def _read_log(self, log: Pipe, ready: asyncio.Event) -> None:
        async for line in log.lines():
            self._tail.append(line)
            if READY in line:
                ready.set()
            explanation = explain(line, self._shown, self._settings.port)
            # the server logs the same error every second
            if explanation is not None and explanation != self._explained and ready.is_set():
                self._explained = explanation
                self._say(explanation)

    def _cause(self) -> str:
        return cause_of_end(list(self._tail), self._shown, self._settings.port)

    async def _ended(self) -> None:
        if self._log is not None:
            await self._log
        if self._process is not None:
            signal_group(self._process.pid, signal.SIGKILL)
            self._reaper.forget(self._process.pid)
        self._process = self._log = None
