"""Runs the embedded Valkey: starts it, restarts it when it ends, and stops it in order."""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from agentstream_operator.local.bindings import write_private
from agentstream_operator.local.processes.reaper import Reaper, signal_group
from agentstream_operator.local.processes.supervisor import (
    STEADY,
    Pipe,
    describe_exit,
    ended_or_set,
    launch,
    restart_delay,
    terminate,
)
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


@dataclass(slots=True, eq=False)
class EmbeddedServer:
    """A Valkey process that is restarted until it is stopped.

    The process inherits the descriptor `lock` of the data directory's lock. `shown` is the directory as the
    user named it.
    """

    settings: ValkeySettings
    shown: Path
    lock: int
    reaper: Reaper
    say: Callable[[str], None]
    _process: asyncio.subprocess.Process | None = field(init=False, default=None)
    _log: asyncio.Task[None] | None = field(init=False, default=None)
    _tail: deque[str] = field(init=False, default_factory=lambda: deque(maxlen=_TAIL))
    _explained: str | None = field(init=False, default=None)

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
            write_private(self.settings.config, config_text(self.settings))
            write_private(self.settings.users, users_text(self.settings.password))
        except OSError as error:
            raise cannot(f"write to {self.shown}", error) from error
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
            self.say(f"valkey ended ({describe_exit(code)}){cause}; restarting it")
            while self.pid is None:
                await asyncio.sleep(restart_delay(failures))
                try:
                    await self._launch()
                except LocalError as error:
                    failures += 1
                    self.say(f"{error}; trying again in {restart_delay(failures):.1f} s")
            self.say("valkey is back, with its data")

    async def stop(self) -> None:
        """Lets the server write its data, and ends it."""
        if self._process is not None:
            await terminate(self._process, _SHUTDOWN)
            await self._ended()

    async def _launch(self) -> None:
        self._tail.clear()
        log = Pipe()
        ready = asyncio.Event()
        try:
            self._process = await launch(
                self.reaper,
                (self.settings.binary, self.settings.config),
                log,
                cwd=self.settings.directory,
                pass_fds=(self.lock,),
                # keep ignoring SIGXFSZ: a limit on file sizes is to be a write error that the server reports
                restore_signals=False,
            )
        except OSError as error:
            raise cannot(f"start {self.settings.binary}", error) from error
        self._log = asyncio.create_task(self._read_log(log, ready), name="valkey log")
        await ended_or_set(self._process, ready)
        if not ready.is_set():
            await self._ended()
            raise LocalError(f"valkey does not start: {self._cause()}")

    async def _read_log(self, log: Pipe, ready: asyncio.Event) -> None:
        async for line in log.lines():
            self._tail.append(line)
            if READY in line:
                ready.set()
            explanation = explain(line, self.shown, self.settings.port)
            # the server logs the same error every second
            if explanation is not None and explanation != self._explained and ready.is_set():
                self._explained = explanation
                self.say(explanation)

    def _cause(self) -> str:
        return cause_of_end(list(self._tail), self.shown, self.settings.port)

    async def _ended(self) -> None:
        if self._log is not None:
            await self._log
        if self._process is not None:
            signal_group(self._process.pid, signal.SIGKILL)
            self.reaper.forget(self._process.pid)
        self._process = self._log = None
