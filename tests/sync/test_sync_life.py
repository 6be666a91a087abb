"""The agent's thread: from entering to leaving, in one process, whatever happens to it."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import threading
from typing import Any

import msgspec
import pytest

from agentstream import AgentStreamError, SettingsError
from agentstream.protocol.keys import StreamKeys
from agentstream.protocol.routes import Consumes
from agentstream.sync import Agent, Deliveries
from agentstream.sync.loop import LoopThread
from agentstream.transport.client import Client
from support.servers import Server, free_port
from support.topology import NAMESPACE, Topology
from support.waiting import until

CLAIMABLE = 86_000_000
HANDED_BACK = "tasks: handed back 1 message that handlers had not finished\n"


@pytest.fixture
def group(topology: Topology) -> Consumes:
    return topology.routes["coder"].consumes[0]


@pytest.fixture
async def ten(topology: Topology) -> None:
    async with topology.agent("planner") as planner:
        for n in range(10):
            await planner.send_message(to="coder", type="event", payload={"n": n})


async def handed_back(topology: Topology, group: Consumes) -> int:
    """How many messages any consumer gets at once: claimable ones, and those passed on."""
    main, retries = await topology.pending(group), await topology.pending(group, retries=True)
    passed_on: int = await topology.wire.call("XLEN", StreamKeys(group.key).retry(group.group))
    held = sum(idle <= CLAIMABLE for _, _, idle, _ in retries)
    return sum(idle > CLAIMABLE for _, _, idle, _ in main) + passed_on - held


async def test_an_agent_is_of_use_from_entering_to_leaving(planner: Agent) -> None:
    def work() -> None:
        with pytest.raises(AgentStreamError, match="enter the agent first"):
            planner.stream_consume("tasks")
        planner.stop()
        with planner:
            assert any(thread.name == "agentstream test.planner" for thread in threading.enumerate())
            planner.send_message(to="coder", type="event", payload={})
        with pytest.raises(AgentStreamError, match="has ended"):
            planner.send_message(to="coder", type="event", payload={})
        with pytest.raises(AgentStreamError, match="entered once"), planner:
            pass
        planner.stop()

    await asyncio.to_thread(work)


async def test_what_cannot_be_entered_leaves_no_thread(topology: Topology) -> None:
    port = free_port()
    settings = msgspec.structs.replace(topology.settings("planner"), health_port=port)
    taken = await asyncio.start_server(lambda *_: None, "0.0.0.0", port)
    try:
        with pytest.raises(SettingsError, match=str(port)), Agent.connect(settings):
            pass
    finally:
        taken.close()


async def test_an_agent_leaves_no_connection(server: Server, ten: None, coder: Agent) -> None:
    def work() -> None:
        with coder, next(coder.stream_consume("tasks")):
            pass

    await asyncio.to_thread(work)
    await until(lambda: not [name for name in server.connections() if "test.coder" in name])


async def test_leaving_the_loop_hands_back_what_was_read_ahead(
    topology: Topology, group: Consumes, ten: None, coder: Agent
) -> None:
    left, seen = threading.Event(), threading.Event()

    def work() -> None:
        with coder:
            for delivery in coder.stream_consume("tasks"):
                with delivery:
                    break
            left.set()
            assert seen.wait(10)

    working = asyncio.create_task(asyncio.to_thread(work))
    await until(left.is_set)
    try:
        await until(lambda: _is(handed_back(topology, group), 9))
    finally:
        seen.set()
        await working


async def _is(counting: Any, count: int) -> bool:
    return bool(await counting == count)


async def test_closing_hands_back_also_what_is_in_hand(
    topology: Topology, group: Consumes, ten: None, coder: Agent
) -> None:
    def work() -> None:
        with coder:
            deliveries = coder.stream_consume("tasks")
            delivery = next(deliveries)
            deliveries.close()
            assert not delivery.ack()
            with pytest.raises(StopIteration):
                next(deliveries)

    await asyncio.to_thread(work)
    assert await handed_back(topology, group) == 10


async def test_what_outlives_the_agent_was_handed_back(
    topology: Topology, group: Consumes, ten: None, coder: Agent
) -> None:
    def work() -> None:
        with coder:
            deliveries, notifications = coder.stream_consume("tasks"), coder.notifications()
            delivery = next(deliveries)
        assert not delivery.held
        with delivery:
            raise LookupError
        assert not delivery.ack()
        for iterator in (deliveries, notifications):
            assert list(iterator) == []
            iterator.close()

    await asyncio.to_thread(work)
    assert await handed_back(topology, group) == 10


async def test_threads_that_wait_are_told_when_the_agent_ends(coder: Agent) -> None:
    waiting = threading.Event()

    def iterate(deliveries: Deliveries[Any]) -> None:
        waiting.set()
        ended.append(list(deliveries))

    ended: list[list[Any]] = []

    def work() -> None:
        with coder:
            thread = threading.Thread(target=iterate, args=(coder.stream_consume("tasks"),))
            thread.start()
            assert waiting.wait(10)
        thread.join(10)

    await asyncio.to_thread(work)
    assert ended == [[]]


PROGRAM = """
import os, sys, threading, time
from agentstream import AgentStreamError
from agentstream.sync import Agent
agent = Agent.from_env()
{before}
with agent:
    print("ready", flush=True)
    {work}
