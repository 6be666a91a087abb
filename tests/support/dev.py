"""`agentstream dev` as a process of its own, with manifests and agents that a test writes."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import resource
import signal
import struct
import sys
import termios
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from support.waiting import until

STREAM = """\
apiVersion: agentstream.dev/v1alpha1
kind: AgentStream
metadata: {{name: {name}}}
spec: {{{spec}}}
---
"""
GROUP = """\
apiVersion: agentstream.dev/v1alpha1
kind: ConsumerGroup
metadata: {{name: {name}}}
spec:
  streamRef: {{name: {stream}}}
  template: {{spec: {{containers: [{{name: c, command: {command}}}]}}}}
  {scale}
---
"""
FROM_ZERO = (
    "autoscaling: {minReplicas: 0, maxReplicas: 2, targetBacklog: 5, scaleDownAfter: 500ms}\n"
    "  delivery: {lease: 2s}"
)

BOSS = """\
import asyncio, sys
from agentstream import Agent

async def main():
    async with Agent.from_env() as agent:
        for n in range(int(sys.argv[1])):
            await agent.send_message(to="coder", type="task_request", payload={"n": n})
        print("sent", flush=True)
        async for delivery in agent.stream_consume("results"):
            async with delivery:
                pass

asyncio.run(main())
"""
CODER = """\
import asyncio, os
from agentstream import Agent

async def main():
    async with Agent.from_env() as agent:
        print("up", os.getpid(), flush=True)
        async for delivery in agent.stream_consume("tasks", concurrency=4):
            async with delivery:
                await asyncio.sleep(0.02)
                with open("done.txt", "a") as file:
                    file.write(f"{delivery.message.payload['n']}\\n")

