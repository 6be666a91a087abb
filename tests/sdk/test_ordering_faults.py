"""Order by key outlives consumers that are killed, and those that pause until others have what they had."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentstream.protocol.keys import StreamKeys
from support.topology import NAMESPACE, Topology
from support.waiting import until

PROGRAM = """
import asyncio, os, random, sys
from agentstream import Agent, Retry

path, slots, failing = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
log = os.open(path, os.O_WRONLY | os.O_APPEND)

def note(what, delivery):
    message = delivery.message
    os.write(log, f"{what} {message.key} {message.payload['n']} {os.getpid()}\\n".encode())

async def main():
    async with Agent.from_env() as agent:
        deliveries = agent.stream_consume("tasks", concurrency=slots)
        async def work():
            async for delivery in deliveries:
                async with delivery:
                    note("start", delivery)
                    await asyncio.sleep(random.random() * 0.005)
                    if delivery.attempt < 3 and random.random() < failing:
                        note("fail", delivery)
                        raise Retry("again", after=random.random() * 0.03)
                    note("end", delivery)
        await asyncio.gather(*(work() for _ in range(slots)))

asyncio.run(main())
"""


class Consumers:
    """Processes of one group that note in a file what their handlers do."""

    def __init__(self, topology: Topology, path: Path, capacity: int, failing: float) -> None:
        path.touch()
        self._path = path
        self._topology = topology
        self._arguments = (str(path), str(capacity), str(failing))
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """One more, in a pod of its own."""
        environ = {
            **os.environ,
            "AGENTSTREAM_URL": self._topology.url,
            "AGENTSTREAM_NAMESPACE": NAMESPACE,
            "AGENTSTREAM_AGENT": "coder",
            "AGENTSTREAM_POD": f"coder-{len(self.processes)}",
        }
        command = [sys.executable, "-c", PROGRAM, *self._arguments]
        self.processes.append(subprocess.Popen(command, env=environ))

    def signal(self, number: int, what: signal.Signals) -> None:
        self.processes[number].send_signal(what)

    def end(self) -> None:
        for process in self.processes:
            process.send_signal(signal.SIGCONT)
            process.terminate()
        for process in self.processes:
            process.wait(20)

    def lines(self) -> list[tuple[str, str, int, int]]:
        """What happened so far: what, key, number, and the process."""
        # the last line may be seen while it is written
        whole, _, _ = self._path.read_text().rpartition("\n")
        parts = (line.split() for line in whole.splitlines())
        return [(what, key, int(n), int(pid)) for what, key, n, pid in parts]

    def of(self, number: int) -> int:
        """How much a process has noted."""
        return sum(pid == self.processes[number].pid for *_, pid in self.lines())

    def done(self) -> int:
        """How many messages were handled."""
        return len({(key, n) for what, key, n, _ in self.lines() if what == "end"})


@pytest.fixture
def started(tmp_path: Path) -> Iterator[list[Consumers]]:
    consumers: list[Consumers] = []
    yield consumers
    for each in consumers:
        each.end()


async def send(topology: Topology, keys: list[str], count: int) -> None:
    async with topology.agent("planner") as planner:
        for n in range(count):
            await asyncio.gather(
                *(planner.send_message(to="coder", type="event", payload={"n": n}, key=key) for key in keys)
            )


def check(lines: list[tuple[str, str, int, int]], victims: set[int]) -> None:
    """Fails if two messages of a key were handled at a time, or out of order.

    What a victim had begun may begin once more elsewhere, and what it ends late is its own affair.
    """
    handled: dict[str, int] = defaultdict(int)
    running: dict[str, tuple[int, int]] = {}
    for line in lines:
        what, key, n, pid = line
        following = handled[key]
        if what == "start":
            held_n, holder = running.get(key, (n, pid))
            assert (held_n, holder) == (n, pid) or (holder in victims and n == held_n), line
            # what a victim had handled and not settled comes again
            assert n == following or (victims and n == following - 1), line
            running[key] = (n, pid)
        elif running.get(key) == (n, pid):
            del running[key]
            if what == "end":
                handled[key] = n + 1
        else:
            assert pid in victims, line


async def test_order_holds_when_a_consumer_is_killed(
    topology: Topology, tmp_path: Path, started: list[Consumers]
) -> None:
    group = await topology.group("tasks", "coder", lease=1_000)
    keys = [f"key-{n}" for n in range(50)]
    consumers = Consumers(topology, tmp_path / "log", capacity=16, failing=0.05)
    started.append(consumers)
    for _ in range(3):
        consumers.start()
    await until(lambda: _are_there(topology, 3))
    await send(topology, keys, 20)
    await until(lambda: consumers.of(0) > 100)
    consumers.signal(0, signal.SIGKILL)
    await until(lambda: topology.settled(group, 1_000), timeout=40)
    assert consumers.done() == 1_000
    check(consumers.lines(), victims={consumers.processes[0].pid})


async def _are_there(topology: Topology, count: int) -> bool:
    reply = await topology.wire.call("XINFO", "CONSUMERS", "{test.tasks}", "coder")
    return len(reply) >= count


async def test_order_holds_when_a_consumer_is_paused_until_others_have_what_it_held(
    topology: Topology, tmp_path: Path, started: list[Consumers]
) -> None:
    group = await topology.group("tasks", "coder", lease=600)
    keys = [f"key-{n}" for n in range(20)]
    consumers = Consumers(topology, tmp_path / "log", capacity=16, failing=0.05)
    started.append(consumers)
    for _ in range(3):
        consumers.start()
    await until(lambda: _are_there(topology, 3))
    await send(topology, keys, 20)
    await until(lambda: consumers.of(1) > 50)
    consumers.signal(1, signal.SIGSTOP)
    # the others take over all that it held, and go on with what follows
    await until(lambda: topology.settled(group, 400), timeout=40)
    assert consumers.done() == 400
    before = consumers.of(1)
    consumers.signal(1, signal.SIGCONT)
    await send(topology, ["later"], 20)
    await until(lambda: topology.settled(group, 420), timeout=40)
    paused = consumers.processes[1].pid
    lines = consumers.lines()
    of_paused = [i for i, line in enumerate(lines) if line[3] == paused]
    late = [i for i in of_paused[before:] if lines[i][0] == "start" and lines[i][1] != "later"]
    # its one thread was stopped in one place: at most one message had a lease when that was looked at, and no
    # line of its handler
    assert len(late) <= 1
    check([line for i, line in enumerate(lines) if i not in late], victims={paused})


async def test_one_slot_each_is_enough_for_many_messages_of_one_key(
    topology: Topology, tmp_path: Path, started: list[Consumers]
) -> None:
    group = await topology.group("tasks", "coder", lease=600)
    consumers = Consumers(topology, tmp_path / "log", capacity=1, failing=0.1)
    started.append(consumers)
    await send(topology, ["k"], 600)
    for _ in range(3):
        consumers.start()
    for victim in (0, 1):
        await until(lambda: consumers.done() > 100 * (victim + 1), timeout=40)  # noqa: B023 - is over by then
        consumers.signal(victim, signal.SIGKILL)
        consumers.start()
    await until(lambda: topology.settled(group, 600), timeout=60)
    assert [n for n in range(600) if n not in {n for _, _, n, _ in consumers.lines()}] == []
    check(consumers.lines(), victims={process.pid for process in consumers.processes[:2]})
    assert await topology.wire.call("EXISTS", StreamKeys(group.key).parked("coder")) == 0