print("ended", flush=True)
"""
CONSUMES = """for delivery in agent.stream_consume("tasks"):
        with delivery:
            print(delivery.message.payload["n"], flush=True)
            {after}"""
HANDLES = """
@agent.on("event")
def handle(payload):
    print(payload["n"], flush=True)
    time.sleep(0.5)
"""


def program(topology: Topology, work: str, before: str = "", pod: str = "coder-7") -> subprocess.Popen[str]:
    environ = {
        **os.environ,
        "AGENTSTREAM_URL": topology.url,
        "AGENTSTREAM_NAMESPACE": NAMESPACE,
        "AGENTSTREAM_AGENT": "coder",
        "AGENTSTREAM_POD": pod,
    }
    command = [sys.executable, "-c", PROGRAM.format(work=work, before=before)]
    return subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


async def lines(process: subprocess.Popen[str], count: int) -> list[str]:
    assert process.stdout
    return [(await asyncio.to_thread(process.stdout.readline)).strip() for _ in range(count)]


async def ends(process: subprocess.Popen[str], number: signal.Signals | None = None) -> tuple[str, str, int]:
    if number is not None:
        process.send_signal(number)
    out, err = await asyncio.to_thread(process.communicate, timeout=15)
    return out, err, process.returncode


FORKS = """deliveries = agent.stream_consume("tasks")
    delivery = next(deliveries)
    if os.fork() == 0:
        sending = lambda: agent.send_message(to="coder", type="event", payload={})
        for call in (sending, lambda: next(deliveries), delivery.ack, agent.__enter__):
            try:
                call()
            except AgentStreamError as error:
                print(error, flush=True)
        agent.stop()
        deliveries.close()
        sys.exit(0)
    print("child ended with", os.wait()[1], flush=True)
    print("held:", delivery.ack(), next(deliveries).held)"""


async def test_a_process_that_is_forked_off_is_told_so(
    topology: Topology, group: Consumes, ten: None
) -> None:
    """And nothing that it does reaches its parent, whose agent goes on."""
    process = program(topology, FORKS)
    out, err, code = await ends(process)
    assert (err, code) == (HANDED_BACK, 0)
    ready, *told, child, held, ended = out.splitlines()
    assert len(told) == 4
    assert all("make one after the fork" in line for line in told)
    assert (ready, child, held, ended) == ("ready", "child ended with 0", "held: True True", "ended")
    assert (await topology.stats(group))["acked"] == 1


PREFORKS = """for _ in range(2):
    if os.fork() == 0:
        break
