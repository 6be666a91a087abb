"""Supervises processes: starts them again with a backoff, relays what they print, and stops them in order."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable

from agentstream_operator.local.bindings import BindingFiles
from agentstream_operator.local.processes.commands import Command
from agentstream_operator.local.processes.reaper import Reaper, signal_group
from agentstream_operator.local.screen.output import Output

STEADY = 3.0
"""Seconds after which a process counts as started: its next failure is the first of a new series."""

LONGEST_LINE = 4_000
"""Characters of a line that are kept."""

_FIRST_DELAY, _LONGEST_DELAY = 0.2, 30.0
_BINDING_POLL = 0.02
_CHUNK = 65_536
_LONGEST_ERROR = 200


def restart_delay(failures: int) -> float:
    """Returns the seconds before the next start, after so many failures in a row."""
    # without a limit on the exponent, a long series would overflow
    return min(_LONGEST_DELAY, _FIRST_DELAY * 2.0 ** min(failures - 1, 20))


def describe_exit(code: int) -> str:
    """Describes the return code of a process, which is negative for a signal."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


class Pipe:
    """A pipe that a process writes to (`inlet`, which is closed here once reading begins) and we read from.

    With `asyncio.subprocess.PIPE`, `Process.wait` would last until every inheritor of the pipe has ended.
    """

    def __init__(self) -> None:
        self._outlet, self.inlet = os.pipe()

    def abandon(self) -> None:
        """Closes a pipe that is never read."""
        os.close(self.inlet)
        os.close(self._outlet)

    async def lines(self) -> AsyncIterator[str]:
        """Yields lines until every writer has closed the pipe; longer ones are cut at `LONGEST_LINE`."""
        rest = b""
        async for chunk in self._chunks():
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                yield _decode(line)
            # a line without an end must not fill the memory
            if len(rest) > 4 * LONGEST_LINE:
                yield _decode(rest)
                rest = b""
        if rest:
            yield _decode(rest)

    async def _chunks(self) -> AsyncIterator[bytes]:
        os.close(self.inlet)
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(self._outlet, "rb", buffering=0)
        )
        try:
            while chunk := await reader.read(_CHUNK):
                yield chunk
        finally:
            transport.close()


class SupervisedProcess:
    """A process that is started again whenever it ends, until it is stopped.

    Has the name of the pod that it stands for. Calls `ended` with the name after each end.
    `failure` says why it keeps ending or cannot be started.
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
        self.failure: str | None = None
        self._output = output
        self._reaper = reaper
        self._ended = ended
        self._stopping = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None
        self._last_error = ""

    @property
    def pid(self) -> int | None:
        """Process id, while it runs."""
        return self._process.pid if self._process is not None else None

    def stop(self) -> None:
        """Lets the process end in order, and does not start it again."""
        self._stopping.set()

    async def run(self) -> None:
        """Keeps the process running until `stop`; a cancellation kills it at once."""
        failures = 0
        clock = asyncio.get_running_loop().time
        while not self._stopping.is_set():
            if not BindingFiles.complete(self.command.binding):
                # as a pod waits for its Secret
                await self._sleep(_BINDING_POLL)
                continue
            since = clock()
            cause = self.command.problem or await self._run_once()
            if self._stopping.is_set():
                break
            failures = 1 if clock() - since >= STEADY else failures + 1
            delay = restart_delay(failures)
            # a problem of the command is shown once, by the cluster, for all its processes
            if self.command.problem is None:
                self._output.say(f"{self.name}: {cause}; restarting in {delay:.1f} s")
            if failures > 1 or self.command.problem is not None:
                self.failure = cause
            await self._sleep(delay)

    async def _run_once(self) -> str:
        """Runs the process to its end. Returns how it ended."""
        self._last_error = ""
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
            asyncio.create_task(self._relay(stdout, is_stderr=False)),
            asyncio.create_task(self._relay(stderr, is_stderr=True)),
        ]
        steady = asyncio.get_running_loop().call_later(STEADY, self._clear_failure)
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
        # a killed process could not print the cause
        detail = self._last_error if code != -signal.SIGKILL else ""
        return describe_exit(code) + (f" ({detail})" if detail else "")

    async def _wait(self, process: asyncio.subprocess.Process) -> int:
        exited = asyncio.ensure_future(process.wait())
        stopped = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait((exited, stopped), return_when=asyncio.FIRST_COMPLETED)
            if not exited.done():
                os.killpg(process.pid, signal.SIGTERM)
                await asyncio.wait((exited,), timeout=self.command.grace)
            if not exited.done():
                self._output.say(
                    f"{self.name}: did not end within {self.command.grace:g} s of SIGTERM; killed"
                )
                signal_group(process.pid, signal.SIGKILL)
            return await exited
        finally:
            stopped.cancel()
            exited.cancel()

    async def _relay(self, pipe: Pipe, *, is_stderr: bool) -> None:
        async for line in pipe.lines():
            if is_stderr and line.strip():
                self._last_error = line.strip()[:_LONGEST_ERROR]
            self._output.relay(self.name, line)

    def _clear_failure(self) -> None:
        self.failure = None

    async def _sleep(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            return


def _decode(raw: bytes) -> str:
    text = raw.decode(errors="replace").rstrip("\r")
    if len(text) <= LONGEST_LINE:
        return text
    return f"{text[:LONGEST_LINE]}… ({len(text) - LONGEST_LINE} more)"
