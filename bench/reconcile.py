"""How fast resources come true from nothing, and what it costs to check those that need nothing.

Starts an embedded Valkey of its own and reconciles streams, groups and agents against it, with the cluster's
side in memory. Prints the seconds until everything is Ready, the CPU seconds of this process for one check
of everything, and how many writes that check made on the server.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from agentstream.transport.client import Client
from agentstream.transport.endpoint import Endpoint
from agentstream_operator.broker.broker import Broker
from agentstream_operator.reconcile.engine import Engine
from support.cluster import MemoryCluster
from support.resources import a_group, a_stream
from support.servers import Server, builds
from support.waiting import until


async def changes(client: Client) -> int:
    """Changes of the data since the server started; users are not counted, see `users_set`."""
    info = (await client.call("INFO", "persistence")).decode()
    return int(info.split("rdb_changes_since_last_save:")[1].split()[0])


async def users_set(client: Client) -> int:
    """How often users were set or removed."""
    info = (await client.call("INFO", "commandstats")).decode()
    lines = [
        line for line in info.splitlines() if line.startswith(("cmdstat_acl|setuser", "cmdstat_acl|deluser"))
    ]
    return sum(int(line.split("calls=")[1].split(",")[0]) for line in lines)


async def measure(url: str, count: int, checks: int) -> None:
    """Creates, waits, checks, and prints."""
    broker = await Broker.connect(url, installation="agentstream")
    client = Client(lambda: Endpoint(url), name="bench")
    cluster = MemoryCluster()
    engine = Engine(broker, cluster)
    streams = [a_stream(f"stream-{i}", producers=[f"agent-{i}"]) for i in range(count)]
    groups = [a_group(f"agent-{i}", stream=f"stream-{i}") for i in range(count)]
    began, cpu = time.perf_counter(), time.process_time()
    for stream in streams:
        engine.put(stream)
    for group in groups:
        engine.put(group)
    engine.listed()
    running = asyncio.create_task(engine.run())
    try:
        keys = [resource.key for resource in (*streams, *groups)]
        await until(lambda: all(cluster.ready(key) for key in keys), timeout=120)
        print(f"created       {count} of each Ready after {time.perf_counter() - began:.2f} s", end=", ")
        print(
            f"{time.process_time() - cpu:.2f} s of CPU, {sum(cluster.writes.values())} writes to the cluster"
        )
        # until the janitor was everywhere
        await asyncio.sleep(7)
        before, users, written = await changes(client), await users_set(client), dict(cluster.writes)
        for number in range(checks):
            cpu, began = time.process_time(), time.perf_counter()
            engine.check_all()
            await engine.idle()
            spent = time.process_time() - cpu
            print(f"check {number + 1}       {spent:.3f} s of CPU, {time.perf_counter() - began:.3f} s")
        cpu, began = time.process_time(), time.perf_counter()
        await asyncio.sleep(5)
        print(f"doing nothing {(time.process_time() - cpu) / (time.perf_counter() - began):.1%} of a CPU")
        print(
            f"changes of data {await changes(client) - before}, of users {await users_set(client) - users}",
            end=", ",
        )
        print(f"of the cluster {sum(cluster.writes.values()) - sum(written.values())}")
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        await client.close()
        await broker.close()


def main() -> None:
    """Parses the arguments, and starts and stops the server."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--count", type=int, default=1000, help="streams, groups and agents, each (default 1000)"
    )
    parser.add_argument("--checks", type=int, default=3, help="how often everything is checked (default 3)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        server = Server(builds()[0], Path(directory))
        server.start()
        try:
            asyncio.run(measure(server.url, arguments.count, arguments.checks))
        finally:
            server.kill()


if __name__ == "__main__":
    main()