else:
    print("children ended with", os.wait()[1], os.wait()[1], flush=True)
    os._exit(0)"""
HANDLES_FIVE = """deliveries = agent.stream_consume("tasks", concurrency=1)
    for _ in range(5):
        with next(deliveries) as delivery:
            print(f"handled {delivery.message.payload['n']}", flush=True)"""


async def test_an_agent_that_is_made_before_a_fork_is_entered_in_each_child(
    topology: Topology, group: Consumes, ten: None
) -> None:
    process = program(topology, HANDLES_FIVE, PREFORKS)
    out, err, code = await ends(process)
    assert (out.splitlines()[-1], code) == ("children ended with 0 0", 0), err
    assert sorted(re.findall(r"handled (\d)", out)) == [str(n) for n in range(10)]
    assert (await topology.stats(group))["acked"] == 10


SIGNALS = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])


@SIGNALS
async def test_a_signal_lets_the_message_in_hand_end(
    topology: Topology, group: Consumes, ten: None, number: signal.Signals
) -> None:
    process = program(topology, CONSUMES.format(after="time.sleep(0.5)"))
    assert await lines(process, 2) == ["ready", "0"]
    assert await ends(process, number) == ("ended\n", "", 0)
    assert await handed_back(topology, group) == 9
    assert (await topology.stats(group))["acked"] == 1


@SIGNALS
async def test_a_signal_is_noticed_while_there_is_nothing_to_do(
    topology: Topology, server: Server, number: signal.Signals
) -> None:
    process = program(topology, CONSUMES.format(after="pass"))
    assert await lines(process, 1) == ["ready"]
    await until(lambda: "agentstream:test.coder:read-tasks" in server.connections())
    assert await ends(process, number) == ("ended\n", "", 0)


async def test_a_signal_ends_running_handlers_after_what_they_have(
    topology: Topology, group: Consumes, ten: None
) -> None:
    process = program(topology, "agent.run(concurrency=1)", HANDLES)
    assert await lines(process, 2) == ["ready", "0"]
    assert await ends(process, signal.SIGTERM) == ("ended\n", "", 0)
    assert (await topology.stats(group))["acked"] == 1


@SIGNALS
async def test_a_program_that_consumes_nothing_ends(topology: Topology, number: signal.Signals) -> None:
    process = program(topology, "next(agent.notifications())")
    assert await lines(process, 1) == ["ready"]
    assert await ends(process, number) == ("", "", 128 + number)


async def test_a_second_signal_does_not_wait(topology: Topology, group: Consumes, ten: None) -> None:
    process = program(topology, CONSUMES.format(after="time.sleep(60)"))
    assert await lines(process, 2) == ["ready", "0"]
    process.send_signal(signal.SIGTERM)
    await until(lambda: _is(handed_back(topology, group), 9))
    assert (await ends(process, signal.SIGTERM))[2] == -signal.SIGTERM


async def test_what_is_interrupted_is_handed_back(topology: Topology, group: Consumes, ten: None) -> None:
    """An application with handlers of its own for signals gets its KeyboardInterrupt, wherever it waits."""
    own = "import signal; signal.signal(signal.SIGINT, lambda *_: sys.exit('own'))"
    process = program(topology, CONSUMES.format(after="time.sleep(60)"), own)
    assert await lines(process, 2) == ["ready", "0"]
    assert await ends(process, signal.SIGINT) == ("", "own\n", 1)
    assert await handed_back(topology, group) == 10


SHUTDOWN = """
import signal
class Shutdown(Exception): pass
def shut_down(*_):
    raise Shutdown("asked to")
signal.signal(signal.SIGTERM, shut_down)
"""


async def test_what_a_signal_raises_in_a_block_is_no_failure_of_its_message(
    topology: Topology, group: Consumes, ten: None
) -> None:
    """Whatever an application of its own raises on SIGTERM passes on, and no attempt counts."""
    process = program(topology, CONSUMES.format(after="time.sleep(60)"), SHUTDOWN)
    assert await lines(process, 2) == ["ready", "0"]
    out, err, code = await ends(process, signal.SIGTERM)
    assert (out, err.splitlines()[-1], code) == ("", "Shutdown: asked to", 1)
    assert await handed_back(topology, group) == 10
    assert (await topology.stats(group)).get("retried", 0) == 0


async def test_whoever_waits_can_be_interrupted(topology: Topology, server: Server) -> None:
    own = "import signal; signal.signal(signal.SIGINT, lambda *_: sys.exit('own'))"
    process = program(topology, CONSUMES.format(after="pass"), own)
    assert await lines(process, 1) == ["ready"]
    await until(lambda: "agentstream:test.coder:read-tasks" in server.connections())
    assert await ends(process, signal.SIGINT) == ("", "own\n", 1)


async def test_what_was_fetched_for_a_thread_that_was_interrupted_is_handed_back(
    topology: Topology, group: Consumes, ten: None, coder: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal comes at the very moment when the message is ready, and not yet in the thread's hands."""
    run = coder._loop.run

    def run_and_interrupt(*work: Any) -> None:
        monkeypatch.undo()
        run(*work)
        raise KeyboardInterrupt

    def work() -> list[int]:
        with coder, coder.stream_consume("tasks", concurrency=1) as deliveries:
            monkeypatch.setattr(coder._loop, "run", run_and_interrupt)
            with pytest.raises(KeyboardInterrupt):
                next(deliveries)
            seen: list[int] = []
            while len(seen) < 10:
                with next(deliveries) as delivery:
                    seen.append(delivery.payload["n"])
            return seen

    assert sorted(await asyncio.to_thread(work)) == list(range(10))
    await until(lambda: topology.settled(group, 10))


EXITS = """
@agent.on("event")
def handle(payload):
    print("n", payload["n"], flush=True)
    if payload["n"] == 0:
        sys.exit("enough")
"""


async def test_a_handler_that_calls_exit_has_failed_and_ends_nothing_else(
    topology: Topology, group: Consumes, ten: None
) -> None:
    process = program(topology, "agent.run(concurrency=2)", EXITS)
    await until(lambda: topology.settled(group, 10))
    out, err, code = await ends(process, signal.SIGTERM)
    assert (out.splitlines()[0], out.splitlines()[-1], code) == ("ready", "ended", 0)
    assert out.count("n 0") == group.max_deliveries
    (record,) = await topology.dead_letters(group)
    assert (record["reason"], record["error"]) == (b"MaxDeliveries", b"SystemExit: enough")
    assert err.count(": attempt ") == group.max_deliveries


