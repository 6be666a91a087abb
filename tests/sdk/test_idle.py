"""What costs nothing while there is nothing to do: commands, connections, and consumers that were."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import msgspec
import pytest

from agentstream.agent import Agent
from agentstream.protocol import library
from agentstream.protocol.keys import StreamKeys
from agentstream.protocol.routes import Consumes
from agentstream.transport.client import Client
from agentstream_operator.broker.broker import Broker
from support.entries import spec
from support.monitor import sent_meanwhile
from support.servers import Server, free_port
from support.topology import NAMESPACE, Topology, following, numbers, send
from support.waiting import until

GROUP = Consumes("tasks", "{test.tasks}", group="coder")


async def test_a_consumer_with_nothing_to_do_sends_fewer_than_two_commands_a_second(
    server: Server, topology: Topology
) -> None:
    await topology.group("tasks", "coder", lease=10_000)
    settings = msgspec.structs.replace(topology.settings("coder"), health_port=free_port())
    async with Agent.connect(settings) as coder, coder.stream_consume("tasks") as deliveries:
        await send(topology, 1)
        await numbers(deliveries, 1)
        asking = asyncio.create_task(following(deliveries))
        sent = await sent_meanwhile(server, asyncio.wait({asking}, timeout=4))
        asking.cancel()
    assert len(sent) < 2 * 4, sent


async def test_an_agent_that_neither_consumes_nor_listens_makes_no_connection_for_it(
    server: Server, topology: Topology
) -> None:
    await topology.group("tasks", "coder")
    async with topology.agent("planner") as planner:
        await planner.send_message(to="coder", type="event", payload={"n": 1})
        assert roles(server, "planner") == {"write"}


async def test_who_consumes_no_more_listens_no_more(server: Server, topology: Topology) -> None:
    await topology.group("tasks", "coder")
    async with topology.agent("coder") as coder:
        async with coder.stream_consume("tasks") as deliveries:
            asking = asyncio.create_task(following(deliveries))
            await until(lambda: "push" in roles(server, "coder"))
        with pytest.raises(StopAsyncIteration):
            await asking
        await until(lambda: not roles(server, "coder") & {"push", "read-tasks"})


def roles(server: Server, agent: str) -> set[str]:
    """What an agent's connections are for."""
    names = server.connections()
    return {name.rpartition(":")[2] for name in names if f"{NAMESPACE}.{agent}:" in name}


@pytest.fixture
async def janitor(server: Server, wire: Client) -> AsyncIterator[Callable[[], Awaitable[int]]]:
    """A pass over the stream that forgets who was silent for 100 ms; it returns how many."""
    broker = await Broker.connect(server.url, installation="test")
    source = library.source().replace("FORGET = 60000", "FORGET = 100")
    assert source != library.source()
    await wire.call("FUNCTION", "LOAD", "REPLACE", source)

    async def clean() -> int:
        return (await broker.janitor(replace(spec("coder"), key=GROUP.key))).forgotten

    yield clean
    await broker.close()


async def consumers(wire: Client) -> set[str]:
    """The names of the group's consumers, on either of its streams."""
    keys = (GROUP.key, StreamKeys(GROUP.key).retry(GROUP.group))
    return {flat[1].decode() for key in keys for flat in await wire.call("XINFO", "CONSUMERS", key, "coder")}


PROGRAM = """
import asyncio, os, signal
from agentstream import Agent
async def main():
    async with Agent.from_env() as agent:
        async for delivery in agent.stream_consume("tasks", concurrency=2):
            os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""


async def killed(topology: Topology, pod: str) -> None:
    """A process with a message in hand is killed."""
    environ = {
        **os.environ,
        "AGENTSTREAM_URL": topology.url,
        "AGENTSTREAM_NAMESPACE": NAMESPACE,
        "AGENTSTREAM_AGENT": "coder",
        "AGENTSTREAM_POD": pod,
    }
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", PROGRAM, env=environ)
    assert await process.wait() == -signal.SIGKILL


@pytest.mark.parametrize("pod", ["coder", "coder-{}"], ids=["one pod", "many pods"])
async def test_a_hundred_restarts_leave_no_dead_consumer(
    topology: Topology, wire: Client, janitor: Callable[[], Awaitable[int]], pod: str
) -> None:
    await topology.group("tasks", "coder", lease=500)
    await send(topology, *range(300))
    handled: list[int] = []
    for n in range(100):
        if n % 25 == 0:
            await killed(topology, pod.format(n))
        else:
            async with topology.agent("coder", pod=pod.format(n)) as coder:
                handled += await numbers(coder.stream_consume("tasks", concurrency=2), 1)
    assert len(await consumers(wire)) == 100
    async with topology.agent("coder", pod=pod.format("last")) as last:
        async with last.stream_consume("tasks") as deliveries:
            handled += await numbers(deliveries, 300 - len(handled))
            asking = asyncio.create_task(following(deliveries))
            await until(lambda: _is_one_left(wire, janitor))
            await send(topology, 300)
            assert (await asking).message.payload == {"n": 300}
    assert sorted(handled) == list(range(300))


async def _is_one_left(wire: Client, janitor: Callable[[], Awaitable[int]]) -> bool:
    # the last one, too, if it was silent for so long
    await janitor()
    return len(await consumers(wire)) <= 1
