"""The programs of `examples/programs` in processes of a sandbox, and what they have handled."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from agentstream.testing import AgentProcess, Sandbox
from support.servers import free_port
from support.waiting import until

PROGRAMS = Path(__file__).parents[2] / "examples" / "programs"
PATIENCE = 60.0


@dataclass
class Deployed:
    """The processes of one program, past ones included."""

    sandbox: Sandbox
    agent: str
    command: tuple[str, ...]
    processes: list[AgentProcess] = field(default_factory=list)

    async def start(self, pod: str, *, workers: int = 1) -> AgentProcess:
        """Starts the program in a pod, and waits until all its worker processes consume."""
        port = str(free_port())
        program, *arguments = (one.replace("PORT", port) for one in self.command)
        process = self.sandbox.process(
            str(PROGRAMS / program) if program.endswith(".py") else program,
            *arguments,
            agent=self.agent,
            pod=pod,
            environ={"PYTHONPATH": str(PROGRAMS), "PORT": port},
        )
        self.processes.append(process)

        def is_ready() -> bool:
            assert process.returncode is None, process.output
            return len(self._numbers("ready", [process])) >= workers

        await until(is_ready, timeout=PATIENCE)
        return process

    def began(self) -> Counter[int]:
        """How often each number was begun."""
        return Counter(self._numbers(r"began (\d+)", self.processes))

    def handled(self) -> Counter[int]:
        """How often each number was handled to the end."""
        return Counter(self._numbers(r"handled (\d+)", self.processes))

    def in_hand(self) -> Counter[int]:
        """What was begun and is not handled."""
        return self.began() - self.handled()

    async def has_handled(self, count: int) -> None:
        """Waits until this many numbers are handled."""
        await until(lambda: len(self.handled()) >= count, timeout=PATIENCE)

    def _numbers(self, pattern: str, processes: Iterable[AgentProcess]) -> list[int]:
        found = (re.findall(pattern, process.output) for process in processes)
        return [int(n) if n.isdigit() else 0 for numbers in found for n in numbers]


def kill_a_worker(process: AgentProcess) -> None:
    """Ends one child of a process as by SIGKILL: the first that consumes is as good as any."""
    workers = [
        child for child in psutil.Process(process.pid).children(recursive=True) if child.num_threads() > 1
    ]
    workers[0].kill()
