"""How fast the metrics server answers for many groups, and what that costs.

The server is a process of its own on a real API server, with a real Redis or Valkey. It is asked directly, as
the aggregator asks it: with a front proxy's certificate, over connections that stay, for one who has to have
the right; then through the aggregator. Everything shares the processors of this machine.

    python bench/external_metrics.py [--groups 1000] [--seconds 10] [--connections 8]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import ssl
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.apiserver import ApiServer, private_server
from support.metrics_server import ROOT, MetricsServer
from support.servers import Server, builds
from support.waiting import until

TEAM = "team"
CALLER = {
    "X-Remote-User": "system:serviceaccount:kube-system:horizontal-pod-autoscaler",
    "X-Remote-Group": "system:serviceaccounts:kube-system",
}
_PER_STREAM = 4


def declare(server: ApiServer, groups: int) -> None:
    """Makes streams, each with some groups."""
    path = f"/apis/agentstream.dev/v1alpha1/namespaces/{TEAM}"
    for number in range(groups):
        stream = f"s{number // _PER_STREAM}"
        if number % _PER_STREAM == 0:
            server.expect("POST", f"{path}/agentstreams", _resource("AgentStream", stream, {}))
        spec = {"streamRef": {"name": stream}}
        server.expect("POST", f"{path}/consumergroups", _resource("ConsumerGroup", f"g{number}", spec))


def fill(redis: Server, groups: int) -> None:
    """Puts the groups on the server, each with a message that waits."""
    with redis.admin() as client, client.pipeline(transaction=False) as pipe:
        for number in range(groups):
            key = f"{{{TEAM}.s{number // _PER_STREAM}}}"
            pipe.xgroup_create(key, f"g{number}", "$", mkstream=True)
        for number in range(0, groups, _PER_STREAM):
            pipe.xadd(f"{{{TEAM}.s{number // _PER_STREAM}}}", {"m": "{}"})
        pipe.execute()


def _resource(kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "agentstream.dev/v1alpha1",
        "kind": kind,
        "metadata": {"name": name},
        "spec": spec,
    }


class Load:
    """Questions about one group after the other, and how they were answered.

    Attributes:
        codes: answers by HTTP status.
        wrong: answers with a number that is none of the group's.
        times: seconds that each answer took.
    """

    def __init__(self, groups: int) -> None:
        self._groups = groups
        self._next = 0
        self.codes: Counter[int] = Counter()
        self.wrong = 0
        self.times: list[float] = []

    async def ask(self, session: aiohttp.ClientSession, base: str, until_then: float) -> None:
        """Asks until a moment of the steady clock."""
        while time.perf_counter() < until_then:
            number = self._next = (self._next + 1) % self._groups
            selector = f"group=g{number},stream=s{number // _PER_STREAM}"
            url = f"{base}{ROOT}/namespaces/{TEAM}/agentstream-backlog"
            begun = time.perf_counter()
            async with session.get(url, params={"labelSelector": selector}) as answer:
                body = await answer.read()
            self.times.append(time.perf_counter() - begun)
            self.codes[answer.status] += 1
            if answer.ok:
                self.wrong += json.loads(body)["items"][0]["value"] != "1"

    def say(self, what: str, seconds: float, cpu: float) -> None:
        """Prints what came of it."""
        times = sorted(self.times)
        p50, p99 = (1000 * times[int(len(times) * part)] for part in (0.5, 0.99))
        rate = len(times) / seconds
        print(
            f"{what:<28} {rate:7.0f}/s  p50 {p50:6.2f} ms  p99 {p99:6.2f} ms  "
            f"{100 * cpu / seconds:3.0f} % of a core, {len(times) / cpu:.0f} per second of it  "
            f"{dict(self.codes)}  wrong {self.wrong}"
        )


async def measure(
    what: str, load: Load, base: str, process: psutil.Process, options: Any, **more: Any
) -> None:
    """Asks for some seconds."""
    connector = aiohttp.TCPConnector(ssl=more.pop("tls"), limit=options.connections)
    async with aiohttp.ClientSession(connector=connector, **more) as session:
        warm = Load(options.groups)
        await asyncio.gather(
            *(warm.ask(session, base, time.perf_counter() + 1) for _ in range(options.connections))
        )
        before, begun = _cpu(process), time.perf_counter()
        end = begun + options.seconds
        await asyncio.gather(*(load.ask(session, base, end) for _ in range(options.connections)))
        load.say(what, time.perf_counter() - begun, _cpu(process) - before)


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


@contextmanager
def site(options: Any) -> Iterator[tuple[ApiServer, MetricsServer]]:
    """An API server with the groups, and the metrics server."""
    with tempfile.TemporaryDirectory() as directory, private_server() as server:
        redis = Server(builds()[0], Path(directory))
        redis.start()
        for name in (TEAM, "metrics"):
            server.create_namespace(name)
        declare(server, options.groups)
        fill(redis, options.groups)
        metrics = MetricsServer(server, "metrics", redis.url, Path(directory))
        metrics.install()
        metrics.start()
        try:
            yield server, metrics
        finally:
            metrics.kill()
            redis.kill()


async def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--groups", type=int, default=1_000)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--connections", type=int, default=8)
    options = parser.parse_args()
    with site(options) as (server, metrics):
        await metrics.ready()
        known = f"\nagentstream_external_groups {float(options.groups)}\n"
        await until(lambda: known in metrics.probe("/metrics")[1], timeout=60)
        assert metrics.process is not None
        process = psutil.Process(metrics.process.pid)
        tls = metrics.client(server.directory / "front-proxy")
        base = f"https://localhost:{metrics.port}"
        print(f"{options.groups} groups, {options.connections} connections, {options.seconds:.0f} s each")
        await measure("asked directly", Load(options.groups), base, process, options, tls=tls, headers=CALLER)
        admin = {"Authorization": f"Bearer {server.token}"}
        trusted = ssl.create_default_context(cafile=server.ca_file)
        load = Load(options.groups)
        await measure(
            "through the API server", load, server.url, process, options, tls=trusted, headers=admin
        )
        print(f"memory of the metrics server {process.memory_info().rss / 2**20:.0f} MiB")
        reviews = [
            line for line in metrics.probe("/metrics")[1].splitlines() if "access_reviews_total{" in line
        ]
        print("\n".join(reviews))


if __name__ == "__main__":
    asyncio.run(main())
