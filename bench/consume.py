"""How fast messages are consumed: a handler for each and an acknowledgement for each, beside peers.

Starts an embedded Valkey of its own. First a backlog is handled by a hundred handlers at a time. Then
messages come at a steady rate from another process, and it is measured how long each takes from being due to
be sent to its handler. All take turns in one run, so that what else the machine does concerns each of them.

The peers are redis-py, as its documentation reads a group, each message handled and acknowledged by a task,
and FastStream if installed (`uv sync --group bench`). They renew no lease, count no attempt, and acknowledge
whatever they are told to.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import json
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import hiredis
import redis.asyncio

from agentstream.protocol.envelope import Message, encode
from agentstream.sending.outgoing import new_id
from agentstream.transport.client import Client
from agentstream.transport.endpoint import Endpoint
from support.servers import Server, builds
from support.topology import Topology
from support.waiting import until

STREAM, GROUP = "{test.tasks}", "coder"
HANDLERS, HELD = 100, 1_000
TICK = 0.001

Handle = Callable[[dict[str, Any]], None]
Consumer = Callable[[Server, Topology, Handle], AbstractAsyncContextManager[None]]


def due_at(due: float) -> bytes:
    """A time, always as long."""
    return b"%017.6f" % due


def envelope(due: float) -> bytes:
    """A message that says when it was due to be sent."""
    return encode(
        Message(
            v=1,
            id=new_id(),
            sender="planner",
            to="coder",
            type="event",
            payload={"due": due_at(due).decode(), "text": "x" * 100},
            timestamp=time.time(),
        )
    )


@contextlib.asynccontextmanager
async def agentstream(_: Server, topology: Topology, handle: Handle) -> AsyncIterator[None]:
    """Ours."""
    async with topology.agent("coder") as agent:
        deliveries = agent.stream_consume("tasks", concurrency=HELD)

        async def work() -> None:
            async for delivery in deliveries:
                async with delivery:
                    handle(delivery.message.payload)

        working = [asyncio.create_task(work()) for _ in range(HANDLERS)]
        yield
        agent.stop()
        await asyncio.gather(*working)


@contextlib.asynccontextmanager
async def redis_py(server: Server, _: Topology, handle: Handle) -> AsyncIterator[None]:
    """A loop over XREADGROUP that gives each message to a task."""
    client = redis.asyncio.Redis(port=server.port, max_connections=HANDLERS + 1, protocol=2)

    async def one(entry: bytes, fields: dict[bytes, bytes]) -> None:
        handle(json.loads(fields[b"m"])["payload"])
        await client.xack(STREAM, GROUP, entry)

    async def read() -> None:
        while True:
            reply: Any = await client.xreadgroup(GROUP, "peer", {STREAM: ">"}, count=HANDLERS, block=100)
            for _, entries in reply:
                await asyncio.gather(*(one(entry, fields) for entry, fields in entries))

    reading = asyncio.create_task(read())
    yield
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    await client.aclose()


@contextlib.asynccontextmanager
async def faststream(server: Server, _: Topology, handle: Handle) -> AsyncIterator[None]:
    """A subscriber with as many workers."""
    from faststream.redis import RedisBroker, StreamSub  # noqa: PLC0415 - may not be installed

    broker = RedisBroker(server.url, logger=None, max_connections=HANDLERS + 10)

    async def on_message(message: dict[str, Any]) -> None:
        handle(json.loads(message["m"])["payload"] if "m" in message else message["payload"])

    source = StreamSub(STREAM, group=GROUP, consumer="peer", polling_interval=100, max_records=HANDLERS)
    broker.subscriber(stream=source, max_workers=HANDLERS)(on_message)
    async with broker:
        await broker.start()
        yield


async def fresh(server: Server) -> tuple[Client, Topology]:
    """An empty stream with its group."""
    sdk = Client(lambda: Endpoint(server.url), name="bench")
    await sdk.call("FLUSHALL")
    topology = Topology(sdk, server.url)
    await topology.stream("tasks", "planner")
    await topology.group("tasks", "coder", lease=10_000)
    return sdk, topology


async def settled(sdk: Client) -> bool:
    """Whether nothing is pending."""
    summary = await sdk.call("XPENDING", STREAM, GROUP)
    return bool(summary[0] == 0)


async def backlog(server: Server, consumer: Consumer, count: int) -> float:
    """Messages per second until the last of a backlog is acknowledged."""
    sdk, topology = await fresh(server)
    body = envelope(0)
    for _ in range(count // 1_000):
        await asyncio.gather(*(sdk.call("XADD", STREAM, "*", "m", body) for _ in range(1_000)))
    handled, done = 0, asyncio.Event()

    def handle(_: dict[str, Any]) -> None:
        nonlocal handled
        handled += 1
        if handled == count:
            done.set()

    began = time.perf_counter()
    async with consumer(server, topology, handle):
        await done.wait()
        await until(lambda: settled(sdk))
        elapsed = time.perf_counter() - began
    await sdk.close()
    return count / elapsed


async def paced(server: Server, consumer: Consumer, rate: int, seconds: float) -> list[float]:
    """Milliseconds from when each message was due to its handler, sorted; at most those of the time given."""
    sdk, topology = await fresh(server)
    count, waits, done = int(rate * seconds), list[float](), asyncio.Event()

    def handle(payload: dict[str, Any]) -> None:
        waits.append((time.monotonic() - float(payload["due"])) * 1_000)
        if len(waits) == count:
            done.set()

    async with consumer(server, topology, handle):
        sender = await asyncio.create_subprocess_exec(
            sys.executable, __file__, "--send", str(server.port), str(rate), str(seconds)
        )
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds + 5):
                await done.wait()
        if sender.returncode is None:
            sender.kill()
        await sender.wait()
    await sdk.close()
    return sorted(waits)


def send(port: int, rate: int, seconds: float) -> None:
    """Sends at a steady rate: what is due in each tick at once, whether earlier ones were answered or not."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        replies = threading.Thread(target=drain, args=(connection,), daemon=True)
        replies.start()
        # as long for every message: only the time is put in
        command: Any = ("XADD", STREAM, "*", "m", envelope(0))
        before, _, after = hiredis.pack_command(command).partition(due_at(0))
        began, sent, count = time.monotonic(), 0, int(rate * seconds)
        while sent < count:
            now = time.monotonic()
            due = min(int((now - began) * rate), count)
            times = [due_at(began + n / rate) for n in range(sent, due)]
            connection.sendall(b"".join(before + at + after for at in times))
            sent = due
            time.sleep(max(now + TICK - time.monotonic(), 0))
        connection.shutdown(socket.SHUT_WR)
        replies.join()


