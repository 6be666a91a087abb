"""However consuming ends, nothing is left behind: no message waiting for a lease, no task, no connection."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading

import pytest

from agentstream.agent import Agent
from agentstream.protocol.keys import StreamKeys
from agentstream.protocol.routes import Consumes
from agentstream.testing import Faults
from agentstream.transport.client import Client
from support.servers import Server
from support.topology import NAMESPACE, Topology, following, numbers, started_for_nobody
from support.waiting import until

CLAIMABLE = 86_000_000


@pytest.fixture
async def topology(topology: Topology) -> Topology:
    """`planner` produces to `tasks`, which `coder` consumes; ten messages wait."""
    await topology.group("tasks", "coder", lease=60_000)
    async with topology.agent("planner") as planner:
        for n in range(10):
            await planner.send_message(to="coder", type="event", payload={"n": n})
    return topology


@pytest.fixture
def group(topology: Topology) -> Consumes:
    return topology.routes["coder"].consumes[0]


async def everything_is_handed_back(topology: Topology, group: Consumes) -> bool:
    """Whether each pending entry can be claimed at once, and no attempt was counted."""
    pending = await topology.pending(group)
    return all(idle > CLAIMABLE and counter == 0 for _, _, idle, counter in pending)


async def is_passed_on(topology: Topology, group: Consumes) -> bool:
    """Whether the one message that was in hand is where any consumer reads it at once."""
    retries = await topology.pending(group, retries=True)
    assert await topology.wire.call("XLEN", StreamKeys(group.key).retry(group.group)) == 1
    return all(idle > CLAIMABLE and counter == 0 for _, _, idle, counter in retries)


async def test_leaving_the_loop_hands_back_what_was_read_ahead(topology: Topology, group: Consumes) -> None:
    async with topology.agent("coder") as coder:
        async for delivery in coder.stream_consume("tasks"):
            async with delivery:
                break
        gc.collect()
        await until(lambda: everything_is_handed_back(topology, group))
        assert len(await topology.pending(group)) == 9


async def test_an_iteration_that_waits_for_an_earlier_one_says_so_and_ends_with_the_agent(
    topology: Topology, group: Consumes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("agentstream.consuming.session._EARLIER_PATIENCE", 0.05)
    async with topology.agent("coder") as coder:
        async for _ in coder.stream_consume("tasks"):
            # not settled, as `async with` is forgotten
            break
        gc.collect()
        waiting = asyncio.create_task(anext(coder.stream_consume("tasks"), None))
        await until(lambda: "an earlier iteration has a message in hand" in caplog.text)
        coder.stop()
        assert await asyncio.wait_for(waiting, 10) is None
    assert await everything_is_handed_back(topology, group)


async def test_closing_the_iterator_hands_back_also_what_is_in_hand(
    topology: Topology, group: Consumes
) -> None:
    async with topology.agent("coder") as coder:
        deliveries = coder.stream_consume("tasks")
        delivery = await following(deliveries)
        await deliveries.aclose()
        assert await everything_is_handed_back(topology, group)
        assert len(await topology.pending(group)) == 9
        assert await is_passed_on(topology, group)
        assert not await delivery.ack()
        with pytest.raises(StopAsyncIteration):
            await anext(deliveries)
        await deliveries.aclose()


async def test_the_end_of_the_agent_is_the_end_of_its_iterators(topology: Topology, group: Consumes) -> None:
    async with topology.agent("coder") as coder:
        deliveries = coder.stream_consume("tasks")
        await following(deliveries)
    assert await everything_is_handed_back(topology, group)
    assert len(await topology.pending(group)) == 9
    assert await is_passed_on(topology, group)


async def test_stop_ends_the_loop_and_lets_the_handler_finish(topology: Topology, group: Consumes) -> None:
    handled = []
    async with topology.agent("coder") as coder:
        async for delivery in coder.stream_consume("tasks"):
            async with delivery:
                coder.stop()
                await until(lambda: _handed_back(topology, group, 9))
                handled.append(delivery.message.payload["n"])
        assert [n async for n in coder.stream_consume("tasks")] == []
    assert handled == [0]
    assert len(await topology.pending(group)) == 9


async def _handed_back(topology: Topology, group: Consumes, count: int) -> bool:
    return sum(idle > CLAIMABLE for _, _, idle, _ in await topology.pending(group)) == count


async def test_a_handler_may_send_after_stop(topology: Topology, wire: Client) -> None:
    await topology.stream("results", "coder")
    await topology.group("results", "planner")
    async with topology.agent("coder") as coder:
        async for delivery in coder.stream_consume("tasks"):
            async with delivery:
                coder.stop()
                await coder.send_message(to="planner", type="task_result", payload={})
    assert await wire.call("XLEN", "{test.results}") == 1


async def test_a_cancelled_handler_hands_its_message_back(topology: Topology, group: Consumes) -> None:
    started = asyncio.Event()

    async def work() -> None:
        async with topology.agent("coder") as coder:
            async for delivery in coder.stream_consume("tasks"):
                async with delivery:
                    started.set()
                    await asyncio.Event().wait()

    working = asyncio.create_task(work())
    await started.wait()
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working
    assert await everything_is_handed_back(topology, group)
    assert len(await topology.pending(group)) == 9
    assert await is_passed_on(topology, group)


async def test_giving_up_waiting_for_a_delivery_loses_none(topology: Topology, group: Consumes) -> None:
    seen = []
    async with topology.agent("coder") as coder, coder.stream_consume("tasks", concurrency=2) as deliveries:
        while len(seen) < 10:
            try:
                delivery = await asyncio.wait_for(anext(deliveries), 0.0005)
            except TimeoutError:
                continue
            seen.append((delivery.message.payload["n"], delivery.attempt))
            await delivery.ack()
        await until(lambda: topology.settled(group, 10))
    assert seen == [(n, 1) for n in range(10)]


async def test_a_delivery_that_nobody_fetched_is_handed_back(
    topology: Topology, group: Consumes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        asking = asyncio.create_task(anext(deliveries))
        started_for_nobody(monkeypatch, asking)
        await asyncio.wait({asking})
        coder.stop()
        await until(lambda: _handed_back(topology, group, 10))
    assert await everything_is_handed_back(topology, group)


async def test_what_arrives_while_the_reader_is_closed_is_not_stranded(
    topology: Topology, group: Consumes
) -> None:
    async with topology.agent("planner") as planner:
        for round_ in range(20):
            async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
                waiting = asyncio.create_task(anext(deliveries))
                await until(lambda: deliveries._consumption._dispatcher is not None)
                sending = asyncio.create_task(
                    planner.send_message(to="coder", type="event", payload={"n": round_})
                )
                await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.gather(waiting, sending, return_exceptions=True)
    assert all(idle > CLAIMABLE for _, _, idle, _ in await topology.pending(group))


async def test_what_arrives_while_the_reader_is_closed_counts_as_no_attempt(
    topology: Topology, group: Consumes, proxy: Faults
) -> None:
    async with topology.agent("coder", url=proxy.url) as coder, coder.stream_consume("tasks") as deliveries:
        assert await numbers(deliveries, 10) == list(range(10))
        await until(lambda: topology.settled(group, 10))
        await until(lambda: _reads(topology))
        with proxy.delay(0.3):
            async with topology.agent("planner") as planner:
                await planner.send_message(to="coder", type="event", payload={"n": 10})
            await until(lambda: topology.pending(group))
            # what brings it is on its way
            await deliveries.aclose()
    assert await everything_is_handed_back(topology, group)
    async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        delivery = await following(deliveries)
        assert (delivery.payload, delivery.attempt, delivery.fence) == ({"n": 10}, 1, 1)
        await delivery.ack()


async def test_what_is_claimed_at_the_very_end_keeps_the_attempts_that_others_began(
    topology: Topology, group: Consumes, proxy: Faults
) -> None:
    await topology.left_behind(group)
    async with topology.agent("coder", url=proxy.url) as coder, coder.stream_consume("tasks") as deliveries:
        with proxy.delay(0.3):
            waiting = asyncio.create_task(anext(deliveries))
            await until(lambda: _are_of(topology, group, "coder-pod"))
            await deliveries.aclose()
        with pytest.raises(StopAsyncIteration):
            await waiting
    pending = await topology.pending(group)
    assert {(idle > CLAIMABLE, counter) for _, _, idle, counter in pending} == {(True, 1)}


async def _reads(topology: Topology) -> bool:
    """Whether a consumer waits for new messages."""
    clients = (await topology.wire.call("CLIENT", "LIST")).decode().splitlines()
    return any("read-tasks" in client and "flags=b" in client for client in clients)


async def _are_of(topology: Topology, group: Consumes, pod: str) -> bool:
    """Whether what is pending is held by a pod's consumers."""
    return all(name.startswith(pod) for _, name, _, _ in await topology.pending(group))


