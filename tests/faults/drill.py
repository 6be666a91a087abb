"""Numbered messages are sent and handled while something breaks; then the accounts are checked."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from agentstream import Agent, AgentStreamError, ConnectionLost
from agentstream.protocol.keys import StreamKeys
from agentstream.testing import AgentProcess, Sandbox
from agentstream.transport.client import Client
from agentstream_operator.broker.broker import Broker
from agentstream_operator.plan.accounting import counters
from agentstream_operator.plan.observed import GroupSeen, StreamSeen
from faults.ledger import Ledger, handle
from support.topology import fields_of
from support.waiting import until

WORKER = Path(__file__).with_name("worker.py")
GROUP = "coder"


class Outcome(msgspec.Struct, frozen=True):
    """What a drill came to, for the table.

    Attributes:
        case: what was drilled.
        messages: how many were accepted.
        lost: how many of them were neither handled nor given up.
        twice: how many handlers ran to their end beyond the first one of each message.
        recovery: seconds from when what was broken worked again to when everything was settled.
    """

    case: str
    messages: int
    lost: int
    twice: int
    recovery: float

    def __str__(self) -> str:
        """A line of the table."""
        return f"{self.case:58} {self.messages:8} {self.lost:5} {self.twice:6} {self.recovery:8.2f} s"


HEADER = f"{'fault':58} {'messages':>8} {'lost':>5} {'twice':>6} {'recovered in':>12}"


@dataclass
class Drill:
    """One stream that `planner` sends to and `coder` consumes, on a server that is about to suffer.

    Attributes:
        broker: the server as its administrator sees it, without faults in between.
        wire: the same, for single commands.
        key: the stream.
        ledger: what consumers did.
        accepted: number -> entry of the messages that were accepted.
        in_doubt: numbers of those of which it is not known.
        outcomes: where the outcome goes.
    """

    broker: Broker
    wire: Client
    key: str
    ledger: Ledger
    outcomes: list[Outcome]
    accepted: dict[int, str] = field(default_factory=dict)
    in_doubt: set[int] = field(default_factory=set)
    _consumers: dict[Agent, list[asyncio.Task[None]]] = field(default_factory=dict)
    _healed_at: float | None = None

    async def send(
        self, planner: Agent, numbers: Iterable[int], timeout: float = 30.0, **work: Any
    ) -> list[Any]:
        """Sends messages at the same moment; `work` is what their handlers are to do. Errors are results."""
        wanted = list(numbers)
        results: list[Any] = await asyncio.gather(
            *(
                planner.send_message(stream="tasks", type="event", payload={"n": n, **work}, timeout=timeout)
                for n in wanted
            ),
            return_exceptions=True,
        )
        for n, result in zip(wanted, results, strict=True):
            if isinstance(result, ConnectionLost):
                self.in_doubt.add(n)
            elif isinstance(result, AgentStreamError):
                continue
            elif isinstance(result, BaseException):
                raise result
            else:
                self.accepted[n] = result.entry
        return results

    def consume(self, agent: Agent, *, handlers: int = 8, concurrency: int = 64) -> Agent:
        """Has an agent of this process handle messages."""
        deliveries = agent.stream_consume("tasks", concurrency=concurrency)
        who = agent._consumer.identity.name
        self._consumers[agent] = [
            asyncio.create_task(handle(deliveries, self.ledger, who)) for _ in range(handlers)
        ]
        return agent

    async def stop(self) -> None:
        """Ends the consumers of this process; an error of theirs is the test's."""
        for agent, tasks in self._consumers.items():
            agent.stop()
            for task in tasks:
                if not task.cancelled():
                    await task
        self._consumers.clear()

    def healed(self) -> None:
        """From here on everything works again."""
        self._healed_at = time.monotonic()

    async def seen(self) -> GroupSeen:
        """The group as it is on the server."""
        return (await self._seen()).groups[GROUP]

    async def settled(self) -> bool:
        """Whether the group has nothing left to do."""
        group = await self.seen()
        return group.exists and group.retry_ready and not (group.backlog or group.delayed)

    async def commands_of_a_second(self) -> float:
        """How many commands the server gets a second from now on, while consumers of this process run.

        They sweep every two seconds, so that is how long it looks.
        """
        before, began = await self._commands(), time.monotonic()
        await asyncio.wait({task for tasks in self._consumers.values() for task in tasks}, timeout=2)
        # on a busy machine it was longer than what was asked for
        return (await self._commands() - before) / (time.monotonic() - began)

    async def over(
        self, case: str, *, twice: int = 0, timeout: float = 20.0, renewed: bool = False
    ) -> Outcome:
        """Waits until everything is settled, and checks what became of every message.

        Args:
            case: what was drilled.
            twice: how many handlers may have run to their end beyond the first one of each message.
            timeout: seconds that settling may take.
            renewed: whether stream or group were made anew, with fences and counters that know nothing of
                what was before.
        """
        await until(self.settled, timeout)
        recovery = time.monotonic() - (self._healed_at or time.monotonic())
        await self.stop()
        on_stream = Counter(await self._numbers(self.key))
        given_up = Counter(await self._numbers(StreamKeys(self.key).dead_letters(GROUP)))
        done = Counter(record.number for record in self.ledger.records("done"))
        lost = self.accepted.keys() - done.keys() - given_up.keys()
        twice_done = (done - Counter(done.keys())).total()
        outcome = Outcome(case, len(self.accepted), len(lost), twice_done, recovery)
        print(outcome)  # noqa: T201 - also what went wrong is to be seen
        self.outcomes.append(outcome)
        assert not lost
        assert outcome.twice <= twice
        if not renewed:
            self._nobody_settles_what_others_hold()
            assert set(on_stream) <= self.accepted.keys() | self.in_doubt, "what was refused is on the stream"
            assert self.accepted.keys() <= set(on_stream), "what was accepted is not"
            assert set(on_stream.values()) <= {1}, "one call made two entries"
            assert set(given_up.values()) <= {1}
            await self._counters_agree(len(on_stream))
        return outcome

    def _nobody_settles_what_others_hold(self) -> None:
        """Of each message one acknowledgement counts at most, and that of its last delivery."""
        acked = self.ledger.records("acked")
        assert max(Counter(record.number for record in acked).values(), default=0) <= 1
        fences: dict[int, list[int]] = {}
        for record in self.ledger.records("began"):
            fences.setdefault(record.number, []).append(record.fence)
        assert all(of_one == sorted(set(of_one)) for of_one in fences.values())
        assert all(record.fence == fences[record.number][-1] for record in acked)

    async def _counters_agree(self, entries: int) -> None:
        """Every entry left its group by one way, and once; see docs/adr/0005."""
        seen = await self._seen()
        counted = counters(seen, seen.groups[GROUP])
        assert (counted.added, counted.lost, counted.unsettled) == (entries, 0, 0)
        assert counted.acked + counted.dead == entries

    async def _commands(self) -> int:
        info = (await self.wire.call("INFO", "stats")).decode()
        return int(info.partition("total_commands_processed:")[2].partition("\r")[0])

    async def _seen(self) -> StreamSeen:
        return await self.broker.observe(self.key, [GROUP])

    async def _numbers(self, key: str) -> list[int]:
        """The numbers of the messages on a stream."""
        entries = await self.wire.call("XRANGE", key, "-", "+")
        return [msgspec.json.decode(fields_of(fields)["m"])["payload"]["n"] for _, fields in entries]


def process(sandbox: Sandbox, drill: Drill, *arguments: int, pod: str | None = None) -> AgentProcess:
    """Has a process of its own handle messages: so many handlers, with so much concurrency."""
    texts = (str(argument) for argument in arguments)
    return sandbox.process(WORKER, str(drill.ledger.path), *texts, agent=GROUP, pod=pod)
