"""What an agent that has nothing to do costs: what it sends, by command, and its processor time.

Starts an embedded Valkey of its own, and an agent in a process of its own that consumes one group and answers
probes, and lets it be.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from agentstream.transport.client import Client
from agentstream.transport.endpoint import Endpoint
from support.monitor import sent_meanwhile
from support.servers import Server, builds, free_port
from support.topology import NAMESPACE, Topology
from support.waiting import until

PROGRAM = """
import asyncio
from agentstream import Agent
async def main():
    async with Agent.from_env() as agent:
        async for delivery in agent.stream_consume("tasks"):
            async with delivery:
                pass
asyncio.run(main())
"""


def processor_seconds(pid: int) -> float:
    """User and system time of a process, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def main(seconds: float) -> None:
    """Measures and prints."""
    with tempfile.TemporaryDirectory() as directory:
        server = Server(builds()[0], Path(directory))
        server.start()
        server.clear()
        client = Client(lambda: Endpoint(server.url), name="bench")
        topology = Topology(client, server.url)
        await topology.stream("tasks", "planner")
        await topology.group("tasks", "coder", lease=10_000)
        environ = {
            **os.environ,
            "AGENTSTREAM_URL": server.url,
            "AGENTSTREAM_NAMESPACE": NAMESPACE,
            "AGENTSTREAM_AGENT": "coder",
            "AGENTSTREAM_HEALTH_PORT": str(free_port()),
        }
        agent = await asyncio.create_subprocess_exec(sys.executable, "-c", PROGRAM, env=environ)
        await until(lambda: any(name.endswith("read-tasks") for name in server.connections()))
        await asyncio.sleep(2)
        before = processor_seconds(agent.pid)
        sent = await sent_meanwhile(server, asyncio.sleep(seconds))
        used = processor_seconds(agent.pid) - before
        agent.terminate()
        await agent.wait()
        await client.close()
        server.kill()
    for command, count in Counter(sent).most_common():
        print(f"{count:6d}  {command}")
    print(f"{len(sent) / seconds:.2f} commands/s, {100 * used / seconds:.2f} % of a core over {seconds:g} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0)
    asyncio.run(main(parser.parse_args().seconds))