async def test_an_agent_that_ends_while_the_server_is_away_ends(
    proxy: Faults, topology: Topology, group: Consumes
) -> None:
    async with topology.agent("coder", url=proxy.url) as coder:
        await following(coder.stream_consume("tasks"))
        proxy.refuse()
        started = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - started < 10


async def test_what_was_handled_is_settled_although_its_lease_ran_out_before_the_end(
    proxy: Faults, topology: Topology
) -> None:
    await topology.group("tasks", "tester", lease=2000, deliver_all=True)
    async with topology.agent("tester", url=proxy.url) as coder:
        deliveries = coder.stream_consume("tasks")
        delivery = await anext(deliveries)
        with proxy.refuse():
            settling = asyncio.create_task(delivery.ack())
            await until(lambda: delivery._attempt.hold.is_overdue)
            coder.stop()
            # it is tried again several times
            await asyncio.wait({settling}, timeout=0.6)
            assert not settling.done()
        assert await settling


async def test_an_agent_that_never_reached_the_server_ends(topology: Topology) -> None:
    async with topology.agent("coder", url="redis://127.0.0.1:1") as coder:
        waiting = asyncio.create_task(anext(coder.stream_consume("tasks")))
        await until(lambda: coder._consumptions[0]._life is not None)
    with pytest.raises(StopAsyncIteration):
        await waiting


