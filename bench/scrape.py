"""What a scrape of the operator costs: how long its event loop stands, for so many groups.

Asks `/metrics` over HTTP from another process while a task looks how late the event loop calls it: once as it
is, and once with the same samples written by prometheus_client in the event loop.

    python bench/scrape.py [--groups 5000] [--scrapes 5]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.parser import text_string_to_metric_families

from agentstream_operator.plan.accounting import counters
from agentstream_operator.reconcile.report.figures import figures
from agentstream_operator.reconcile.report.metrics import OperatorHealth
from agentstream_operator.reconcile.state.index import ResourceIndex
from agentstream_operator.reconcile.state.live_access import LiveAccess
from agentstream_operator.reconcile.state.state import EngineOptions, State
from agentstream_operator.serve.http import Reply, serving
from agentstream_operator.serve.metrics import Metrics, MetricsSample
from agentstream_operator.serve.resource_metrics import resource_metrics
from support.figures import ACCOUNT, HISTORY, OBSERVED, a_status
from support.resources import TEMPLATE, a_group, a_stream

_TICK = 0.001


def filled(groups: int) -> State:
    """A state as after a measurement: streams with a group each, all of them busy."""
    state = State(EngineOptions(), ResourceIndex(), LiveAccess(None, "bench"))  # type: ignore[arg-type]
    now = asyncio.get_running_loop().time()
    for number in range(groups):
        group = a_group("coder", f"team-{number}", stream=f"s{number}", template=TEMPLATE)
        stream = a_stream(f"s{number}", f"team-{number}")
        state.resources.put(stream)
        state.resources.put(group)
        seen = msgspec.structs.replace(OBSERVED, digest=str(number))
        memory, of_group = state.memory.streams[stream.key], state.memory.groups[group.key]
        memory.seen = memory.shown = seen
        memory.seen_at, memory.history = now + 3600, HISTORY
        of_group.account = ACCOUNT
        of_group.counters = counters(seen, seen.groups["coder"])
        of_group.reported.status = a_status()
    return state


class Standing:
    """Looks how late the event loop is.

    Attributes:
        longest: seconds that it stood at most.
        total: seconds that it stood altogether.
    """

    def __init__(self) -> None:
        self.longest = self.total = 0.0

    async def watch(self) -> None:
        """Looks until cancelled."""
        while True:
            begun = time.perf_counter()
            await asyncio.sleep(_TICK)
            late = time.perf_counter() - begun - _TICK
            self.longest = max(self.longest, late)
            self.total += late


async def measure(name: str, reply: Callable[[], object], scrapes: int) -> None:
    """Scrapes, and prints what that cost."""
    worst, cpu, size = 0.0, 0.0, 0
    async with serving(0, {"/metrics": reply}) as port:  # type: ignore[dict-item]
        for _ in range(scrapes):
            standing = Standing()
            watching = asyncio.create_task(standing.watch())
            await asyncio.sleep(10 * _TICK)
            standing.longest, begun = 0.0, time.process_time()
            size = await _get(port)
            cpu += time.process_time() - begun
            watching.cancel()
            worst = max(worst, standing.longest)
    print(
        f"{name:<44} event loop stands {1000 * worst:6.1f} ms at most, "
        f"{cpu / scrapes:.2f} s of CPU, {size / 1e6:.1f} MB"
    )


async def _get(port: int) -> int:
    """Reads a scrape in another process, so that reading costs this one nothing. Returns its size."""
    program = (
        "import sys, urllib.request;"
        f"print(len(urllib.request.urlopen('http://127.0.0.1:{port}/metrics', timeout=120).read()))"
    )
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await child.communicate()
    return int(out)


class _Parsed:
    """The same samples as objects of prometheus_client."""

    def __init__(self, text: str) -> None:
        self._families = list(text_string_to_metric_families(text))

    def collect(self) -> Iterator[Metric]:
        yield from self._families


async def main() -> None:
    """Parses the arguments, and measures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--groups", type=int, default=5000, help="streams with a group each (default 5000)")
    parser.add_argument("--scrapes", type=int, default=5, help="scrapes of each kind (default 5)")
    arguments = parser.parse_args()
    # as the operator has it
    gc.set_threshold(50_000, 20, 100)
    state = filled(arguments.groups)
    health = OperatorHealth(outage=None, complete=True, waiting=0, oldest=0.0, round_trips=0)
    sample = MetricsSample(leads=True, health=health, requests={}, events={}, missed=0)
    registry = CollectorRegistry()
    registry.register(_Parsed(resource_metrics(await figures(state), each=True).decode()))

    def before() -> Reply:
        return 200, CONTENT_TYPE_LATEST, generate_latest(registry)

    begun = time.perf_counter()
    await figures(state)
    print(f"{'collecting, in the event loop':<44} {1000 * (time.perf_counter() - begun):.1f} ms")
    await measure("by prometheus_client in the event loop", before, arguments.scrapes)
    await measure("as it is", Metrics(lambda: sample, lambda: figures(state)).scrape, arguments.scrapes)


if __name__ == "__main__":
    asyncio.run(main())
