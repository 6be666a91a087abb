"""Runs the consumers of a group as processes: local mode's counterpart of a Deployment."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from agentstream_operator.cluster.port import WorkloadSeen
from agentstream_operator.local.processes.commands import Command
from agentstream_operator.local.processes.reaper import Reaper
from agentstream_operator.local.processes.supervisor import SupervisedProcess
from agentstream_operator.local.screen.output import Output


@dataclass(frozen=True, slots=True)
class ProcessHost:
    """What processes run with; those that are `verbose` log the traceback of every failed attempt."""

    tasks: asyncio.TaskGroup
    reaper: Reaper
    output: Output
    verbose: bool = False


@dataclass(slots=True, eq=False)
class Workload:
    """The processes of one group; number 2 is `<group>-2`. Calls `ended` with the name after an end."""

    name: str
    host: ProcessHost
    ended: Callable[[str], Awaitable[None]]
    _processes: dict[int, SupervisedProcess] = field(init=False, default_factory=dict)
    _stopping: dict[int, SupervisedProcess] = field(init=False, default_factory=dict)
    _tasks: set[asyncio.Task[None]] = field(init=False, default_factory=set)
    _deletion_costs: Mapping[str, int] = field(init=False, default_factory=dict)

    @property
    def seen(self) -> WorkloadSeen:
        """The state of the group's consumers."""
        processes = self._processes.values()
        return WorkloadSeen(
            replicas=len(processes),
            ready=sum(process.pid is not None for process in processes),
            crashing=next((process.failure for process in processes if process.failure is not None), None),
        )

    @property
    def running(self) -> int:
        """Number of running processes, including those that are ending."""
        processes = (*self._processes.values(), *self._stopping.values())
        return sum(process.pid is not None for process in processes)

    def apply(self, command: Command, replicas: int) -> None:
        """Runs a command in this many processes; stops processes of another command."""
        for index, process in list(self._processes.items()):
            if process.command != command:
                self._stop(index)
        excess = max(0, len(self._processes) - replicas)
        for index in sorted(self._processes, key=self._deletion_order)[:excess]:
            self._stop(index)
        free = (index for index in count() if index not in self._processes and index not in self._stopping)
        while len(self._processes) < replicas:
            self._start(next(free), command)

    @property
    def sources(self) -> frozenset[Path]:
        """The directories with the Python files of its processes."""
        return frozenset().union(*(process.command.sources for process in self._processes.values()))

    def restart(self) -> bool:
        """Lets every process end in order, and starts it again. Returns whether one was not ending yet."""
        asked = [process.restart() for process in self._processes.values()]
        return any(asked)

    def set_deletion_costs(self, costs: Mapping[str, int]) -> None:
        """Sets the number of messages that each process holds, by name; the fewest are stopped first."""
        self._deletion_costs = costs

    def stop(self) -> None:
        """Lets every process end in order."""
        for index in list(self._processes):
            self._stop(index)

    async def wait_stopped(self) -> None:
        """Waits until the last process has ended."""
        await asyncio.gather(*self._tasks)

    def _start(self, index: int, command: Command) -> None:
        host, name = self.host, f"{self.name}-{index}"
        process = SupervisedProcess(name, command, host.output, host.reaper, self.ended)
        self._processes[index] = process
        task = host.tasks.create_task(self._run(index, process), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, index: int, process: SupervisedProcess) -> None:
        try:
            await process.run()
        finally:
            self._stopping.pop(index, None)

    def _deletion_order(self, index: int) -> tuple[bool, int, int]:
        """Orders processes for stopping: not running, then fewest messages held, then highest index."""
        process = self._processes[index]
        return process.pid is not None, self._deletion_costs.get(process.name, 0), -index

    def _stop(self, index: int) -> None:
        process = self._stopping[index] = self._processes.pop(index)
        process.stop()
