"""Places for processes: each keeps one process running, says what it prints, and ends it in order."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from typing import Protocol

from agentstream_operator.local.bindings.bindings import BindingFiles
from agentstream_operator.local.processes.commands import Command
from agentstream_operator.local.processes.pipes import Pipe
from agentstream_operator.local.processes.reaper import Reaper, signal_group
from agentstream_operator.local.processes.restarts import STEADY, describe_exit, restart_delay

_BINDING_POLL = 0.02
_COMPLAINT = 200


class Output(Protocol):
    """Where lines for the person go."""

    def say(self, text: str) -> None:
        """Shows something that happened."""
        ...

    def relay(self, name: str, text: str) -> None:
        """Shows a line that the process in this place printed."""
        ...


class SupervisedProcess:
    """A place for one process, which is started again whenever it ends.

    Args:
        name: of the place, and of the pod that it stands for.
        command: what runs there.
        output: where its lines go.
        reaper: ends the process if we cannot.
        ended: called with the name after a process of this place has ended.
    """

    def __init__(
        self,
        name: str,
        command: Command,
        *,
        output: Output,
        reaper: Reaper,
        ended: Callable[[str], Awaitable[None]],
    ) -> None:
        self.name = name
        self.command = command
        self.trouble: str | None = None
        self._output = output
        self._reaper = reaper
        self._ended = ended
        self._stop = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None
        self._complaint = ""

    @property
    def pid(self) -> int | None:
        """Process id, while a process runs."""
        return self._process.pid if self._process is not None else None

    def retire(self) -> None:
        """Lets the process end in order, and starts none again."""
        self._stop.set()

    async def run(self) -> None:
        """Keeps a process running until `retire`; a cancellation kills it at once."""
        failures = 0
        clock = asyncio.get_running_loop().time
        while not self._stop.is_set():
            if not BindingFiles.complete(self.command.binding):
                # as a pod waits for its Secret
                await self._pause(_BINDING_POLL)
                continue
            since = clock()
            why = self.command.problem or await self._once()
            if self._stop.is_set():
                break
            failures = 1 if clock() - since >= STEADY else failures + 1
            delay = restart_delay(failures)
            # what cannot be started is said once, for all places of the command
            if self.command.problem is None:
                self._output.say(f"{self.name}: {why}; starting again in {delay:.1f} s")
            if failures > 1 or self.command.problem is not None:
                self.trouble = why
            await self._pause(delay)

    async def _once(self) -> str:
        """Runs the process to its end; says how it ended."""
        self._complaint = ""
        stdout, stderr = Pipe(), Pipe()
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self.command.arguments,
                cwd=self.command.directory,
                env={**self.command.environment, "AGENTSTREAM_POD": self.name},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=stdout.inlet,
                stderr=stderr.inlet,
                process_group=0,
            )
        except OSError as error:
            stdout.abandon()
            stderr.abandon()
            return f"cannot start {self.command.arguments[0]!r}: {error.strerror}"
        process = self._process
        self._reaper.watch(process.pid)
        readers = [
            asyncio.create_task(self._read(stdout, complaints=False)),
            asyncio.create_task(self._read(stderr, complaints=True)),
        ]
        steady = asyncio.get_running_loop().call_later(STEADY, self._steady)
        try:
            code = await self._wait(process)
        finally:
            steady.cancel()
            # as with a container, nothing that it started outlives it
            signal_group(process.pid, signal.SIGKILL)
            await process.wait()
            await asyncio.gather(*readers)
            self._reaper.forget(process.pid)
            self._process = None
        await self._ended(self.name)
        # who is killed says nothing about it
        why = self._complaint if code != -signal.SIGKILL else ""
        return describe_exit(code) + (f" ({why})" if why else "")

    async def _wait(self, process: asyncio.subprocess.Process) -> int:
        exited = asyncio.ensure_future(process.wait())
        stopped = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait((exited, stopped), return_when=asyncio.FIRST_COMPLETED)
            if not exited.done():
                os.killpg(process.pid, signal.SIGTERM)
                await asyncio.wait((exited,), timeout=self.command.grace)
            if not exited.done():
                self._output.say(f"{self.name}: did not end within {self.command.grace:g} s, killed")
                signal_group(process.pid, signal.SIGKILL)
            return await exited
        finally:
            stopped.cancel()
            exited.cancel()

    async def _read(self, pipe: Pipe, *, complaints: bool) -> None:
        async for line in pipe.lines():
            if complaints and line.strip():
                self._complaint = line.strip()[:_COMPLAINT]
            self._output.relay(self.name, line)

    def _steady(self) -> None:
        self.trouble = None

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._stop.wait(), seconds)
        except TimeoutError:
            return