async def test_an_agent_leaves_no_connection(server: Server, topology: Topology) -> None:
    async with topology.agent("coder") as coder:
        await numbers(coder.stream_consume("tasks"), 1)
        roles = {name.rpartition(":")[2] for name in server.connections() if "test.coder" in name}
        assert roles >= {"write", "control"}
    await until(lambda: not [name for name in server.connections() if "test.coder" in name])


PROGRAM = """
import asyncio, sys
from agentstream import Agent
async def main():
    async with Agent.from_env() as agent:
        print("ready", flush=True)
        {work}
    print("ended", flush=True)
asyncio.run(main())
"""
CONSUMES = """async for delivery in agent.stream_consume("tasks"):
            async with delivery:
                print(delivery.message.payload["n"], flush=True)
                {after}"""


def program(topology: Topology, work: str, text: str = PROGRAM) -> subprocess.Popen[str]:
    environ = {
        **os.environ,
        "AGENTSTREAM_URL": topology.url,
        "AGENTSTREAM_NAMESPACE": NAMESPACE,
        "AGENTSTREAM_AGENT": "coder",
        "AGENTSTREAM_POD": "coder-7",
    }
    command = [sys.executable, "-c", text.format(work=work) if work else text]
    return subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_lets_the_handler_finish_and_hands_back_the_rest(
    topology: Topology, group: Consumes, number: signal.Signals
) -> None:
    process = program(topology, CONSUMES.format(after="await asyncio.sleep(0.5)"))
    assert process.stdout
    assert [await asyncio.to_thread(process.stdout.readline) for _ in range(2)] == ["ready\n", "0\n"]
    process.send_signal(number)
    out, err = await asyncio.to_thread(process.communicate, timeout=10)
    assert (out, err, process.returncode) == ("ended\n", "", 0)
    assert await everything_is_handed_back(topology, group)
    assert len(await topology.pending(group)) == 9


