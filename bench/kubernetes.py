"""How fast resources come true on Kubernetes, what it costs, and that nothing is written without need.

Starts an API server and an embedded Valkey of its own and `agentstream operator` with the rights that the
chart gives it. Creates pairs of an AgentStream and a ConsumerGroup, each with an agent of its own, all at
once, and prints how many became Ready in a second and what that took; then what the operator does when there
is nothing to do; then how a killed one comes back. Everything shares the processors of this machine.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import ssl
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import aiohttp
import psutil

from agentstream_operator.resources.meta import API_VERSION
from support.apiserver import ApiServer, Request, private_server
from support.deployed import Deployed, grant
from support.servers import Server, builds
from support.waiting import until

HOME, TEAM = "agentstream-system", "team"
IN_FLIGHT = 32
KINDS = {"AgentStream": "agentstreams", "ConsumerGroup": "consumergroups"}
Json = dict[str, Any]


def a_pair(number: int) -> tuple[Json, Json]:
    """A stream to which one agent adds, and the group in which the same agent reads it."""
    stream, agent = f"stream-{number}", f"agent-{number}"
    return (
        {"kind": "AgentStream", "metadata": {"name": stream}, "spec": {"producers": [agent]}},
        {"kind": "ConsumerGroup", "metadata": {"name": agent}, "spec": {"streamRef": {"name": stream}}},
    )


@dataclass
class Client:
    """Somebody who creates resources and watches them become Ready.

    Attributes:
        server: the API server.
        session: the connections to it.
        slots: one for each request that may be under way.
        created: when each resource was asked for, by kind and name.
        ready: when each of them was seen to be Ready.
    """

    server: ApiServer
    session: aiohttp.ClientSession
    slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(IN_FLIGHT))
    created: dict[tuple[str, str], float] = field(default_factory=dict)
    ready: dict[tuple[str, str], float] = field(default_factory=dict)

    async def create(self, manifests: Iterable[Json]) -> None:
        """Creates resources, so many at a time as there are slots."""
        await asyncio.gather(*(self._create(manifest) for manifest in manifests))

    async def _create(self, manifest: Json) -> None:
        kind, body = manifest["kind"], {"apiVersion": API_VERSION, **manifest}
        async with self.slots:
            self.created[kind, manifest["metadata"]["name"]] = time.perf_counter()
            async with self.session.post(self.server.url + self._path(kind), json=body) as answer:
                if answer.status != 201:  # noqa: PLR2004 - made
                    raise RuntimeError(await answer.text())
                await answer.read()

    async def watch(self, kind: str) -> None:
        """Notes when resources become Ready; never ends."""
        query = {"watch": "1", "sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}
        url = self.server.url + self._path(kind)
        while True:
            # the server ends it when it takes up a CRD that has just been made
            async with self.session.get(url, params=query, timeout=_ENDLESS) as answer:
                answer.raise_for_status()
                async for line in answer.content:
                    self._saw(kind, line)

    def _saw(self, kind: str, line: bytes) -> None:
        # telling is cheaper than parsing
        if b'"Ready"' not in line:
            return
        found = json.loads(line)["object"]
        key = (kind, found["metadata"]["name"])
        if key not in self.ready and _is_ready(found):
            self.ready[key] = time.perf_counter()

    async def until_ready(self, count: int, deadline: float) -> None:
        """Waits until so many resources have become Ready.

        Raises:
            TimeoutError: they did not.
        """
        await until(lambda: len(self.ready) >= count, deadline)

    def waits(self) -> list[float]:
        """Seconds from asking for a resource to its being Ready, sorted."""
        return sorted(at - self.created[key] for key, at in self.ready.items())

    def _path(self, kind: str) -> str:
        """Where the server has the resources of a kind."""
        return f"/apis/{API_VERSION}/namespaces/{TEAM}/{KINDS[kind]}"


_ENDLESS = aiohttp.ClientTimeout(total=None, sock_read=None)


def _is_ready(found: Json) -> bool:
    conditions = found.get("status", {}).get("conditions", ())
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


@contextlib.asynccontextmanager
async def client(server: ApiServer) -> AsyncIterator[Client]:
    """A client that watches both kinds."""
    connector = aiohttp.TCPConnector(
        limit=0,
        ssl=ssl.create_default_context(cafile=server.ca_file),
    )
    headers = {"Authorization": f"Bearer {server.token}"}
    async with aiohttp.ClientSession(connector=connector, headers=headers, read_bufsize=2**20) as session:
        found = Client(server, session)
        watching = [asyncio.create_task(found.watch(kind)) for kind in KINDS]
        try:
            yield found
        finally:
            for watch in watching:
                watch.cancel()
            await asyncio.gather(*watching, return_exceptions=True)


class Meter:
    """What processes take from now on: seconds of CPU."""

    def __init__(self, **processes: int) -> None:
        self._processes = {name: psutil.Process(pid) for name, pid in processes.items()}
        self._before = self._now()
        self._began = time.perf_counter()

    def _now(self) -> dict[str, float]:
        times = {name: process.cpu_times() for name, process in self._processes.items()}
        return {name: spent.user + spent.system for name, spent in times.items()}

    def spent(self) -> dict[str, float]:
        """Seconds of CPU by process."""
        now = self._now()
        return {name: now[name] - self._before[name] for name in now}

    def elapsed(self) -> float:
        """Seconds that passed."""
        return time.perf_counter() - self._began


def processes(server: ApiServer, operator: Deployed, broker: Server) -> Meter:
    """A meter of everybody."""
    assert operator.process is not None
    assert broker.process is not None
    return Meter(
        operator=operator.process.pid,
        apiserver=server.processes["kube-apiserver"].pid,
        etcd=server.processes["etcd"].pid,
        valkey=broker.process.pid,
        client=psutil.Process().pid,
    )


def told(requests: list[Request]) -> str:
    """How many requests of which sort."""
    counted = Counter(f"{request.verb} {request.resource}" for request in requests)
    return ", ".join(f"{count} {what}" for what, count in counted.most_common()) or "none"


async def create(server: ApiServer, operator: Deployed, broker: Server, count: int) -> None:
    """Creates everything at once, waits, and prints."""
    async with client(server) as person:
        manifests = [manifest for number in range(count) for manifest in a_pair(number)]
        position, meter = server.position, processes(server, operator, broker)
        await person.create(manifests)
        sent = meter.elapsed()
        await person.until_ready(2 * count, deadline=120)
        elapsed, spent, waits = meter.elapsed(), meter.spent(), person.waits()
    print(f"created       {count} pairs in {sent:.1f} s", end=", ")
    print(f"all Ready after {elapsed:.1f} s: {count / elapsed:.0f} pairs/s")
    p50, p99 = waits[len(waits) // 2], waits[len(waits) * 99 // 100]
    print(f"until Ready   p50 {p50:.2f} s, p99 {p99:.2f} s, the last {waits[-1]:.2f} s")
    own = spent.pop("operator")
    print(f"operator      {own:.2f} s of CPU, {1000 * own / count:.1f} ms per pair")
    others = ", ".join(f"{name} {seconds:.1f}" for name, seconds in spent.items())
    print(f"CPU of others {others} s")
    # what it still had to say
    await asyncio.sleep(5)
    writes = operator.writes(position)
    events = [request for request in writes if request.resource == "events"]
    failed = [request for request in operator.requests(position) if request.code >= 400]  # noqa: PLR2004
    print(f"API writes    {len(writes) / count:.2f} per pair: {told(writes)}; events posted: {len(events)}")
    print(f"refused       {told(failed)}")


async def idle(server: ApiServer, operator: Deployed, broker: Server, seconds: float) -> None:
    """Lets the operator be, and prints what it does nevertheless."""
    position, meter = server.position, processes(server, operator, broker)
    await asyncio.sleep(seconds)
    share, writes = meter.spent()["operator"] / meter.elapsed(), operator.writes(position)
    assert operator.process is not None
    memory = psutil.Process(operator.process.pid).memory_info().rss / 2**20
    print(f"doing nothing {share:.1%} of a CPU, API writes: {told(writes)}, memory {memory:.0f} MiB")


async def restart(server: ApiServer, operator: Deployed, count: int) -> None:
    """Kills the operator, starts it again, and prints what that takes."""
    operator.kill()
    position, began = server.position, time.perf_counter()
    operator.start()
    await operator.ready()
    ready = time.perf_counter() - began
    await operator.leading()
    leading = time.perf_counter() - began
    async with client(server) as person:
        await person.until_ready(2 * count, deadline=60)
        person.ready.clear()
        created = time.perf_counter()
        await person.create(a_pair(count))
        await person.until_ready(2, deadline=60)
        new = time.perf_counter() - created
    await asyncio.sleep(max(0.0, 15 - (time.perf_counter() - began)))
    names = {manifest["metadata"]["name"] for manifest in a_pair(count)}
    others = [r for r in operator.writes(position) if not any(name in r.name for name in names)]
    print(f"killed        ready {ready:.1f} s after its start, leading after {leading:.1f} s", end=", ")
    print(f"a new pair Ready in {new:.2f} s")
    print(f"API writes    for the others within 15 s: {told(others)}")


async def measure(server: ApiServer, broker: Server, directory: Path, count: int) -> None:
    """Runs everything with one operator."""
    server.create_namespace(HOME)
    server.create_namespace(TEAM)
    operator = Deployed(server, grant(server, HOME, ()), broker.url, directory)
    operator.start()
    try:
        await operator.leading()
        await create(server, operator, broker, count)
        await idle(server, operator, broker, seconds=20)
        await restart(server, operator, count)
    finally:
        operator.kill()


def main() -> None:
    """Parses the arguments, and starts and stops the servers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=1000, help="pairs (default 1000)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, private_server() as server:
        broker = Server(builds()[0], Path(directory))
        broker.start()
        try:
            asyncio.run(measure(server, broker, Path(directory), arguments.count))
        finally:
            broker.kill()


if __name__ == "__main__":
    main()
