"""The processes of a run: senders and consumers, each with a way to the server of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentstream.testing import AgentProcess, Faults
from agentstream.testing.process import Watchdog
from histories.plan import SENDERS, Plan

HERE = Path(__file__).parent
NUMBERS = 1_000_000
"""How many messages a sender process can number."""
ENDS_WITHIN = 90.0


@dataclass
class Member:
    """A place in the crew, which one process after the other takes.

    Attributes:
        name: such as `coder-0`.
        faults: its way to the server.
        generation: how many processes it has had.
        process: the present one; None while there is none.
    """

    name: str
    faults: Faults
    generation: int = 0
    process: AgentProcess | None = None

    @property
    def who(self) -> str:
        """The present process, as records name it."""
        return f"{self.name}.{self.generation}"


@dataclass
class Crew:
    """All processes.

    Attributes:
        plan: what they send.
        directory: where they write.
        secrets: of each agent, without the server's address.
        members: by name.
    """

    plan: Plan
    directory: Path
    secrets: Mapping[str, Mapping[str, str]]
    watchdog: Watchdog
    environ: Mapping[str, str]
    members: dict[str, Member] = field(default_factory=dict)

    def hire(self, name: str, faults: Faults) -> None:
        """Adds a member, and starts its process."""
        self.members[name] = Member(name, faults)
        self.start(name)

    def start(self, name: str, *, renamed: bool = False) -> None:
        """Starts the next process of a member, in the same pod or in a new one."""
        member = self.members[name]
        member.generation += 1
        agent = name.partition("-")[0]
        binding = self.directory / f"binding-{name}"
        binding.mkdir(exist_ok=True)
        entries = {**self.secrets[agent], "uri": member.faults.url, "agent": agent, "namespace": "team"}
        for entry, text in entries.items():
            (binding / entry).write_text(text, encoding="utf-8")
        arguments = [str(self.directory), member.who]
        program = "consumer.py"
        if name in SENDERS:
            place = SENDERS.index(name) * 1000 + member.generation
            program, arguments = "sender.py", [*arguments, str(self.plan.seed), str(place * NUMBERS)]
            arguments += [str(self.plan.rate), str(self.plan.slow)]
        pod = f"{name}-{member.generation}" if renamed else name
        variables = {
            **self.environ,
            "PYTHONUNBUFFERED": "1",
            "AGENTSTREAM_BINDING": str(binding),
            "AGENTSTREAM_POD": pod,
        }
        log = self.directory / f"{member.who}.log"
        member.process = AgentProcess((str(HERE / program), *arguments), variables, log, self.watchdog)

    async def ready(self) -> None:
        """Waits until all processes have started."""
        for member in self.members.values():
            if member.process is not None:
                await member.process.printed("ready", timeout=60)

    def heal(self) -> None:
        """Ends all faults on the way, resumes who is stopped, and starts who is missing."""
        for name, member in self.members.items():
            member.faults.heal()
            if member.process is None:
                self.start(name)
            else:
                member.process.resume()

    async def end(self, names: tuple[str, ...]) -> None:
        """Asks processes to end; raises if one did not end well."""
        await self.ready()
        processes = [p for name in names if (p := self.members[name].process) is not None]
        for process in processes:
            process.terminate()
        for process in processes:
            code = await process.ended(ENDS_WITHIN)
            if code:
                raise RuntimeError(f"a process ended with {code}: {process.output[-4000:]}")

    def check_alive(self) -> None:
        """Raises if a process has ended by itself."""
        for member in self.members.values():
            process = member.process
            if process is not None and process.returncode is not None:
                raise RuntimeError(f"{member.who} ended with {process.returncode}: {process.output[-4000:]}")

    def close(self) -> None:
        """Kills all processes."""
        for member in self.members.values():
            if member.process is not None:
                member.process.kill()

    async def replace(self, name: str, *, kills: bool, after: float, died: Callable[[], None]) -> None:
        """Ends a process, by SIGKILL or SIGTERM, and starts the next one; calls `died` in between."""
        member = self.members[name]
        process, member.process = member.process, None
        if process is None:
            return
        if kills:
            process.kill()
        else:
            process.resume()
            # a signal that comes before the handler is set ends a process as by SIGKILL
            await process.printed("ready", timeout=60)
            process.terminate()
            code: Any = await process.ended(ENDS_WITHIN)
            if code:
                raise RuntimeError(f"{member.who} ended with {code}: {process.output[-4000:]}")
        died()
        await asyncio.sleep(after)
        self.start(name, renamed=after > 0)