async def test_a_second_signal_does_not_wait_for_the_handler(topology: Topology) -> None:
    process = program(topology, CONSUMES.format(after="await asyncio.sleep(60)"))
    assert process.stdout
    assert [await asyncio.to_thread(process.stdout.readline) for _ in range(2)] == ["ready\n", "0\n"]
    process.send_signal(signal.SIGTERM)
    await until(lambda: _is_handed_back(topology))
    process.send_signal(signal.SIGTERM)
    await asyncio.to_thread(process.communicate, timeout=10)
    assert process.returncode == -signal.SIGTERM


async def _is_handed_back(topology: Topology) -> bool:
    return await _handed_back(topology, topology.routes["coder"].consumes[0], 9)


INTERRUPTED = """
import asyncio, signal
from agentstream import Agent
agent = Agent.from_env()
@agent.on("event")
async def handle(payload):
    while True:
        signal.raise_signal(signal.SIGINT)
async def main():
    async with agent:
        await agent.run(concurrency=1)
asyncio.run(main())
"""


async def test_a_handler_that_never_yields_can_be_interrupted(topology: Topology, group: Consumes) -> None:
    """The first signal asks to end, the second cancels the program, the third is raised where it computes."""
    process = program(topology, "", INTERRUPTED)
    _, err = await asyncio.to_thread(process.communicate, timeout=10)
    assert err.rstrip().endswith("KeyboardInterrupt")
    assert process.returncode == -signal.SIGINT
    assert await is_passed_on(topology, group)


async def test_a_program_that_consumes_nothing_is_cancelled(topology: Topology) -> None:
    process = program(topology, "await asyncio.sleep(60)")
    assert process.stdout
    assert await asyncio.to_thread(process.stdout.readline) == "ready\n"
    process.send_signal(signal.SIGTERM)
    out, err = await asyncio.to_thread(process.communicate, timeout=10)
    assert (out, err, process.returncode) == ("", "", 128 + signal.SIGTERM)


async def test_signal_handlers_are_restored(topology: Topology) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    environ = {
        "AGENTSTREAM_URL": topology.url,
        "AGENTSTREAM_NAMESPACE": NAMESPACE,
        "AGENTSTREAM_AGENT": "coder",
    }
    async with Agent.from_env(environ):
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


async def test_an_application_keeps_its_own_signal_handlers(topology: Topology) -> None:
    environ = {
        "AGENTSTREAM_URL": topology.url,
        "AGENTSTREAM_NAMESPACE": NAMESPACE,
        "AGENTSTREAM_AGENT": "coder",
    }
    loop = asyncio.get_running_loop()
    got = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, got.set)
    try:
        async with Agent.from_env(environ):
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.wait_for(got.wait(), 5)
    finally:
        loop.remove_signal_handler(signal.SIGTERM)


async def test_an_agent_in_another_thread_leaves_signals_alone(topology: Topology) -> None:
    before = signal.getsignal(signal.SIGTERM)
    environ = {
        "AGENTSTREAM_URL": topology.url,
        "AGENTSTREAM_NAMESPACE": NAMESPACE,
        "AGENTSTREAM_AGENT": "coder",
    }

    async def run() -> object:
        async with Agent.from_env(environ):
            return signal.getsignal(signal.SIGTERM)

    assert threading.current_thread() is threading.main_thread()
    assert await asyncio.to_thread(asyncio.run, run()) == before