SELF_ENDING = """for delivery in agent.stream_consume("tasks", concurrency=1):
        with delivery:
            print(delivery.attempt, flush=True)
            sys.exit("enough")"""


async def test_a_program_that_exits_over_a_message_does_so_as_often_as_the_group_allows(
    topology: Topology, group: Consumes
) -> None:
    """The block belongs to the program, so it ends; but the attempt counts."""
    async with topology.agent("planner") as planner:
        await planner.send_message(to="coder", type="event", payload={"n": 0})
    for attempt in range(1, group.max_deliveries + 1):
        process = program(topology, SELF_ENDING, pod=f"pod-{attempt}")
        out, err, code = await ends(process)
        assert (out, err.splitlines()[-1], code) == (f"ready\n{attempt}\n", "enough", 1)
    assert await topology.settled(group, 1)
    (record,) = await topology.dead_letters(group)
    assert record["error"] == b"SystemExit: enough"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_nobody_waits_for_a_loop_that_was_broken(coder: Agent) -> None:
    told = threading.Event()

    async def breaks() -> None:
        raise SystemExit

    def wait() -> None:
        with pytest.raises(AgentStreamError, match="has ended"):
            coder._loop.run(asyncio.Event().wait)
        told.set()

    def work() -> None:
        with coder:
            waiting = threading.Thread(target=wait)
            waiting.start()
            with pytest.raises((SystemExit, AgentStreamError)):
                coder._loop.run(breaks)
            waiting.join(10)
            with pytest.raises(AgentStreamError, match="has ended"):
                coder.notify("coder", {})

    await asyncio.to_thread(work)
    assert told.is_set()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_loop_that_breaks_leaves_no_task_behind() -> None:
    async def breaks() -> None:
        raise SystemExit

    def wait(loop: LoopThread) -> None:
        with pytest.raises(AgentStreamError, match="has ended"):
            loop.run(asyncio.Event().wait)

    # once in forty times, something was submitted at the very moment
    for _ in range(200):
        loop = LoopThread("breaks")
        loop.start()
        waiting = [threading.Thread(target=wait, args=(loop,)) for _ in range(3)]
        for thread in waiting:
            thread.start()
        with pytest.raises((SystemExit, AgentStreamError)):
            loop.run(breaks)
        for thread in waiting:
            thread.join(10)
        loop.end()
        assert loop._loop is not None
        assert not asyncio.all_tasks(loop._loop)


async def test_an_agent_that_is_never_left_ends_with_its_program(
    topology: Topology, group: Consumes, ten: None
) -> None:
    program_text = (
        "from agentstream.sync import Agent\n"
        "agent = Agent.from_env().__enter__()\n"
        "delivery = next(agent.stream_consume('tasks'))\n"
        "print(delivery.payload['n'])\n"
    )
    environ = {
        **os.environ,
        "AGENTSTREAM_URL": topology.url,
        "AGENTSTREAM_NAMESPACE": NAMESPACE,
        "AGENTSTREAM_AGENT": "coder",
    }
    command = [sys.executable, "-c", program_text]
    ended = await asyncio.to_thread(
        subprocess.run, command, env=environ, capture_output=True, text=True, check=False
    )
    assert (ended.stdout, ended.stderr, ended.returncode) == ("0\n", HANDED_BACK, 0)
    assert await handed_back(topology, group) == 10


async def test_what_a_killed_process_had_is_handled_by_another(
    topology: Topology, group: Consumes, ten: None, wire: Client
) -> None:
    killed = program(topology, CONSUMES.format(after="time.sleep(60)"), pod="first")
    assert await lines(killed, 2) == ["ready", "0"]
    assert (await ends(killed, signal.SIGKILL))[2] == -signal.SIGKILL
    after = "if delivery.message.payload['n'] == 0: print('attempt', delivery.attempt, flush=True)"
    second = program(topology, CONSUMES.format(after=after), pod="second")
    await until(lambda: topology.settled(group, 10), timeout=20)
    out, err, code = await ends(second, signal.SIGTERM)
    assert (err, code) == ("", 0)
    assert "attempt 2" in out
    assert await wire.call("XLEN", StreamKeys(group.key).dead_letters(group.group)) == 0


async def test_signals_of_an_agent_in_another_thread_are_left_alone(topology: Topology) -> None:
    environ = {
        "AGENTSTREAM_URL": topology.url,
        "AGENTSTREAM_NAMESPACE": NAMESPACE,
        "AGENTSTREAM_AGENT": "coder",
    }
    before = signal.getsignal(signal.SIGTERM)

    def work() -> object:
        with Agent.from_env(environ):
            return signal.getsignal(signal.SIGTERM)

    assert await asyncio.to_thread(work) is before
