"""Leases are renewed from a thread: what blocks the event loop loses nothing, and no thread is left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from agentstream.agent import Agent
from agentstream.consuming.renewal import RenewalThread
from agentstream.protocol.routes import Consumes
from agentstream.testing import Faults
from agentstream.transport.blocking import BlockingConnection
from agentstream.transport.client import Argument, Client
from support.servers import Server
from support.topology import NAMESPACE, Topology, following, numbers, send
from support.waiting import until

PROGRAM = """
import asyncio, os
from agentstream import Agent
from agentstream.testing import block_loop
def say(*words):
    print(*words, flush=True)
async def main():
    async with Agent.from_env() as agent:
        deliveries = agent.stream_consume("tasks", concurrency=16)
        {work}
asyncio.run(main())
"""


class Program:
    """An agent in a process of its own, which tells what it does line by line."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def says(self, *lines: str) -> None:
        assert self.process.stdout is not None
        async with asyncio.timeout(20):
            said = [(await self.process.stdout.readline()).decode().strip() for _ in lines]
        assert said == list(lines)


@contextlib.asynccontextmanager
async def program(topology: Topology, work: str, url: str = "") -> AsyncIterator[Program]:
    environ = {
        **os.environ,
        "AGENTSTREAM_URL": url or topology.url,
        "AGENTSTREAM_NAMESPACE": NAMESPACE,
        "AGENTSTREAM_AGENT": "coder",
        "AGENTSTREAM_POD": "coder-7",
    }
    code = PROGRAM.format(work=work.replace("\n", "\n        "))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, env=environ, stdout=subprocess.PIPE
    )
    try:
        yield Program(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def threads() -> list[RenewalThread]:
    return [thread for thread in threading.enumerate() if isinstance(thread, RenewalThread)]


def renewing(server: Server) -> list[int]:
    """The ids of the connections that renew leases of `coder`."""
    with server.admin() as client:
        return [int(c["id"]) for c in client.client_list() if c["name"] == "agentstream:test.coder:renew"]


async def fresh(topology: Topology, group: Consumes) -> bool:
    """Whether no lease is older than half of it."""
    return all(idle < group.lease / 2 for _, _, idle, _ in await topology.pending(group))


async def test_a_blocked_loop_loses_neither_what_runs_nor_what_waits(topology: Topology) -> None:
    group = await topology.group("tasks", "coder", lease=600, max_deliveries=9)
    await send(topology, *range(8))
    work = """
async for delivery in deliveries:
    async with delivery:
        n = delivery.message.payload["n"]
        say("begins", n)
        if n == 0:
            block_loop(2.4)
        assert delivery.held
    say("ends", n)
    if n == 7:
        agent.stop()
"""
    async with program(topology, work) as blocked, topology.agent("coder", pod="other") as other:
        await blocked.says("begins 0")
        taking = asyncio.create_task(following(other.stream_consume("tasks")))
        lines = ["ends 0", *(line for n in range(1, 8) for line in (f"begins {n}", f"ends {n}"))]
        await blocked.says(*lines)
        assert not taking.done()
        taking.cancel()
    assert await topology.settled(group, 8)
    assert (await topology.stats(group))["acked"] == 8


async def test_a_blocked_loop_keeps_what_it_could_not_settle_before(
    topology: Topology, proxy: Faults
) -> None:
    """The acknowledgement is lost, and nobody repeats it before the loop goes on."""
    group = await topology.group("tasks", "coder", lease=600, max_deliveries=9)
    await send(topology, 1)
    proxy.lose_command("as1_settle", times=1_000)
    work = """
delivery = await anext(deliveries)
acking = asyncio.create_task(delivery.ack())
await asyncio.sleep(0)
say("acknowledges")
block_loop(2.4)
say("held:", await acking)
"""
    async with program(topology, work, proxy.url) as blocked, topology.agent("coder", pod="other") as other:
        await blocked.says("acknowledges")
        taking = asyncio.create_task(following(other.stream_consume("tasks")))
        await until(lambda: proxy.lost)
        proxy.heal()
        await blocked.says("held: True")
        assert not taking.done()
        taking.cancel()
    assert await topology.settled(group, 1)


async def test_a_process_that_was_stopped_for_longer_than_its_lease_can_settle_nothing(
    topology: Topology,
) -> None:
    group = await topology.group("tasks", "coder", lease=500)
    await send(topology, 1, 2, 3)
    work = """
late = await anext(deliveries)
async with await anext(deliveries) as delivery:
    say("holds", delivery.fence)
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        say("cancelled", delivery.held)
        raise
say("goes on", await late.ack(), late.held)
say("next", (await anext(deliveries)).message.payload)
"""
    async with program(topology, work) as stopped:
        await stopped.says("holds 1")
        stopped.process.send_signal(signal.SIGSTOP)
        async with topology.agent("coder", pod="other") as other, other.stream_consume("tasks") as others:
            held = [await following(others) for _ in range(3)]
            assert {delivery.fence for delivery in held} == {2}
            stopped.process.send_signal(signal.SIGCONT)
            await stopped.says("cancelled False", "goes on False False")
            assert [await delivery.ack() for delivery in held] == [True] * 3
        await send(topology, 4)
        await stopped.says("next {'n': 4}")
    stats = await topology.stats(group)
    assert (stats["acked"], stats.get("retried", 0)) == (3, 0)


async def test_the_thread_starts_with_the_first_message_and_ends_with_the_agent(
    server: Server, topology: Topology
) -> None:
    await topology.group("tasks", "coder", lease=300)
    async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        asking = asyncio.create_task(following(deliveries))
        await until(lambda: coder._control.connects)
        assert not threads()
        await send(topology, 1)
        delivery = await asking
        await until(lambda: renewing(server))
        (thread,) = threads()
        assert thread.daemon
        await delivery.ack()
        await until(lambda: not thread.watched)
    assert not threads()
    await until(lambda: not renewing(server))


async def test_an_idle_thread_says_nothing_and_wakes_up_for_the_next_message(
    server: Server, topology: Topology
) -> None:
    group = await topology.group("tasks", "coder", lease=300)
    await send(topology, 1)
    async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        delivery = await following(deliveries)
        await until(lambda: renewing(server))
        await delivery.ack()
        (thread,) = threads()
        await until(lambda: not thread.watched)
        asking = asyncio.create_task(following(deliveries))
        with server.admin() as client:
            client.config_resetstat()
            await asyncio.wait({asking}, timeout=0.7)
            assert "cmdstat_xclaim" not in client.info("commandstats")
            await send(topology, 2)
            delivery = await asking
            await until(lambda: "cmdstat_xclaim" in client.info("commandstats"))
        assert await fresh(topology, group)
        assert await delivery.ack()


async def test_several_groups_are_renewed_each_in_its_own_rhythm(topology: Topology) -> None:
    await topology.stream("news", "planner")
    slow = await topology.group("tasks", "coder", lease=60_000)
    fast = await topology.group("news", "coder", lease=300)
    async with topology.agent("planner") as planner:
        for stream in ("tasks", "news"):
            await planner.send_message(to="coder", stream=stream, type="event", payload={"n": 1})
    async with topology.agent("coder") as coder:
        both = [coder.stream_consume(stream) for stream in ("tasks", "news")]
        held = [await following(deliveries) for deliveries in both]
        await until(lambda: _idle(topology, slow, 700))
        await until(lambda: fresh(topology, fast), 0.3)
        assert len(threads()) == 1
        assert [await delivery.ack() for delivery in held] == [True, True]


async def _idle(topology: Topology, group: Consumes, at_least: int) -> bool:
    return all(idle >= at_least for _, _, idle, _ in await topology.pending(group))


async def test_a_shorter_lease_is_kept_at_once(topology: Topology) -> None:
    group = await topology.group("tasks", "coder", lease=60_000)
    await send(topology, 1)
    async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        await following(deliveries)
        await until(lambda: _idle(topology, group, 300))
        deliveries._consumption._dispatcher.leases.change(0.3)
        await until(lambda: fresh(topology, Consumes("tasks", group.key, group="coder", lease=300)), 2)


async def test_a_server_that_is_away_for_less_than_a_lease_costs_nothing(
    server: Server, topology: Topology, caplog: pytest.LogCaptureFixture
) -> None:
    await topology.group("tasks", "coder", lease=2_000)
    await send(topology, 1)
    with Faults(server.port) as proxy:
        async with (
            topology.agent("coder", url=proxy.url) as coder,
            coder.stream_consume("tasks") as deliveries,
        ):
            delivery = await following(deliveries)
            await until(lambda: renewing(server))
            with proxy.refuse():
                await until(lambda: "cannot renew leases" in caplog.text)
            await until(lambda: "can renew leases again" in caplog.text)
            assert delivery.held
            assert await delivery.ack()
    assert caplog.text.count("cannot renew leases") == 1


async def test_credentials_that_were_rotated_are_read_at_the_next_connect(
    server: Server, topology: Topology, wire: Client, tmp_path: Path
) -> None:
    group = await topology.group("tasks", "coder", lease=600)
    entries = {"uri": server.url, "username": "agent", "password": "old", "namespace": NAMESPACE}
    for name, value in {**entries, "agent": "coder"}.items():
        (tmp_path / name).write_text(value)
    await wire.call("ACL", "SETUSER", "agent", "on", ">old", "~*", "&*", "+@all")
    await send(topology, 1)
    async with Agent.from_env({"AGENTSTREAM_BINDING": str(tmp_path)}) as coder:
        async with coder.stream_consume("tasks") as deliveries:
            delivery = await following(deliveries)
            await until(lambda: renewing(server))
            (tmp_path / "password").write_text("new")
            await wire.call("ACL", "SETUSER", "agent", "resetpass", ">new")
            await wire.call("CLIENT", "KILL", "USER", "agent")
            await until(lambda: renewing(server))
            await until(lambda: fresh(topology, group))
            assert await delivery.ack()


async def test_the_thread_ends_at_once_though_it_waits_for_a_reply(
    server: Server, topology: Topology, monkeypatch: pytest.MonkeyPatch
) -> None:
    await topology.group("tasks", "coder", lease=2_000)
    await send(topology, 1)
    with Faults(server.port) as proxy:
        async with (
            topology.agent("coder", url=proxy.url) as coder,
            coder.stream_consume("tasks") as deliveries,
        ):
            delivery = await following(deliveries)
            await until(lambda: renewing(server))
            (thread,) = threads()
            with proxy.hold():
                asked = _asks(monkeypatch)
                await until(asked.is_set)
                coder._renewal.close()
                assert not thread.is_alive()
            assert await delivery.ack()


async def test_the_thread_ends_at_once_though_nobody_greets_it(
    server: Server, topology: Topology, monkeypatch: pytest.MonkeyPatch
) -> None:
    await topology.group("tasks", "coder", lease=2_000)
    await send(topology, 1)
    with Faults(server.port) as proxy:
        async with (
            topology.agent("coder", url=proxy.url) as coder,
            coder.stream_consume("tasks") as deliveries,
        ):
            asked = _asks(monkeypatch)
            delivery = await following(deliveries)
            with proxy.hold():
                await until(asked.is_set)
                (thread,) = threads()
                coder._renewal.close()
                assert not thread.is_alive()
            assert await delivery.ack()


def _asks(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set when a thread sends its next command."""
    asked, ask = threading.Event(), BlockingConnection._ask

    def tell(connection: BlockingConnection, commands: Sequence[Sequence[Argument]]) -> list[Any]:
        asked.set()
        return ask(connection, commands)

    monkeypatch.setattr(BlockingConnection, "_ask", tell)
    return asked


async def test_a_mistake_of_ours_does_not_end_it(
    topology: Topology, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("agentstream.consuming.renewal._PAUSE_AFTER_A_MISTAKE", 0.01)
    group = await topology.group("tasks", "coder", lease=600)
    await send(topology, 1)
    async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        with monkeypatch.context() as patch:
            patch.setattr(RenewalThread, "_renew", lambda *_: 1 / 0)
            await following(deliveries)
            await until(lambda: "renewing leases failed" in caplog.text)
        await until(lambda: fresh(topology, group))


async def test_a_process_that_is_forked_off_does_not_touch_the_connection(
    server: Server, topology: Topology
) -> None:
    await topology.group("tasks", "coder", lease=600)
    await send(topology, 1)
    work = """
delivery = await anext(deliveries)
say("holds")
input()
if (child := os.fork()) == 0:
    leases = deliveries._consumption._dispatcher.leases
    agent._renewal.wake()
    agent._renewal.close()
    os._exit(7)
say("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
input()
say("acknowledged", await delivery.ack())
"""
    environ = {
        **os.environ,
        "AGENTSTREAM_URL": topology.url,
        "AGENTSTREAM_NAMESPACE": NAMESPACE,
        "AGENTSTREAM_AGENT": "coder",
        "AGENTSTREAM_POD": "coder-7",
    }
    code = PROGRAM.format(work=work.replace("\n", "\n        "))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    running = Program(process)
    await running.says("holds")
    before = await until(lambda: renewing(server))
    process.stdin.write(b"\n")
    await running.says("child 7")
    assert before == await until(lambda: renewing(server))
    process.stdin.write(b"\n")
    await running.says("acknowledged True")
    assert await process.wait() == 0


async def test_a_group_that_was_left_is_not_looked_after_any_more(topology: Topology) -> None:
    group = await topology.group("tasks", "coder", lease=300)
    await send(topology, 1)
    async with topology.agent("coder") as coder:
        assert await numbers(coder.stream_consume("tasks"), 1) == [1]
        await until(lambda: topology.settled(group, 1))
        await until(lambda: not coder._renewal._groups)