asyncio.run(main())
"""


def a_stream(name: str, spec: str = "") -> str:
    """An AgentStream manifest."""
    return STREAM.format(name=name, spec=spec)


def a_group(name: str, stream: str, *command: str, scale: str = "replicas: 1") -> str:
    """A ConsumerGroup manifest."""
    return GROUP.format(name=name, stream=stream, command=json.dumps(command), scale=scale)


def coders(messages: int = 20, scale: str = FROM_ZERO) -> str:
    """A boss that sends messages and coders that work them off."""
    return (
        a_stream("tasks", "producers: [boss]")
        + a_stream("results")
        + a_group("coder", "tasks", "python", "coder.py", scale=scale)
        + a_group("boss", "results", "python", "boss.py", str(messages))
    )


_COMMAND = (sys.executable, "-m", "agentstream_operator", "dev")


class Dev:
    """A running `agentstream dev`.

    Attributes:
        lines: what it printed, both outputs together.
        out: what it printed on standard output.
        screen: everything that was written to its terminal.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.lines: list[str] = []
        self.out: list[str] = []
        self.screen = ""
        self.family: set[psutil.Process] = set()
        self._process: asyncio.subprocess.Process | None = None
        self._readers: list[asyncio.Task[None]] = []
        (directory / "boss.py").write_text(BOSS)
        (directory / "coder.py").write_text(CODER)

    @property
    def process(self) -> asyncio.subprocess.Process:
        assert self._process is not None
        return self._process

    async def start(
        self, *arguments: str, file_size: int | None = None, reading: bool = True, measured: bool = True
    ) -> None:
        """Starts `agentstream dev`.

        Args:
            arguments: of the command.
            file_size: no file may grow beyond so many bytes; a measurement could not be written either.
            reading: whether somebody reads its standard output.
            measured: whether coverage of it and its agents is measured, which slows them down.
        """
        limit: Callable[[], None] | None = None
        environment = dict(os.environ)
        if file_size is not None:
            limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (file_size, resource.RLIM_INFINITY))
        if file_size is not None or not measured:
            environment = {k: v for k, v in environment.items() if not k.startswith("COVERAGE_")}
        self.lines, self.out = [], []
        self._process = await asyncio.create_subprocess_exec(
            *(*_COMMAND, *arguments),
            cwd=self.directory,
            env=environment,
            stdout=asyncio.subprocess.PIPE if reading else _nobody(),
            stderr=asyncio.subprocess.PIPE,
            preexec_fn=limit,
        )
        self._readers = [asyncio.create_task(self._read(self._process.stderr, []))]
        if reading:
            self._readers.append(asyncio.create_task(self._read(self._process.stdout, self.out)))

    async def start_on_terminal(self, *arguments: str) -> None:
        """Starts `agentstream dev` as on a terminal; what that shows gathers in `screen`."""
        ours, theirs = os.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        self._process = await asyncio.create_subprocess_exec(
            *(*_COMMAND, *arguments), cwd=self.directory, stdout=theirs, stderr=theirs
        )
        os.close(theirs)
        self._readers = [asyncio.create_task(asyncio.to_thread(self._read_terminal, ours))]

    def _read_terminal(self, descriptor: int) -> None:
        # the end of a terminal is an error, not an empty read
        with contextlib.suppress(OSError), os.fdopen(descriptor, "rb", buffering=0) as file:
            while chunk := file.read(4096):
                self.screen += chunk.decode(errors="replace")

    async def _read(self, stream: asyncio.StreamReader | None, also: list[str]) -> None:
        assert stream is not None
        async for raw in stream:
            line = raw.decode().rstrip("\n")
            self.lines.append(line)
            also.append(line)

    async def line(self, part: str, timeout: float = 20.0) -> str:
        """The first line with `part` in it."""
        try:
            return await until(lambda: next((line for line in self.lines if part in line), ""), timeout)
        except TimeoutError:
            raise AssertionError(f"no {part!r} in:\n{self.text}") from None

    async def ready(self) -> None:
        """Returns when everything is ready."""
        await self.line("everything is ready")
        self.remember()

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def remember(self) -> set[psutil.Process]:
        """Notes the processes that there are now, so that `end` finds out whether they are gone."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self.family |= set(psutil.Process(self.process.pid).children(recursive=True))
        return {process for process in self.family if is_alive(process)}

    def server(self) -> psutil.Process:
        """The embedded server."""
        return next(p for p in self.remember() if "valkey-server" in p.name())

    async def wait(self) -> int:
        """Waits for its end. Returns the exit code."""
        self.remember()
        code = await asyncio.wait_for(self.process.wait(), 40)
        await asyncio.gather(*self._readers)
        return code

    async def end(self, number: int = signal.SIGINT) -> int:
        """Asks it to end, and checks that nothing is left. Returns the exit code."""
        self.remember()
        self.process.send_signal(number)
        code = await self.wait()
        await until(lambda: not [p for p in self.family if is_alive(p)])
        return code

    async def close(self) -> None:
        """Ends what a failed test left running."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        await asyncio.gather(*self._readers)
        await until(lambda: not [p for p in self.family if is_alive(p)])

    @property
    def summary(self) -> dict[str, Any]:
        """The summary of `--output json`."""
        found: dict[str, Any] = json.loads("\n".join(self.out))
        return found

    @property
    def done(self) -> list[int]:
        """The messages that coders handled."""
        path = self.directory / "done.txt"
        return [int(n) for n in path.read_text().split()] if path.exists() else []

    def password(self) -> str:
        """The operator's password."""
        return (self.directory / ".agentstream" / "operator").read_text()

    def port(self) -> int:
        """The server's port."""
        line = next(line for line in self.lines if "valkey on " in line)
        return int(line.split("127.0.0.1:")[1].split(",")[0])


def is_alive(process: psutil.Process) -> bool:
    """Whether it runs; one that has ended and that nobody asked about does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _nobody() -> int:
    """A pipe whose reader has gone away."""
    ours, theirs = os.pipe()
    os.close(ours)
    return theirs


def environment_of(process: psutil.Process) -> str:
    """Everything that other users of the machine could see of a process."""
    try:
        return " ".join([*process.cmdline(), *process.environ().values()])
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return ""
