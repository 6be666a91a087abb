"""Breaks what a plan says, and writes down what was broken, from when to when."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable

from agentstream.protocol.keys import default_stream_key
from histories.clock import LeapingClock
from histories.crew import Crew, Member
from histories.plan import Kind, Plan, Step
from histories.records import Fault, Recorder
from support.servers import Server
from support.waiting import until

HEALS_WITHIN = 30.0
NEVER = float("inf")


class Nemesis:
    """Takes the steps of a plan, each as a task of its own.

    Args:
        crew: the processes.
        server: the server that they use.
        clock: its clock.
        recorder: where faults are written down.
        is_whole: whether streams and groups are there that were destroyed.
    """

    def __init__(
        self,
        crew: Crew,
        server: Server,
        clock: LeapingClock,
        recorder: Recorder,
        is_whole: Callable[[], Awaitable[bool]],
    ) -> None:
        self._crew = crew
        self._server = server
        self._clock = clock
        self._recorder = recorder
        self._is_whole = is_whole
        # what is done to the server, one after the other
        self._at_the_server = asyncio.Lock()
        self._lasting: set[tuple[Kind, str]] = set()
        self._is_over = False

    async def carry_out(self, plan: Plan) -> None:
        """Takes all steps, and returns when the last one is over and the time is up."""
        start = time.monotonic()
        async with asyncio.TaskGroup() as steps:
            for step in plan.steps:
                await asyncio.sleep(max(0.0, start + step.at - time.monotonic()))
                self._crew.check_alive()
                steps.create_task(self._take(step))
            await asyncio.sleep(max(0.0, start + plan.duration - time.monotonic()))
            self._is_over = True

    async def _take(self, step: Step) -> None:
        member = self._crew.members.get(step.target)
        since, hit = time.monotonic_ns(), member.who if member else step.target
        match step.kind:
            case Kind.KILL | Kind.TERMINATE:
                kills = step.kind is Kind.KILL
                await self._crew.replace(
                    step.target, kills=kills, after=step.lasts, died=self._died(step.kind, hit)
                )
                return
            case Kind.SERVER | Kind.LEAP | Kind.FLUSH | Kind.DESTROY | Kind.DELETE:
                async with self._at_the_server:
                    since = time.monotonic_ns()
                    await self._at_server(step)
            case Kind.SILENCE | Kind.REFUSE:
                if not await self._cut_off([member] if member else list(self._crew.members.values()), step):
                    return
            case _:
                assert member is not None
                if not await self._hit(member, step):
                    return
        self._note(step.kind, since, hit)

    def _died(self, kind: Kind, who: str) -> Callable[[], None]:
        """Called at the moment at which a process has ended."""
        since = time.monotonic_ns()
        return lambda: self._note(kind, since, who)

    def _note(self, kind: Kind, since: int, target: str) -> None:
        self._recorder.note(Fault(kind=kind, since=since, target=target))

    async def _hit(self, member: Member, step: Step) -> bool:
        """Returns whether anything was broken."""
        process = member.process
        if step.kind is Kind.CUT:
            member.faults.cut()
        elif step.kind is Kind.LOSE:
            lost = member.faults.lost
            member.faults.lose_reply(step.command)
            # the next such command may come at any time
            await until(lambda: member.faults.lost > lost or self._is_over, NEVER)
        elif process is None or process.returncode is not None:
            return False
        elif step.kind is Kind.PAUSE:
            if not self._begin(Kind.PAUSE, [member]):
                return False
            process.pause()
            await asyncio.sleep(step.lasts)
            process.resume()
            self._lasting.discard((Kind.PAUSE, member.name))
        elif step.kind is Kind.BLOCK and "ready" in process.output:
            os.kill(process.pid, signal.SIGUSR1)
        return True

    def _begin(self, kind: Kind, members: list[Member]) -> list[Member]:
        """Those of the members to whom this is not happening already: one end would be the other's, too."""
        free = [member for member in members if (kind, member.name) not in self._lasting]
        self._lasting |= {(kind, member.name) for member in free}
        return free

    async def _cut_off(self, members: list[Member], step: Step) -> bool:
        """Returns whether anything was broken."""
        members = self._begin(step.kind, members)
        begin = (lambda m: m.faults.hold()) if step.kind is Kind.SILENCE else (lambda m: m.faults.refuse())
        faults = [begin(member) for member in members]
        await asyncio.sleep(step.lasts)
        # all at the same moment: who is heard later than others was cut off alone
        await asyncio.gather(*(asyncio.to_thread(fault.end) for fault in faults))
        self._lasting -= {(step.kind, member.name) for member in members}
        return bool(members)

    async def _at_server(self, step: Step) -> None:
        if step.kind is Kind.LEAP:
            self._clock.leap(step.lasts)
            return
        if step.kind is Kind.SERVER:
            self._server.kill()
            await asyncio.sleep(step.lasts)
            await asyncio.to_thread(self._server.start)
            return
        with self._server.admin() as admin:
            stream, _, group = step.target.partition("/")
            if step.kind is Kind.FLUSH:
                admin.flushall()
            elif step.kind is Kind.DELETE:
                admin.delete(default_stream_key("team", stream))
            else:
                admin.xgroup_destroy(default_stream_key("team", stream), group)
        await until(self._is_whole, HEALS_WITHIN)
