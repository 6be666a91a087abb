"""Supervises processes: starts them again with a backoff, relays what they print, and stops them in order."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

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


async def launch(
    reaper: Reaper, arguments: Sequence[str | os.PathLike[str]], *pipes: Pipe, **options: Any
) -> asyncio.subprocess.Process:
    """Starts a process in a group of its own, with a pipe for standard output and one for standard error.

    One pipe is for both.

    Raises:
        OSError: it cannot be started; the pipes are closed.
    """
    options |= {"stdout": pipes[0].inlet, "stderr": pipes[-1].inlet, "process_group": 0}
    try:
        process = await asyncio.create_subprocess_exec(
            *arguments, stdin=asyncio.subprocess.DEVNULL, **options
        )
    except OSError:
        for pipe in pipes:
            pipe.abandon()
        raise
    reaper.watch(process.pid)
    return process


async def ended_or_set(process: asyncio.subprocess.Process, event: asyncio.Event) -> None:
    """Waits until a process has ended or an event is set."""
    waits = [asyncio.ensure_future(process.wait()), asyncio.ensure_future(event.wait())]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


async def terminate(process: asyncio.subprocess.Process, grace: float) -> bool:
    """Ends a process: SIGTERM, and SIGKILL after `grace` seconds. Returns whether it had to be killed."""
    signal_group(process.pid, signal.SIGTERM)
    try:
        # not wait_for, which in Python 3.11 loses a cancellation that comes with the end
        async with asyncio.timeout(grace):
            await process.wait()
    except TimeoutError:
        signal_group(process.pid, signal.SIGKILL)
        await process.wait()
        return True
    return False


@dataclass(slots=True, eq=False)
class SupervisedProcess:
    """A process that is started again whenever it ends, until it is stopped.

    Has the name of the pod that it stands for. Calls `ended` with the name after each end.
    `failure` says why it keeps ending or cannot be started.
    """

    name: str
    command: Command
    output: Output
    reaper: Reaper
    ended: Callable[[str], Awaitable[None]]
    failure: str | None = field(init=False, default=None)
    _stopped: bool = field(init=False, default=False)
    _asked: asyncio.Event = field(init=False, default_factory=asyncio.Event)
    _process: asyncio.subprocess.Process | None = field(init=False, default=None)
    _last_error: str = field(init=False, default="")

    @property
    def pid(self) -> int | None:
        """Process id, while it runs."""
        return self._process.pid if self._process is not None else None

    def stop(self) -> None:
        """Lets the process end in order, and does not start it again."""
        self._stopped = True
        self._asked.set()

    def restart(self) -> bool:
        """Lets the process end in order, and starts it again at once; also one whose start is delayed.

        Returns whether it was not ending already.
        """
        first = not self._asked.is_set()
        self._asked.set()
        return first

    async def run(self) -> None:
        """Keeps the process running until `stop`; a cancellation kills it at once."""
        failures = 0
        clock = asyncio.get_running_loop().time
        while not self._stopped:
            if self._asked.is_set():
                # restarted: what went wrong before is over
                failures, self.failure = 0, None
                self._asked.clear()
            if not BindingFiles.complete(self.command.binding):
                # as a pod waits for its Secret
                await self._sleep(_BINDING_POLL)
                continue
            since = clock()
            cause = self.command.problem or await self._run_once()
            if self._asked.is_set():
                continue
            failures = 1 if clock() - since >= STEADY else failures + 1
            delay = restart_delay(failures)
            # a problem of the command is shown once, by the cluster, for all its processes
            if self.command.problem is None:
                self.output.say(f"{self.name}: {cause}; restarting in {delay:.1f} s")
            if failures > 1 or self.command.problem is not None:
                self.failure = cause
            await self._sleep(delay)

    async def _run_once(self) -> str:
        """Runs the process to its end. Returns how it ended."""
        self._last_error = ""
        stdout, stderr = Pipe(), Pipe()
        try:
            process = self._process = await launch(
                self.reaper,
                self.command.arguments,
                *(stdout, stderr),
                cwd=self.command.directory,
                env={**self.command.environment, "AGENTSTREAM_POD": self.name},
            )
        except OSError as error:
            return f"cannot start {self.command.arguments[0]!r}: {error.strerror}"
        readers = [
            asyncio.create_task(self._relay(stdout, is_stderr=False)),
            asyncio.create_task(self._relay(stderr, is_stderr=True)),
        ]
        steady = asyncio.get_running_loop().call_later(STEADY, self._clear_failure)
        try:
            await ended_or_set(process, self._asked)
            grace = self.command.grace
            if process.returncode is None and await terminate(process, grace):
                self.output.say(f"{self.name}: did not end within {grace:g} s of SIGTERM; killed")
            code = await process.wait()
        finally:
            steady.cancel()
            # as with a container, nothing that it started outlives it
            signal_group(process.pid, signal.SIGKILL)
            await process.wait()
            await asyncio.gather(*readers)
            self.reaper.forget(process.pid)
            self._process = None
        await self.ended(self.name)
        # a killed process could not print the cause
        detail = self._last_error if code != -signal.SIGKILL else ""
        return describe_exit(code) + (f" ({detail})" if detail else "")

    async def _relay(self, pipe: Pipe, *, is_stderr: bool) -> None:
        async for line in pipe.lines():
            if is_stderr and line.strip():
                self._last_error = line.strip()[:_LONGEST_ERROR]
            self.output.relay(self.name, line)

    def _clear_failure(self) -> None:
        self.failure = None

    async def _sleep(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._asked.wait(), seconds)
        except TimeoutError:
            return


def _decode(raw: bytes) -> str:
    text = raw.decode(errors="replace").rstrip("\r")
    if len(text) <= LONGEST_LINE:
        return text
    return f"{text[:LONGEST_LINE]}… ({len(text) - LONGEST_LINE} more)"
