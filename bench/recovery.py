"""How soon messages are in other hands, of a consumer that was killed and of a connection that fell silent.

Starts an embedded Valkey of its own. All consumers are of this process, and their handlers never end: each
message stays with whoever took it.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from agentstream.consuming.fetch import READ_TIMEOUT
from agentstream.consuming.session import Deliveries
from agentstream.protocol.keys import Nudge
from agentstream.protocol.routes import Consumes
from agentstream.testing import Faults
from agentstream.transport.client import Client
from agentstream.transport.endpoint import Endpoint
from agentstream_operator.broker.broker import Broker
from agentstream_operator.plan.observed import Gone
from support.servers import Server, builds
from support.topology import NAMESPACE, Topology
from support.waiting import until

PENDING, CONSUMERS, SLOTS = 1_000, 20, 64
LEASE = 10_000


async def is_taken(topology: Topology, group: Consumes, count: int) -> bool:
    """Whether so many entries are pending, none of them with the one that is gone."""
    total, _, _, holders = await topology.wire.call("XPENDING", group.key, group.group)
    return total == count and all(name != b"gone.1" for name, _ in holders)


async def swept(topology: Topology, count: int) -> bool:
    """Whether so many consumers wait for something new."""
    clients = (await topology.wire.call("CLIENT", "LIST")).decode().splitlines()
    return sum("read-tasks" in client and "cmd=xreadgroup" in client for client in clients) == count


async def hold(deliveries: Deliveries[Any]) -> None:
    """Handles everything at once, and ends nothing."""
    in_hand = [delivery async for delivery in deliveries]
    del in_hand


async def killed(topology: Topology, broker: Broker, *, nudged: bool) -> float:
    """Seconds after which live consumers own what a dead one held."""
    await topology.wire.call("FLUSHALL")
    topology.routes.clear()
    await topology.stream("tasks", "planner")
    group = await topology.group("tasks", "coder", lease=LEASE)
    async with topology.agent("planner") as planner:
        sending = (planner.send_message(to="coder", type="event", payload={"n": n}) for n in range(PENDING))
        await asyncio.gather(*sending)
    await topology.wire.call("XREADGROUP", "GROUP", "coder", "gone.1", "STREAMS", group.key, ">")
    began = time.perf_counter()
    async with AsyncExitStack() as stack:
        holding = []
        for n in range(CONSUMERS):
            agent = await stack.enter_async_context(topology.agent("coder", pod=f"coder-{n}"))
            holding.append(asyncio.create_task(hold(agent.stream_consume("tasks", concurrency=SLOTS))))
        await until(lambda: swept(topology, CONSUMERS))
        if nudged:
            began = time.perf_counter()
            await broker.release_pod(group.key, "coder", Gone("gone"))
            await broker.nudge(NAMESPACE, "coder", Nudge.SWEEP)
        await until(lambda: is_taken(topology, group, PENDING), timeout=60)
        took = time.perf_counter() - began
        for task in holding:
            task.cancel()
        await asyncio.gather(*holding, return_exceptions=True)
    return took


async def silent(topology: Topology, server: Server) -> float:
    """Seconds from the moment when a connection falls silent until what the server gave it is in hand."""
    await topology.wire.call("FLUSHALL")
    topology.routes.clear()
    await topology.stream("tasks", "planner")
    await topology.group("tasks", "coder", lease=LEASE)
    with Faults(server.port) as faults:
        async with topology.agent("coder", url=faults.url) as coder, topology.agent("planner") as planner:
            asking = asyncio.create_task(anext(coder.stream_consume("tasks")))
            await until(lambda: swept(topology, 1))
            began = time.perf_counter()
            with faults.hold():
                await planner.send_message(to="coder", type="event", payload={"n": 1})
                # nothing can be had before
                await asyncio.sleep(READ_TIMEOUT)
            await (await asking).ack()
            return time.perf_counter() - began


async def main() -> None:
    """Measures and prints."""
    with tempfile.TemporaryDirectory() as directory:
        server = Server(builds()[0], Path(directory))
        server.start()
        server.clear()
        sdk = Client(lambda: Endpoint(server.url), name="bench")
        broker = await Broker.connect(server.url, installation="agentstream")
        topology = Topology(sdk, server.url)
        what = f"{PENDING} messages of a dead consumer, {CONSUMERS} live ones of {SLOTS} slots"
        print(f"{await killed(topology, broker, nudged=True):6.2f} s  {what}, nudged")
        print(
            f"{await killed(topology, broker, nudged=False):6.2f} s  the same, by themselves, lease of 10 s"
        )
        print(
            f"{await silent(topology, server):6.2f} s  a connection that falls silent for {READ_TIMEOUT:g} s"
        )
        await broker.close()
        await sdk.close()
        server.kill()


if __name__ == "__main__":
    asyncio.run(main())
