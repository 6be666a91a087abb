"""What it costs to measure thousands of groups again and again.

Starts an embedded Valkey of its own and reconciles streams with a group each, which the backlog scales, with
the cluster's side in memory. A process of its own adds, reads and settles a message on a part of the streams
in every interval. Prints the share of a core that the operator takes for measuring and all that follows from
it, and what the server takes: that, and the traffic.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from agentstream.protocol.keys import StreamKeys
from agentstream.transport.client import Client
from agentstream.transport.endpoint import Endpoint
from agentstream_operator.broker.broker import Broker
from agentstream_operator.reconcile.engine import Engine
from agentstream_operator.reconcile.state.state import EngineOptions, LoopIntervals
from agentstream_operator.resources.agentstream import AgentStream
from agentstream_operator.resources.consumergroup import ConsumerGroup
from support.cluster import MemoryCluster
from support.resources import TEMPLATE, a_group, a_stream
from support.servers import Server, builds
from support.waiting import until

_NEVER = 3600.0
_MESSAGE = '{"v":1,"id":"0","from":"planner","to":"coder","type":"event","payload":{"n":"' + "x" * 200 + '"}}'


async def traffic(url: str, count: int, interval: float) -> None:
    """Sends a message through each of the first `count` streams in every interval."""
    client = Client(lambda: Endpoint(url), name="traffic")

    async def send(number: int) -> None:
        key, group = f"{{team.stream-{number}}}", f"agent-{number}"
        await client.call("XADD", key, "*", "m", _MESSAGE)
        found = await client.call("XREADGROUP", "GROUP", group, "pod.1", "COUNT", 10, "STREAMS", key, ">")
        ids = [entry for _, entries in found or () for entry, _ in entries]
        settled = (part for entry in ids for part in (entry, 1))
        stats = StreamKeys(key).stats(group)
        await client.call("FCALL", "as1_settle", 1, key, group, "pod.1", stats, "", "", 0, "acked", *settled)

    parts = 50
    for part in itertools.cycle(range(parts)):
        began = time.monotonic()
        await asyncio.gather(*map(send, range(part, count, parts)))
        await asyncio.sleep(max(0.0, began + interval / parts - time.monotonic()))


async def measure(server: Server, count: int, active: int, interval: float, seconds: float) -> None:
    """Creates, waits, measures, and prints."""
    broker = await Broker.connect(server.url, installation="agentstream")
    cluster = MemoryCluster()
    scaling = {"minReplicas": 1}
    resources: list[AgentStream | ConsumerGroup] = [
        *(a_stream(f"stream-{i}", producers=["planner"]) for i in range(count)),
        *(
            a_group(f"agent-{i}", stream=f"stream-{i}", template=TEMPLATE, autoscaling=scaling)
            for i in range(count)
        ),
    ]
    loops = LoopIntervals(interval, interval, janitor=_NEVER, access=_NEVER, resync=_NEVER)
    engine = Engine(broker, cluster, EngineOptions(loops=loops, server_timeout=10.0))
    for resource in resources:
        engine.put(resource)
    engine.listed()
    running = asyncio.create_task(engine.run())
    command = (sys.executable, __file__, "--traffic", server.url, "--active", str(active))
    process = None
    try:
        await until(lambda: all(cluster.ready(resource.key) for resource in resources), timeout=300)
        await _report("nothing moves", server, seconds)
        process = await asyncio.create_subprocess_exec(*command, "--interval", str(interval))
        await asyncio.sleep(3 * interval)
        before = dict(cluster.writes)
        await _report(f"{active} active", server, seconds)
        written = {
            name: n - before.get(name, 0) for name, n in cluster.writes.items() if n != before.get(name)
        }
        print(f"written to the cluster meanwhile: {written}")
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        await broker.close()
    try:
        await _report("traffic alone", server, seconds)
    finally:
        if process is not None:
            process.kill()
            await process.wait()


async def _report(what: str, server: Server, seconds: float) -> None:
    assert server.process is not None
    mine, theirs = time.process_time(), processor_seconds(server.process.pid)
    began = time.perf_counter()
    await asyncio.sleep(seconds)
    spent = time.perf_counter() - began
    operator = (time.process_time() - mine) / spent
    print(
        f"{what:16} operator {operator:6.1%}   "
        f"server {(processor_seconds(server.process.pid) - theirs) / spent:6.1%} of a core"
    )


def processor_seconds(pid: int) -> float:
    """User and system time of a process, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Parses the arguments, and starts and stops the server."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=5000, help="streams and groups, each (default 5000)")
    parser.add_argument("--active", type=int, default=2500, help="streams with traffic (default 2500)")
    parser.add_argument("--interval", type=float, default=2.0, help="seconds between two looks (default 2)")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long it is measured (default 20)")
    parser.add_argument("--traffic", metavar="URL", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.traffic:
        asyncio.run(traffic(arguments.traffic, arguments.active, arguments.interval))
        return
    with tempfile.TemporaryDirectory() as directory:
        server = Server(builds()[0], Path(directory))
        server.start()
        try:
            asyncio.run(
                measure(server, arguments.count, arguments.active, arguments.interval, arguments.seconds)
            )
        finally:
            server.kill()


if __name__ == "__main__":
    main()
