"""Several processes under one pod's name: workers of one program, forks, terminals; and those before them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import pytest

from agentstream.protocol.routes import Consumes
from support.topology import NAMESPACE, Topology, following, send
from support.waiting import until

# with room for 40, a worker reads so many ahead, and no more while it handles the first one
HELD = 30
# a worker says what it begins, and goes on when the file is there
PROGRAM = """
import asyncio, multiprocessing, os, sys
from agentstream import Agent
def say(*words):
    os.write(1, (' '.join(map(str, words)) + chr(10)).encode())
async def consume(agent):
    async with agent, agent.stream_consume("tasks", concurrency=40) as deliveries:
        async for delivery in deliveries:
            async with delivery:
                say("begins", delivery.payload["n"], os.getpid())
                while not os.path.exists("go"):
                    await asyncio.sleep(0.01)
def work(agent=None):
    asyncio.run(consume(agent or Agent.from_env()))
def forked(*args):
    pid = os.fork()
    if not pid:
        work(*args)
        os._exit(0)
"""
# how a further process comes about, when a line is read
KINDS = {
    "programs": "work()",
    "forks after the import": "for _ in sys.stdin: forked()",
    "forks after the agent was made": "a = Agent.from_env()\nfor _ in sys.stdin: forked(a)",
    "children by multiprocessing": (
        "a = Agent.from_env()\nfork = multiprocessing.get_context('fork')\n"
        "for _ in sys.stdin: fork.Process(target=work, args=(a,), daemon=True).start()"
    ),
}


@dataclass
class Workers:
    """Processes that consume as the same pod."""

    start: Callable[[str], asyncio.Future[asyncio.subprocess.Process]]
    begun: list[tuple[int, int]] = field(default_factory=list)
    told: list[str] = field(default_factory=list)

    def of(self, n: int) -> int:
        """The process that began a message."""
        return next(pid for number, pid in self.begun if number == n)


@pytest.fixture
async def workers(topology: Topology, tmp_path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Workers]:
    """Starts programs with the lines that it is given, and hears what they say."""
    environ = {
        **os.environ,
        "AGENTSTREAM_URL": topology.url,
        "AGENTSTREAM_NAMESPACE": NAMESPACE,
        "AGENTSTREAM_AGENT": "coder",
        "AGENTSTREAM_POD": "coder-7",
    }
    processes: list[asyncio.subprocess.Process] = []
    hearing: list[asyncio.Task[None]] = []
    monkeypatch.chdir(tmp_path)

    async def start(lines: str) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", PROGRAM + lines),
            env=environ,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        processes.append(process)
        hearing.append(asyncio.create_task(hear(process)))
        hearing.append(asyncio.create_task(hear_errors(process)))
        return process

    async def hear(process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            _, n, pid = line.split()
            made.begun.append((int(n), int(pid)))

    async def hear_errors(process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        async for line in process.stderr:
            made.told.append(line.decode())

    made = Workers(start)
    yield made
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
    await asyncio.gather(*hearing)


async def more(process: asyncio.subprocess.Process) -> None:
    """Has the program start one more worker."""
    assert process.stdin is not None
    process.stdin.write(b"\n")
    await process.stdin.drain()


@pytest.mark.parametrize("kind", KINDS)
async def test_each_message_is_handled_once(
    topology: Topology, workers: Workers, tmp_path, kind: str
) -> None:
    group = await topology.group("tasks", "coder", lease=60_000)
    await send(topology, *range(HELD))
    program = await workers.start(KINDS[kind])
    await more(program)
    await until(lambda: _are_held(topology, group, HELD))
    # the second one has looked for what others left, as it begins what is new
    await send(topology, HELD)
    if kind == "programs":
        await workers.start(KINDS[kind])
    await more(program)
    await until(lambda: len(workers.begun) == 2)
    assert workers.of(0) != workers.of(HELD)
    (tmp_path / "go").touch()
    await until(lambda: topology.settled(group, HELD + 1))
    assert sorted(n for n, _ in workers.begun) == list(range(HELD + 1))
    assert (await topology.stats(group))["acked"] == HELD + 1
    warnings = [line for line in workers.told if "another process" in line]
    assert len(warnings) == 1, workers.told
    assert f"another process ({workers.of(0)})" in warnings[0]


async def test_what_a_dead_sibling_held_is_taken_at_once_and_what_a_live_one_holds_is_not(
    topology: Topology, workers: Workers, tmp_path
) -> None:
    group = await topology.group("tasks", "coder", lease=60_000)
    programs = []
    for first in (0, HELD, 2 * HELD):
        await send(topology, *range(first, first + HELD))
        programs.append(await workers.start("work()"))
        await until(lambda first=first: _are_held(topology, group, first + HELD))
    await until(lambda: len(workers.begun) == 3)
    programs[1].kill()
    await programs[1].wait()
    last = await workers.start("work()")
    await until(lambda: workers.begun[-1][1] == last.pid)
    (tmp_path / "go").touch()
    await until(lambda: topology.settled(group, 3 * HELD))
    begun = [n for n, _ in workers.begun]
    assert [n for n in range(3 * HELD) if begun.count(n) != 1] == [HELD]
    assert {pid for n, pid in workers.begun if n < HELD} == {programs[0].pid}
    assert {pid for n, pid in workers.begun if HELD < n < 2 * HELD} == {last.pid}
    assert {pid for n, pid in workers.begun if n >= 2 * HELD} == {programs[2].pid}


async def _are_held(topology: Topology, group: Consumes, count: int) -> bool:
    return len(await topology.pending(group)) == count


async def test_what_an_unknown_process_held_is_claimed_when_nobody_renews_it(
    topology: Topology,
) -> None:
    group = await topology.group("tasks", "coder", lease=1_500)
    await send(topology, 1, 2)
    await topology.wire.call(
        "XREADGROUP", "GROUP", "coder", "coder-pod.1-1-elsewhere", "COUNT", 1, "STREAMS", group.key, ">"
    )
    async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        first = await following(deliveries)
        assert first.message.payload == {"n": 2}
        second = await following(deliveries)
        assert (second.message.payload, second.attempt) == ({"n": 1}, 2)
        assert await first.ack()
        assert await second.ack()
    assert await topology.settled(group, 2)


async def test_agents_of_one_process_share_the_messages(
    topology: Topology, caplog: pytest.LogCaptureFixture
) -> None:
    group: Consumes = await topology.group("tasks", "coder", lease=60_000)
    await send(topology, *range(3))
    async with topology.agent("coder") as one, one.stream_consume("tasks", concurrency=4) as some:
        held = [await following(some)]
        await until(lambda: _are_held(topology, group, 3))
        await send(topology, 4)
        async with topology.agent("coder") as two, two.stream_consume("tasks") as others:
            last = await following(others)
            assert last.message.payload == {"n": 4}
            assert await last.ack()
        held += [await following(some) for _ in range(2)]
        assert [await delivery.ack() for delivery in held] == [True] * 3
    assert await topology.settled(group, 4)
    assert not [record for record in caplog.records if "another process" in record.getMessage()]


async def test_processes_that_were_forked_off_get_their_own_replies(
    topology: Topology, workers: Workers
) -> None:
    await topology.group("tasks", "coder")
    await topology.stream("tasks", "coder")
    asks = """
