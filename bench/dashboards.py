"""Draws what the Grafana dashboards show, of a real Prometheus that scrapes a real operator and real agents.

Meanwhile a story happens to the group `coder`: it keeps up; then it hangs, and its stream fills until it
takes nothing more; then it works through its backlog, and one message in ten dies. The group `reviewer` keeps
up.

    python bench/dashboards.py [--seconds 180] [--into docs/images]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import re
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import matplotlib as mpl
import msgspec
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from prometheus_client import CollectorRegistry, start_http_server

from agentstream import Backpressure, metrics
from agentstream.agent import Agent
from agentstream.identity.settings import Settings
from agentstream.transport.endpoint import Endpoint
from cluster.team import Team
from support.apiserver import private_server
from support.deployed import Deployed, grant
from support.helm import CHART
from support.prometheus import Prometheus, chart_rules
from support.servers import Server, builds
from support.waiting import until
from unit.resources.manifests import a_group, a_stream

HOME = "shop"
RATE = 40
WINDOW = "15s"
FULL = {"maxLength": 1_000, "minAge": "10s"}
VARIABLES = {"$__rate_interval": WINDOW, "$__range": WINDOW} | dict.fromkeys(
    ("$namespace", "$stream", "$group", "$agent"), ".+"
)

_THIRD_ACT = 0.6
DASHBOARDS = sorted((CHART / "dashboards").glob("*.json"))

Series = dict[str, list[tuple[float, float]]]
"""Points of time and value, by the legend of a line."""


class Story:
    """What happens, as a share of its length.

    Args:
        seconds: how long it takes.
    """

    def __init__(self, seconds: float) -> None:
        self._begun = time.monotonic()
        self._seconds = seconds

    @property
    def place(self) -> float:
        """How much of it is over."""
        return (time.monotonic() - self._begun) / self._seconds

    @property
    def errs(self) -> bool:
        """Whether the coder fails at some messages."""
        return self.place >= _THIRD_ACT

    def _work(self, stream: str) -> float:
        """Seconds that a message takes that is begun now."""
        hangs = stream == "tasks" and 0.25 < self.place < _THIRD_ACT  # noqa: PLR2004 - the second act
        return (_THIRD_ACT - self.place) * self._seconds if hangs else 0.01

    async def send(self, boss: Agent, to: str) -> None:
        """Sends at a steady rate; what a full stream refuses is not sent again."""
        number = 0
        while self.place < 1:
            number += 1
            with contextlib.suppress(Backpressure):
                await boss.send_message(to=to, type="event", payload={"n": number})
            await asyncio.sleep(1 / RATE)

    async def consume(self, agent: Agent, stream: str) -> None:
        """Handles messages until cancelled."""
        async for delivery in agent.stream_consume(stream):
            async with delivery:
                await asyncio.sleep(self._work(stream))
                if stream == "tasks" and self.errs and delivery.payload["n"] % 10 == 0:
                    await delivery.dead_letter("KeyError: 'price'")


@contextlib.asynccontextmanager
async def stage(directory: Path) -> AsyncIterator[tuple[Prometheus, Settings]]:
    """Starts all that takes part: an API server, Redis, the operator, Prometheus."""
    redis = Server(builds()[0], directory)
    registry = CollectorRegistry()
    metrics.register(registry)
    exporter, thread = start_http_server(0, "127.0.0.1", registry)
    with private_server() as server:
        redis.start()
        server.create_namespace(HOME)
        operator = Deployed(server, grant(server, HOME, (HOME,)), redis.url, directory, namespaces=(HOME,))
        prometheus = Prometheus(
            directory,
            {
                "agentstream-metrics": (operator.metrics_port, {"namespace": HOME, "pod": "agentstream-0"}),
                "agents": (exporter.server_port, {"namespace": HOME, "pod": "shop-0"}),
            },
            chart_rules(),
        )
        try:
            operator.start()
            await operator.leading()
            resources = (
                a_stream("tasks", producers=["boss"], retention=FULL),
                a_stream("reviews", producers=["boss"]),
                a_group("coder"),
                a_group("reviewer", streamRef={"name": "reviews"}),
            )
            team = Team(server, HOME)
            team.create(*resources)
            await team.ready(*resources)
            prometheus.start()
            yield prometheus, Settings(agent="boss", pod="boss-0", namespace=HOME, source=Endpoint(redis.url))
        finally:
            prometheus.stop()
            operator.kill()
            redis.kill()
            exporter.shutdown()
            exporter.server_close()
            thread.join()


async def play(settings: Settings, seconds: float) -> None:
    """Lets the story happen."""
    story = Story(seconds)
    async with contextlib.AsyncExitStack() as stack:

        async def agent(name: str) -> Agent:
            own = msgspec.structs.replace(settings, agent=name, pod=f"{name}-0")
            return await stack.enter_async_context(Agent.connect(own))

        boss, coder, reviewer = [await agent(name) for name in ("boss", "coder", "reviewer")]
        consuming = [
            asyncio.create_task(story.consume(coder, "tasks")),
            asyncio.create_task(story.consume(reviewer, "reviews")),
        ]
        await asyncio.gather(story.send(boss, "coder"), story.send(boss, "reviewer"))
        for task in consuming:
            task.cancel()
        await asyncio.gather(*consuming, return_exceptions=True)


async def series(prometheus: Prometheus, panel: dict[str, Any], begun: float, ended: float) -> Series:
    """Asks for all lines of a panel."""
    lines: Series = {}
    for target in panel["targets"]:
        expression = target["expr"]
        for variable, value in VARIABLES.items():
            expression = expression.replace(variable, value)
        found = await prometheus.get(
            "query_range", query=expression, start=str(begun), end=str(ended), step="1"
        )
        for one in found["result"]:
            legend = target["legendFormat"]
            for name in re.findall(r"\{\{(\w+)\}\}", legend):
                legend = legend.replace(f"{{{{{name}}}}}", one["metric"].get(name, ""))
            lines[legend] = [(float(at), float(value)) for at, value in one["values"]]
    return lines


def draw(axes: Axes, panel: dict[str, Any], lines: Series, begun: float) -> None:
    """Draws a panel over the seconds since the beginning; one without lines says that it is empty."""
    axes.set_title(panel["title"], loc="left", fontsize=10, fontweight="bold")
    percent = panel["fieldConfig"]["defaults"]["unit"] == "percentunit"
    for legend, points in sorted(lines.items()):
        known = [(at, value * (100 if percent else 1)) for at, value in points if math.isfinite(value)]
        if known:
            times, values = zip(*known, strict=True)
            axes.plot([at - begun for at in times], values, label=legend, linewidth=1.4)
    if axes.has_data():
        axes.legend(fontsize=6, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=3, frameon=False)
    else:
        axes.text(0.5, 0.5, "No data", ha="center", va="center", transform=axes.transAxes, color="gray")
    unit = {"percentunit": "%", "s": "s", "bytes": "bytes", "ops": "/s", "cps": "/s"}
    axes.set_ylabel(unit.get(panel["fieldConfig"]["defaults"]["unit"], ""), fontsize=8)
    axes.set_ylim(bottom=0)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.25)


async def picture(prometheus: Prometheus, path: Path, begun: float, ended: float) -> Figure:
    """Draws a dashboard, two panels in a row as in Grafana."""
    page = json.loads(await asyncio.to_thread(path.read_text))
    rows = math.ceil(len(page["panels"]) / 2)
    figure = Figure(figsize=(12, 2.7 * rows), layout="constrained")
    figure.suptitle(page["title"], x=0.01, ha="left", fontsize=13)
    for place, panel in enumerate(page["panels"]):
        lines = await series(prometheus, panel, begun, ended)
        draw(figure.add_subplot(rows, 2, place + 1), panel, lines, begun)
    return figure


async def main(seconds: float, into: Path) -> None:
    """Plays the story, and draws it."""
    mpl.rcParams["axes.spines.top"] = mpl.rcParams["axes.spines.right"] = False
    with tempfile.TemporaryDirectory() as directory:
        async with stage(Path(directory)) as (prometheus, settings):
            await until(lambda: _scraped(prometheus), timeout=60)
            begun = time.time()
            await play(settings, seconds)
            for path in DASHBOARDS:
                figure = await picture(prometheus, path, begun, time.time())
                figure.savefig(into / f"dashboard-{path.stem}.png", dpi=80)
                print(into / f"dashboard-{path.stem}.png")


async def _scraped(prometheus: Prometheus) -> bool:
    return bool(await prometheus.query("agentstream_group_backlog"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=180, help="how long the story is")
    parser.add_argument("--into", type=Path, default=Path("docs/images"), help="a folder for the pictures")
    given = parser.parse_args()
    asyncio.run(main(given.seconds, given.into))