def drain(connection: socket.socket) -> None:
    """Reads replies until there are no more."""
    while connection.recv(1 << 16):
        pass


def percentile(values: list[float], share: float) -> float:
    """The value below which this share of the sorted values is."""
    return values[min(int(len(values) * share), len(values) - 1)]


async def measure(server: Server, rounds: int, count: int, rates: list[int], seconds: float) -> None:
    """Measures in turns, and prints."""
    consumers: dict[str, Consumer] = {"agentstream": agentstream, "redis-py": redis_py}
    if importlib.util.find_spec("faststream") is not None:
        consumers["faststream"] = faststream
    figures: dict[str, list[float]] = {name: [] for name in consumers}
    for _ in range(rounds):
        for name, consumer in consumers.items():
            size = count if name == "agentstream" else count // 5
            figures[name].append(await backlog(server, consumer, size))
    ours = statistics.median(figures["agentstream"])
    for name, values in figures.items():
        median = statistics.median(values)
        ratio = "" if name == "agentstream" else f"{ours / median:5.1f} times slower"
        spread = f"({min(values):,.0f} to {max(values):,.0f})"
        print(f"backlog    {name:12} {median:9,.0f} messages/s {spread:22} {ratio}")
    for rate in rates:
        await measure_paced(server, rounds, rate, seconds, consumers)


async def measure_paced(
    server: Server, rounds: int, rate: int, seconds: float, consumers: dict[str, Consumer]
) -> None:
    """Measures one rate in turns, and prints."""
    latencies: dict[str, list[tuple[float, float, float]]] = {name: [] for name in consumers}
    behind: set[str] = set()
    for _ in range(rounds):
        for name, consumer in consumers.items():
            if name in behind:
                continue
            waits = await paced(server, consumer, rate, seconds)
            if len(waits) < int(rate * seconds):
                behind.add(name)
                print(f"{rate:7,}/s  {name:12} cannot keep up: {len(waits) / (seconds + 5):,.0f} messages/s")
            else:
                latencies[name].append(
                    (percentile(waits, 0.5), percentile(waits, 0.95), percentile(waits, 0.99))
                )
    for name, rows in latencies.items():
        if name not in behind:
            p50, p95, p99 = (statistics.median(column) for column in zip(*rows, strict=True))
            print(f"{rate:7,}/s  {name:12} p50 {p50:7.2f} ms   p95 {p95:7.2f} ms   p99 {p99:7.2f} ms")


def main() -> None:
    """Parses arguments and runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--rates", type=int, nargs="*", default=[10_000, 50_000])
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--send", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.send:
        send(int(args.send[0]), int(args.send[1]), float(args.send[2]))
        return
    with tempfile.TemporaryDirectory() as directory:
        server = Server(builds()[0], Path(directory))
        server.start()
        server.clear()
        try:
            asyncio.run(measure(server, args.rounds, args.count, args.rates, args.seconds))
        finally:
            server.kill()


if __name__ == "__main__":
    main()
