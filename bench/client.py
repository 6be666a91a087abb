"""How fast commands are sent and answered: the SDK's `Client` beside redis-py's asyncio client.

Starts an embedded Valkey of its own. Both clients take turns in one run, so that what else the machine does
concerns both. Prints, of each measurement, the median of all rounds and how the client compares.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from agentstream.transport.client import Client
from agentstream.transport.endpoint import Endpoint
from support.servers import Server, builds

Call = Callable[..., Awaitable[Any]]
KEY = "{bench}"
XADD = ("XADD", KEY, "MAXLEN", "~", 1000, "*", "m", b"x" * 200)
FCALL = ("FCALL", "bench_add", 1, KEY, b"x" * 200)
LUA = """#!lua name=bench
redis.register_function('bench_add', function(keys, args)
  return redis.call('XADD', keys[1], 'MAXLEN', '~', 1000, '*', 'm', args[1])
end)
"""


async def per_second(call: Call, command: tuple[Any, ...], callers: int, calls: int) -> float:
    """Calls per second when every caller awaits its reply before it calls again."""

    async def caller() -> None:
        for _ in range(calls // callers):
            await call(*command)

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(callers)))
    return calls / (time.perf_counter() - began)


async def latency(call: Call, command: tuple[Any, ...], calls: int) -> float:
    """The median of the microseconds that one call takes while nobody else calls."""
    taken = []
    for _ in range(calls):
        began = time.perf_counter()
        await call(*command)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken) * 1e6


async def measure(port: int, rounds: int, calls: int, callers: int) -> None:
    """Measures in turns, and prints."""
    client = Client(lambda: Endpoint(f"redis://127.0.0.1:{port}"), name="bench")
    peer = redis.asyncio.Redis(port=port, max_connections=callers, retry=Retry(NoBackoff(), 0), protocol=2)
    await client.call("FUNCTION", "LOAD", LUA)
    measurements: dict[str, Callable[[Call], Awaitable[float]]] = {
        f"XADD, calls/s, {callers} callers": lambda call: per_second(call, XADD, callers, calls),
        f"FCALL, calls/s, {callers} callers": lambda call: per_second(call, FCALL, callers, calls),
        "XADD, µs of a single call": lambda call: latency(call, XADD, calls // 20),
        "FCALL, µs of a single call": lambda call: latency(call, FCALL, calls // 20),
    }
    try:
        for title, measurement in measurements.items():
            ours, theirs = [], []
            for _ in range(rounds):
                ours.append(await measurement(client.call))
                theirs.append(await measurement(peer.execute_command))
            a, b = statistics.median(ours), statistics.median(theirs)
            ratio = a / b if "calls/s" in title else b / a
            spread = f"{min(ours):,.0f} to {max(ours):,.0f} | {min(theirs):,.0f} to {max(theirs):,.0f}"
            print(f"{title:30} client {a:9,.0f}  redis-py {b:9,.0f}  {ratio:5.1f} times better  ({spread})")
    finally:
        await asyncio.gather(client.close(), peer.aclose())


def main() -> None:
    """Parses arguments and runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--callers", type=int, default=256)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        server = Server(builds()[0], Path(directory))
        server.start()
        try:
            asyncio.run(measure(server.port, args.rounds, args.calls, args.callers))
        finally:
            server.kill()


if __name__ == "__main__":
    main()
