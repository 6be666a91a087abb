"""How long it takes from a message to the replicas of a group that sleeps, on a real API server.

Starts an API server and an embedded Valkey of its own and `agentstream operator` with the rights that the
chart gives it. Creates groups with a stream each that all sleep, then adds one message at a time to one of
them, and waits until the API server tells of its Deployment's replicas. Groups that are awake are put to
sleep again where there are fewer of them than messages. Meanwhile the operator does what it does anyway: it
measures, and looks at everything anew once a minute. Everything shares the processors of this machine.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import ssl
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import aiohttp
import psutil
import redis

from agentstream_operator.resources.meta import API_VERSION
from support.apiserver import ApiServer, private_server
from support.deployed import Deployed, grant
from support.servers import Server, builds
from support.waiting import until

HOME, TEAM = "agentstream-system", "team"
IN_FLIGHT = 32
PLURALS = {"AgentStream": "agentstreams", "ConsumerGroup": "consumergroups"}
Json = dict[str, Any]
_ENDLESS = aiohttp.ClientTimeout(total=None, sock_read=None)


def a_pair(number: int) -> tuple[Json, Json]:
    """A stream, and a group of it that sleeps."""
    container = {"name": "agent", "image": "agent:1"}
    return (
        {"kind": "AgentStream", "metadata": {"name": f"stream-{number}"}, "spec": {}},
        {
            "kind": "ConsumerGroup",
            "metadata": {"name": f"group-{number}"},
            "spec": {
                "streamRef": {"name": f"stream-{number}"},
                "startFrom": "Beginning",
                "template": {"spec": {"containers": [container]}},
                "autoscaling": {"scaleDownAfter": "0s"},
            },
        },
    )


class Cluster:
    """The API server as somebody sees it who creates resources and watches their Deployments.

    Args:
        server: the API server.
        session: the connections to it.

    Attributes:
        replicas: those that are wanted by Deployment, and when that was told of.
    """

    def __init__(self, server: ApiServer, session: aiohttp.ClientSession) -> None:
        self._server = server
        self._session = session
        self._slots = asyncio.Semaphore(IN_FLIGHT)
        self.replicas: dict[str, tuple[int, float]] = {}

    async def create(self, manifest: Json) -> None:
        """Creates a resource."""
        url = f"{self._server.url}/apis/{API_VERSION}/namespaces/{TEAM}/{PLURALS[manifest['kind']]}"
        async with (
            self._slots,
            self._session.post(url, json={"apiVersion": API_VERSION, **manifest}) as answer,
        ):
            if answer.status != 201:  # noqa: PLR2004 - made
                raise RuntimeError(await answer.text())

    async def watch(self) -> None:
        """Notes how many replicas are wanted; never ends."""
        query = {"watch": "1", "sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}
        url = f"{self._server.url}/apis/apps/v1/namespaces/{TEAM}/deployments"
        async with self._session.get(url, params=query, timeout=_ENDLESS) as answer:
            answer.raise_for_status()
            async for line in answer.content:
                found = json.loads(line)["object"]
                name, wanted = found["metadata"].get("name"), found.get("spec", {}).get("replicas")
                if name is not None and self.replicas.get(name, (None, 0.0))[0] != wanted:
                    self.replicas[name] = (wanted, time.perf_counter())

    async def until(self, number: int, replicas: int) -> float:
        """Waits until a group's Deployment has so many replicas. Returns when that was told of."""
        name = f"group-{number}-consumer"
        await until(lambda: self.replicas.get(name, (None, 0.0))[0] == replicas, timeout=30)
        return self.replicas[name][1]


@contextlib.asynccontextmanager
async def watched(server: ApiServer) -> Any:
    """The API server, with a watch on Deployments."""
    connector = aiohttp.TCPConnector(limit=0, ssl=ssl.create_default_context(cafile=server.ca_file))
    headers = {"Authorization": f"Bearer {server.token}"}
    async with aiohttp.ClientSession(connector=connector, headers=headers, read_bufsize=2**20) as session:
        cluster = Cluster(server, session)
        watching = asyncio.create_task(cluster.watch())
        try:
            yield cluster
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)


async def wake(cluster: Cluster, admin: redis.Redis, number: int) -> float:
    """Seconds from a message to the replicas of a group that sleeps."""
    began = time.perf_counter()
    admin.xadd(f"{{{TEAM}.stream-{number}}}", {"m": "{}"})
    return await cluster.until(number, 1) - began


async def put_to_sleep(cluster: Cluster, admin: redis.Redis, number: int) -> None:
    """Settles what a group was woken by, and waits until it sleeps again and the next read has begun."""
    key, group = f"{{{TEAM}.stream-{number}}}", f"group-{number}"
    reply: Any = admin.xreadgroup(group, "bench.1", {key: ">"})
    admin.xack(key, group, *(entry for _, entries in reply for entry, _ in entries))
    await cluster.until(number, 0)
    await asyncio.sleep(1.2)


async def measure(server: ApiServer, broker: Server, directory: Path, groups: int, messages: int) -> None:
    """Runs everything with one operator, and prints."""
    server.create_namespace(HOME)
    server.create_namespace(TEAM)
    operator = Deployed(server, grant(server, HOME, ()), broker.url, directory)
    operator.start()
    try:
        await operator.leading()
        async with watched(server) as cluster:
            pairs = (a_pair(number) for number in range(groups))
            await asyncio.gather(*(cluster.create(manifest) for pair in pairs for manifest in pair))
            for number in range(groups):
                await cluster.until(number, 0)
            # what they still have to say, and the reads of the first round
            await asyncio.sleep(5)
            await wake_all(cluster, operator, broker, groups, messages)
    finally:
        operator.kill()


async def wake_all(cluster: Cluster, operator: Deployed, broker: Server, groups: int, messages: int) -> None:
    """Adds messages, one after the other, and prints how long each took to have an effect."""
    assert operator.process is not None
    process = psutil.Process(operator.process.pid)
    before = sum(process.cpu_times()[:2])
    await asyncio.sleep(10)
    resting = (sum(process.cpu_times()[:2]) - before) / 10
    waits = []
    with broker.admin() as admin:
        for message in range(messages):
            number = message % groups
            waits.append(await wake(cluster, admin, number))
            if groups < messages:
                await put_to_sleep(cluster, admin, number)
            await asyncio.sleep(random.uniform(0.0, 0.1))
    waits.sort()
    p50, p99 = (1000 * waits[min(len(waits) - 1, len(waits) * part // 100)] for part in (50, 99))
    print(
        f"{groups} asleep, {messages} messages: XADD to replicas p50 {p50:.1f} ms, p99 {p99:.1f} ms", end=", "
    )
    print(f"the slowest {1000 * waits[-1]:.1f} ms; asleep, the operator takes {resting:.1%} of a CPU")


def main() -> None:
    """Parses the arguments, and starts and stops the servers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--groups", type=int, default=1000, help="groups that sleep (default 1000)")
    parser.add_argument("--messages", type=int, default=300, help="messages (default 300)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, private_server() as server:
        broker = Server(builds()[0], Path(directory))
        broker.start()
        try:
            asyncio.run(measure(server, broker, Path(directory), arguments.groups, arguments.messages))
        finally:
            broker.kill()


if __name__ == "__main__":
    main()
