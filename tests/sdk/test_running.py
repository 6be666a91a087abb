"""Handlers that run beside something else, as in a web application: how they begin, end, and fail."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
from typing import Any

import msgspec
import pytest

from agentstream.agent import Agent
from agentstream.consuming.delivery import Delivery
from agentstream.consuming.session import Consumption
from agentstream.errors import AgentStreamError, NoConsumerGroup
from agentstream.identity.settings import Settings
from agentstream.protocol.routes import Consumes
from agentstream.sending.notifications import Mailbox, Notifications
from agentstream.transport.endpoint import Endpoint
from support.probes import ask
from support.servers import free_port
from support.topology import NAMESPACE, Topology, following, send
from support.waiting import until


@pytest.fixture
async def group(topology: Topology) -> Consumes:
    """`coder` consumes `tasks`; nothing is claimed because of its age."""
    return await topology.group("tasks", "coder", lease=60_000)


class Slow:
    """A handler that ends when it is told to."""

    def __init__(self, agent: Agent) -> None:
        self.begun, self.go_on, self.ended = asyncio.Event(), asyncio.Event(), 0
        agent.on("event")(self.handle)

    async def handle(self, payload: dict) -> None:  # noqa: ARG002
        self.begun.set()
        await self.go_on.wait()
        self.ended += 1


async def test_the_end_of_the_block_finishes_what_is_in_hand_and_hands_back_the_rest(
    topology: Topology, group: Consumes
) -> None:
    await send(topology, 1, 2, 3)
    coder = topology.agent("coder")
    slow = Slow(coder)
    async with coder:
        async with coder.running(concurrency=1):
            await slow.begun.wait()
            assert coder.is_consuming
            asyncio.get_running_loop().call_later(0.05, slow.go_on.set)
        assert not coder.is_consuming
        assert slow.ended == 1
    stats = await topology.stats(group)
    assert (stats["acked"], stats.get("released", 0)) == (1, 0)
    assert all(counter == 0 for *_, counter in await topology.pending(group))


async def test_the_agent_is_not_left_before_what_run_has_in_hand_is_finished(
    topology: Topology, group: Consumes, caplog: pytest.LogCaptureFixture
) -> None:
    await send(topology, 1, 2)
    coder = topology.agent("coder")
    slow = Slow(coder)
    async with coder:
        at_work = asyncio.create_task(coder.run(concurrency=1))
        await slow.begun.wait()
        asyncio.get_running_loop().call_later(0.05, slow.go_on.set)
    await at_work
    assert slow.ended == 1
    assert (await topology.stats(group))["acked"] == 1
    assert "handed back" not in caplog.text


@pytest.mark.parametrize("left", ["block", "agent"])
async def test_who_cancels_the_end_is_told_what_is_handed_back(
    topology: Topology, group: Consumes, caplog: pytest.LogCaptureFixture, left: str
) -> None:
    await send(topology, 1, 2, 3)
    coder = topology.agent("coder")
    slow, leaving = Slow(coder), asyncio.Event()

    async def program() -> None:
        async with coder:
            if left == "agent":
                at_work.append(asyncio.create_task(coder.run(concurrency=2)))
                await _running(coder, 2)
                leaving.set()
            else:
                async with coder.running(concurrency=2):
                    await _running(coder, 2)
                    leaving.set()

    at_work: list[asyncio.Task[Any]] = []
    running = asyncio.create_task(program())
    await leaving.wait()
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    slow.go_on.set()
    await asyncio.gather(*at_work)
    assert "tasks: handed back 2 messages that handlers had not finished" in caplog.messages
    assert (await topology.stats(group)).get("acked", 0) == 0
    async with topology.agent("coder", pod="other") as other, other.stream_consume("tasks") as deliveries:
        again = [await following(deliveries) for _ in range(3)]
        assert {(delivery.payload["n"], delivery.attempt) for delivery in again} == {(1, 1), (2, 1), (3, 1)}


async def _running(agent: Agent, count: int) -> None:
    await until(lambda: [running for *_, running, _ in agent._holding()] == [count])


async def test_what_an_iteration_has_in_hand_is_handed_back_and_said(
    topology: Topology, group: Consumes, caplog: pytest.LogCaptureFixture
) -> None:
    await send(topology, 1, 2)
    async with topology.agent("coder") as coder:
        deliveries = coder.stream_consume("tasks")
        assert await (await following(deliveries)).ack()
        await following(deliveries)
    assert caplog.messages == ["tasks: handed back 1 message that handlers had not finished"]


@pytest.fixture
def nobody(topology: Topology, monkeypatch: pytest.MonkeyPatch) -> tuple[Agent, int]:
    """An agent that consumes nothing although it has a handler, and its port for probes."""
    monkeypatch.setattr("agentstream.consuming.session._ROUTE_PATIENCE", 0.05)
    port = free_port()
    agent = Agent.connect(msgspec.structs.replace(topology.settings("nobody"), health_port=port))
    Slow(agent)
    return agent, port


async def test_a_run_that_ends_by_itself_is_logged_makes_the_agent_unready_and_is_raised(
    nobody: tuple[Agent, int], caplog: pytest.LogCaptureFixture
) -> None:
    agent, port = nobody

    async def beside() -> None:
        async with agent.running():
            await until(lambda: ask(port, "/readyz")[0] == 200)
            await until(lambda: ask(port, "/readyz")[0] == 503)
            assert ask(port, "/readyz")[1].startswith(
                f"nobody handles no messages, as run() has ended: {why}"
            )
            assert ask(port, "/livez")[0] == 200
            assert not agent.is_consuming

    why = "NoConsumerGroup: nobody consumes no group"
    async with agent:
        with pytest.raises(NoConsumerGroup, match="nobody consumes no group"):
            await beside()
    (record,) = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert record.getMessage().startswith(f"run() has ended: {why}")


async def test_a_run_that_works_again_makes_the_agent_ready(
    topology: Topology, nobody: tuple[Agent, int]
) -> None:
    agent, port = nobody
    async with agent:
        with pytest.raises(NoConsumerGroup):
            await agent.run()
        await until(lambda: ask(port, "/readyz")[0] == 503)
        await topology.group("tasks", "nobody")
        async with agent.running():
            await until(lambda: ask(port, "/readyz")[0] == 200)


async def test_an_error_of_the_block_goes_before_that_of_the_run(nobody: tuple[Agent, int]) -> None:
    agent, _ = nobody

    async def beside() -> None:
        async with agent.running():
            await until(lambda: agent._runs.failure)
            raise LookupError

    async with agent:
        with pytest.raises(LookupError):
            await beside()


async def test_an_agent_that_a_handler_enters_again_does_not_wait_for_itself(
    topology: Topology, group: Consumes, caplog: pytest.LogCaptureFixture
) -> None:
    await send(topology, 1)
    coder = topology.agent("coder")

    @coder.on("event")
    async def handle(delivery: Delivery) -> None:
        if delivery.attempt == 1:
            async with coder:
                pass

    async with coder, coder.running():
        await until(lambda: topology.settled(group, 1))
    assert "AgentStreamError: the agent is entered once, around all that uses it" in caplog.text
    with pytest.raises(AgentStreamError, match="make another one"):
        await coder.__aenter__()


async def test_a_mistake_of_this_package_ends_the_run_and_is_logged_and_raised(
    topology: Topology, group: Consumes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fails(*_: object) -> None:
        raise ZeroDivisionError("a mistake")

    monkeypatch.setattr(Consumption, "_find_route", fails)
    coder = topology.agent("coder")
    Slow(coder)
    async with coder:
        with pytest.raises(ZeroDivisionError, match="a mistake"):
            await coder.run()
    (record,) = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert record.getMessage() == "run() has ended: ZeroDivisionError: a mistake"
    assert record.exc_info is not None


@pytest.mark.parametrize("declared", [True, False])
async def test_a_consumption_that_the_program_cancels_ends_the_run_with_an_error(
    topology: Topology, *, declared: bool
) -> None:
    """As by a program that cancels all tasks but its own."""
    if declared:
        await topology.group("tasks", "coder")
    coder = topology.agent("coder")
    Slow(coder)
    async with coder:
        at_work = asyncio.create_task(coder.run())
        await until(lambda: coder._consumptions and coder._consumptions[0]._life is not None)
        await until(lambda: coder._consumptions[0]._dispatcher or not declared)
        life = coder._consumptions[0]._life
        assert life is not None
        life.cancel()
        with pytest.raises(AgentStreamError, match="was cancelled by the program"):
            await asyncio.wait_for(at_work, 10)


class Others:
    """A handler that cancels other tasks than its own, as careless tidying does."""

    def __init__(self, agent: Agent, spared: set[asyncio.Task[Any]]) -> None:
        self.spared = spared
        agent.on("event")(self.handle)

    async def handle(self, payload: dict) -> None:  # noqa: ARG002
        for task in asyncio.all_tasks() - self.spared - {asyncio.current_task()}:
            task.cancel()
        await asyncio.Event().wait()


@pytest.mark.parametrize("spares_the_run", [True, False])
async def test_a_run_whose_tasks_a_handler_cancels_ends_with_an_error_and_hands_back(
    topology: Topology, group: Consumes, caplog: pytest.LogCaptureFixture, *, spares_the_run: bool
) -> None:
    port = free_port()
    coder = Agent.connect(msgspec.structs.replace(topology.settings("coder"), health_port=port))
    async with coder:
        others = Others(coder, asyncio.all_tasks())

        async def run() -> None:
            async with coder.running(concurrency=1):
                if spares_the_run:
                    (beside,) = (task for task in asyncio.all_tasks() if task.get_name() == "run handlers")
                    others.spared.add(beside)
                await send(topology, 1)
                await until(lambda: not coder.is_consuming)
                await until(lambda: ask(port, "/readyz")[0] == 503)

        with pytest.raises(AgentStreamError, match=r"a task of run\(\) was cancelled by the program"):
            await run()
    assert [r.levelno for r in caplog.records if "run() has ended" in r.getMessage()] == [logging.ERROR]
    assert all(counter == 0 for *_, counter in await topology.pending(group))


async def test_a_second_run_is_refused_and_the_first_stays_ready(topology: Topology, group: Consumes) -> None:
    port = free_port()
    coder = Agent.connect(msgspec.structs.replace(topology.settings("coder"), health_port=port))
    handled = asyncio.Event()

    @coder.on("event")
    async def handle(payload: dict) -> None:
        handled.set()

    async with coder, coder.running():
        await until(lambda: ask(port, "/readyz")[0] == 200)
        await until(lambda: coder._consumptions[0]._dispatcher)
        with pytest.raises(AgentStreamError, match="this process consumes tasks already"):
            await coder.run()
        assert ask(port, "/readyz")[0] == 200
        await send(topology, 1)
        await handled.wait()
        await until(lambda: topology.settled(group, 1))


async def test_a_block_in_another_event_loop_does_not_stop_the_first(
    topology: Topology, group: Consumes
) -> None:
    coder = topology.agent("coder")
    slow = Slow(coder)

    async def elsewhere() -> None:
        async with coder.running():
            pass

    async with coder, coder.running():
        with pytest.raises(AgentStreamError, match="belongs to another event loop"):
            await asyncio.to_thread(asyncio.run, elsewhere())
        await send(topology, 1)
        slow.go_on.set()
        await until(lambda: topology.settled(group, 1))


async def test_any_thread_may_stop_an_agent(topology: Topology, group: Consumes) -> None:
    """As a handler that is not asynchronous does. In its debug mode, an event loop refuses other threads."""
    await send(topology, 1)
    coder = topology.agent("coder")

    @coder.on("event")
    def handle(payload: dict) -> None:
        coder.stop()

    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    try:
        async with coder:
            await asyncio.wait_for(coder.run(), 10)
    finally:
        loop.set_debug(False)
    assert (await topology.stats(group))["acked"] == 1


def test_the_handler_of_a_signal_wakes_the_event_loop_that_it_stops() -> None:
    nowhere = Endpoint("redis://127.0.0.1:1")
    settings = Settings(namespace="test", agent="coder", source=nowhere, pod="coder-1")

    async def program() -> float:
        agent = Agent.connect(settings)
        async with asyncio.timeout(20), agent:
            mailbox, loop = Mailbox(1, lambda: None), asyncio.get_running_loop()
            agent._mailboxes.append(mailbox)
            signal.signal(signal.SIGALRM, lambda *_: agent.stop())
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            began = loop.time()
            # nothing is due in the loop but the end of the test
            assert [note async for note in Notifications(mailbox)] == []
            return loop.time() - began

    before = signal.getsignal(signal.SIGALRM)
    try:
        assert asyncio.run(program()) < 10
    finally:
        signal.signal(signal.SIGALRM, before)


async def test_what_cannot_run_is_refused(topology: Topology) -> None:
    async with topology.agent("coder") as coder:
        with pytest.raises(ValueError, match="concurrency must be at least 1"):
            async with coder.running(concurrency=0):
                pass
        with pytest.raises(ValueError, match="there are no handlers"):
            async with coder.running():
                pass


ASYNC = """
import asyncio
from agentstream import Agent
agent = Agent.from_env()
@agent.on("event")
async def handle(payload):
    print("begun", flush=True)
    await asyncio.sleep(0.3)
    print("done", flush=True)
