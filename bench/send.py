"""How fast messages are sent: `send_message` and `send_many` beside redis-py, and FastStream if installed.

Starts an embedded Valkey of its own. All take turns in one run, so that what else the machine does concerns
each of them. What peers send is the same envelope, by a plain XADD: nothing keeps a lost reply from doubling
it, nothing refuses where a stream is full, and nothing looks whether it fits a schema. FastStream comes with
`uv sync --group bench`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import json
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from agentstream.agent import Agent
from agentstream.sending.outgoing import OutgoingMessage
from agentstream.transport.client import Client
from agentstream.transport.endpoint import Endpoint
from support.servers import Server, builds
from support.topology import Topology

STREAM = "{test.tasks}"
PAYLOAD = {"doc": 7, "text": "x" * 100}

Send = Callable[[], Awaitable[Any]]


def envelope() -> str:
    """What stands on the stream, made as programs do that have no SDK."""
    return json.dumps(
        {
            "v": 1,
            "id": str(uuid.uuid4()),
            "from": "planner",
            "to": "coder",
            "type": "event",
            "payload": PAYLOAD,
            "timestamp": time.time(),
        }
    )


async def by_many(send: Send, callers: int, count: int) -> float:
    """Messages per second when every caller awaits that its message is on the stream before the next."""

    async def caller() -> None:
        for _ in range(count // callers):
            await send()

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(callers)))
    return count / (time.perf_counter() - began)


async def in_one(send: Send, size: int, count: int) -> float:
    """Messages per second when `send` sends so many at once, again and again."""
    began = time.perf_counter()
    for _ in range(count // size):
        await send()
    return count / (time.perf_counter() - began)


async def alone(send: Send, count: int) -> float:
    """Messages per second of one caller, while nobody else sends."""
    return await by_many(send, 1, count)


async def measure(server: Server, rounds: int, count: int, callers: int, size: int) -> None:
    """Measures in turns, and prints."""
    sdk = Client(lambda: Endpoint(server.url), name="bench")
    topology = Topology(sdk, server.url)
    await topology.stream("tasks", "planner")
    await topology.group("tasks", "coder")
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(sdk.close)
        agent = await stack.enter_async_context(topology.agent("planner"))
        client = redis.asyncio.Redis(
            port=server.port, max_connections=callers, retry=Retry(NoBackoff(), 0), protocol=2
        )
        stack.push_async_callback(client.aclose)

        async def pipeline() -> None:
            async with client.pipeline(transaction=False) as batch:
                for _ in range(size):
                    batch.xadd(STREAM, {"m": envelope()})
                await batch.execute()

        singly: dict[str, Send] = {
            "agentstream": lambda: agent.send_message(to="coder", type="event", payload=PAYLOAD),
            "redis-py": lambda: client.xadd(STREAM, {"m": envelope()}),
        }
        if importlib.util.find_spec("faststream") is not None:
            singly["faststream"] = await faststream(stack, server, callers)
        together: dict[str, Send] = {"agentstream": lambda: many(agent, size), "redis-py": pipeline}
        await compare(sdk, rounds, f"{callers} callers", singly, lambda send: by_many(send, callers, count))
        await compare(sdk, rounds, f"{size} at once", together, lambda send: in_one(send, size, count))
        await compare(sdk, rounds, "one caller", singly, lambda send: alone(send, count // 20))


async def many(agent: Agent, size: int) -> None:
    """Sends so many messages in one call."""
    await agent.send_many([OutgoingMessage(to="coder", type="event", payload=PAYLOAD) for _ in range(size)])


async def faststream(stack: contextlib.AsyncExitStack, server: Server, connections: int) -> Send:
    """How FastStream publishes to a stream."""
    from faststream.redis import RedisBroker  # noqa: PLC0415 - may not be installed

    broker = await stack.enter_async_context(
        RedisBroker(server.url, logger=None, max_connections=connections)
    )

    async def publish() -> None:
        await broker.publish(envelope(), stream=STREAM)

    return publish


async def compare(
    sdk: Client,
    rounds: int,
    title: str,
    senders: dict[str, Send],
    measurement: Callable[[Send], Awaitable[float]],
) -> None:
    """Lets all take turns, and prints the median of each and how much faster the first one is."""
    figures: dict[str, list[float]] = {name: [] for name in senders}
    for _ in range(rounds):
        for name, send in senders.items():
            figures[name].append(await measurement(send))
            await sdk.call("XTRIM", STREAM, "MAXLEN", 0)
    ours, *_ = medians = {name: statistics.median(values) for name, values in figures.items()}
    for name, values in figures.items():
        ratio = "" if name == ours else f"{medians[ours] / medians[name]:5.1f} times slower"
        spread = f"({min(values):,.0f} to {max(values):,.0f})"
        print(f"{title:14} {name:12} {medians[name]:9,.0f} messages/s {spread:22} {ratio}")


def main() -> None:
    """Parses arguments and runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--callers", type=int, default=256)
    parser.add_argument("--size", type=int, default=1_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        server = Server(builds()[0], Path(directory))
        server.start()
        server.clear()
        try:
            asyncio.run(measure(server, args.rounds, args.count, args.callers, args.size))
        finally:
            server.kill()


if __name__ == "__main__":
    main()