a = Agent.from_env()
async def ask():
    async with a, asyncio.timeout(20):
        numbers = range(20)
        asking = (a.request(to="coder", payload={"n": [os.getpid(), n]}) for n in numbers)
        for n, reply in zip(numbers, await asyncio.gather(*asking)):
            say("asked", n, reply.payload["n"][0])
for _ in range(2):
    if not os.fork():
        asyncio.run(ask())
        os._exit(0)
os.wait(), os.wait()
"""
    async with topology.agent("coder") as coder:

        @coder.on("task_request", stream="tasks")
        async def echo(payload: dict) -> dict:
            return payload

        running = asyncio.create_task(coder.run())
        program = await workers.start(asks)
        await program.wait()
        await until(lambda: len(workers.begun) == 40 or workers.told)
        assert not workers.told
        coder.stop()
        await running
    assert len({pid for _, pid in workers.begun}) == 2
    assert sorted(n for n, _ in workers.begun) == sorted([*range(20), *range(20)])


# what a child may try with an agent that its parent uses
TRIES = {
    "sends": 'await a.send_message(to="coder", type="event", payload={"n": -1})',
    "asks": 'await a.request(to="coder", payload={"n": -1})',
    "notifies": 'await a.notify("coder", {})',
    "consumes": 'await anext(a.stream_consume("tasks"))',
    "enters": "await a.__aenter__()",
}


@pytest.mark.parametrize("tries", TRIES)
async def test_an_agent_that_was_used_before_a_fork_says_in_the_child_what_to_do(
    topology: Topology, workers: Workers, tmp_path, tries: str
) -> None:
    group = await topology.group("tasks", "coder")
    await topology.stream("tasks", "coder")
    program = f"""
a = Agent.from_env()
async def child():
    try:
        async with asyncio.timeout(5):
            {TRIES[tries]}
    except BaseException as error:
        print(type(error).__name__, error, file=sys.stderr, flush=True)
async def main():
    async with a:
        await a.send_message(to="coder", type="event", payload={{"n": 1}})
        pid = os.fork()
        if not pid:
            asyncio.run(child())
            os._exit(0)
        await asyncio.to_thread(os.waitpid, pid, 0)
        # the connections of the parent are whole
        await a.send_message(to="coder", type="event", payload={{"n": 2}})
asyncio.run(main())
"""
    parent = await workers.start(program)
    assert await parent.wait() == 0
    await until(lambda: workers.told)
    said = f"AgentStreamError process {parent.pid} uses the agent, and this one was forked off it"
    assert workers.told[0].startswith(said), workers.told
    assert await topology.wire.call("XLEN", group.key) == 2