async def main():
    async with agent, agent.running(concurrency=1):
        {body}
    print("ended", flush=True)
asyncio.run(main())
"""
SYNC = """
import threading, time
from agentstream.sync import Agent
agent = Agent.from_env()
@agent.on("event")
def handle(payload):
    print("begun", flush=True)
    time.sleep(0.3)
    print("done", flush=True)
with agent, agent.running(concurrency=1):
    threading.Event().wait()
"""
WAITS = "await asyncio.Event().wait()"
ITERATES = """async for delivery in agent.stream_consume("news"):
            async with delivery:
                print("news", flush=True)
                await asyncio.sleep(0.3)
                print("read", flush=True)"""


def program(topology: Topology, text: str) -> subprocess.Popen[str]:
    environ = {
        **os.environ,
        "AGENTSTREAM_URL": topology.url,
        "AGENTSTREAM_NAMESPACE": NAMESPACE,
        "AGENTSTREAM_AGENT": "coder",
        "AGENTSTREAM_POD": "coder-7",
    }
    command = [sys.executable, "-c", text]
    return subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


async def ends(process: subprocess.Popen[str], number: signal.Signals) -> tuple[list[str], str, int]:
    process.send_signal(number)
    out, err = await asyncio.to_thread(process.communicate, timeout=15)
    return out.splitlines(), err, process.returncode


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("text", [ASYNC.format(body=WAITS), SYNC], ids=["async", "sync"])
async def test_a_signal_ends_the_block_after_what_is_in_hand(
    topology: Topology, group: Consumes, number: signal.Signals, text: str
) -> None:
    await send(topology, 1, 2)
    process = program(topology, text)
    assert process.stdout
    assert await asyncio.to_thread(process.stdout.readline) == "begun\n"
    assert await ends(process, number) == (["done"], "", 128 + number)
    assert (await topology.stats(group))["acked"] == 1


async def test_a_signal_leaves_an_iteration_of_the_block_its_message(
    topology: Topology, group: Consumes
) -> None:
    await topology.stream("news", "planner")
    news = await topology.group("news", "coder", lease=60_000)
    async with topology.agent("planner") as planner:
        await planner.send_message(stream="news", type="event", payload={})
    text = ASYNC.format(body=ITERATES).replace('"event"', '"event", stream="tasks"')
    process = program(topology, text)
    assert process.stdout
    assert await asyncio.to_thread(process.stdout.readline) == "news\n"
    assert await ends(process, signal.SIGTERM) == (["read", "ended"], "", 0)
    assert (await topology.stats(news))["acked"] == 1
