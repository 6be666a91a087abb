"""The consumers of each group as processes on this machine, as many as are wanted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from itertools import count

from agentstream_operator.cluster.port import WorkloadSeen
from agentstream_operator.local.processes.commands import Command
from agentstream_operator.local.processes.processes import Output, SupervisedProcess
from agentstream_operator.local.processes.reaper import Reaper


class Workload:
    """The processes of one group.

    Args:
        name: the group's; process number 2 is `<name>-2`.
        tasks: runs the places of the processes.
        output: where their lines go.
        reaper: ends them if we cannot.
        ended: called with a process's name after it has ended.
    """

    def __init__(
        self,
        name: str,
        *,
        tasks: asyncio.TaskGroup,
        output: Output,
        reaper: Reaper,
        ended: Callable[[str], Awaitable[None]],
    ) -> None:
        self._name = name
        self._tasks = tasks
        self._output = output
        self._reaper = reaper
        self._ended = ended
        self._slots: dict[int, SupervisedProcess] = {}
        self._leaving: dict[int, SupervisedProcess] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._held: Mapping[str, int] = {}

    @property
    def seen(self) -> WorkloadSeen:
        """How the group's consumers run."""
        slots = self._slots.values()
        return WorkloadSeen(
            replicas=len(slots),
            ready=sum(slot.pid is not None for slot in slots),
            crashing=next((slot.trouble for slot in slots if slot.trouble is not None), None),
        )

    @property
    def running(self) -> int:
        """How many processes there are, those that are ending included."""
        return sum(slot.pid is not None for slot in (*self._slots.values(), *self._leaving.values()))

    def apply(self, command: Command, replicas: int) -> None:
        """Has this command run in that many places; processes of another command end in order."""
        for index, slot in list(self._slots.items()):
            if slot.command != command:
                self._retire(index)
        for index in sorted(self._slots, key=self._cost)[: max(0, len(self._slots) - replicas)]:
            self._retire(index)
        free = (index for index in count() if index not in self._slots and index not in self._leaving)
        while len(self._slots) < replicas:
            self._start(next(free), command)

    def rank(self, held: Mapping[str, int]) -> None:
        """Lets processes go first, when there are to be fewer, that hold fewer messages, by their names."""
        self._held = held

    def retire(self) -> None:
        """Lets every process end in order."""
        for index in list(self._slots):
            self._retire(index)

    async def empty(self) -> None:
        """Returns when the last retired process has ended."""
        await asyncio.gather(*self._running)

    def _start(self, index: int, command: Command) -> None:
        slot = SupervisedProcess(
            f"{self._name}-{index}",
            command,
            output=self._output,
            reaper=self._reaper,
            ended=self._ended,
        )
        self._slots[index] = slot
        task = self._tasks.create_task(self._run(index, slot), name=slot.name)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _run(self, index: int, slot: SupervisedProcess) -> None:
        try:
            await slot.run()
        finally:
            self._leaving.pop(index, None)

    def _cost(self, index: int) -> tuple[bool, int, int]:
        """What goes first: what does not run, then what holds the least, then the latest."""
        slot = self._slots[index]
        return slot.pid is not None, self._held.get(slot.name, 0), -index

    def _retire(self, index: int) -> None:
        slot = self._slots.pop(index)
        self._leaving[index] = slot
        slot.retire()
