"""Large messages are settled and handed back together, though one call takes only a part of them."""

from __future__ import annotations

import asyncio

from agentstream.protocol.keys import StreamKeys
from agentstream.transport.client import Client
from support.topology import Topology, following

COUNT, LARGE = 6, "x" * (400 << 10)


async def test_large_retries_that_are_acknowledged_together_are_all_settled(
    topology: Topology, wire: Client
) -> None:
    group = await topology.group("tasks", "coder")
    async with topology.agent("planner") as planner, topology.agent("coder") as coder:
        for _ in range(COUNT):
            await planner.send_message(to="coder", type="event", payload={"text": LARGE})
        async with coder.stream_consume("tasks", concurrency=COUNT) as deliveries:
            for _ in range(COUNT):
                await (await following(deliveries)).retry(after=0)
            retried = [await following(deliveries) for _ in range(COUNT)]
            assert await asyncio.gather(*(delivery.ack() for delivery in retried)) == [True] * COUNT
    assert await wire.call("XLEN", StreamKeys(group.key).retry("coder")) == 0


async def test_large_messages_that_were_begun_are_all_handed_back(topology: Topology, wire: Client) -> None:
    group = await topology.group("tasks", "coder")
    async with topology.agent("planner") as planner:
        for _ in range(COUNT):
            await planner.send_message(to="coder", type="event", payload={"text": LARGE})
    async with (
        topology.agent("coder") as coder,
        coder.stream_consume("tasks", concurrency=COUNT) as deliveries,
    ):
        for _ in range(COUNT):
            await following(deliveries)
    assert await wire.call("XLEN", StreamKeys(group.key).retry("coder")) == COUNT
    assert (await wire.call("XPENDING", group.key, "coder"))[0] == 0
