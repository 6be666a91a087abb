"""What agents count, on real servers, as Prometheus is told it; and that the page about it is right."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client import REGISTRY, CollectorRegistry

from agentstream import Backpressure, NoRoute, OutgoingMessage, Reject, Retry
from agentstream.agent import Agent
from agentstream.errors import EffectInDoubt
from agentstream.telemetry import health, metrics
from agentstream.telemetry.counters import BOUNDS, Counters, Histogram
from agentstream.telemetry.metrics import FAMILIES
from agentstream.testing import Faults
from agentstream.transport.client import Client
from support.probes import ask
from support.servers import free_port
from support.topology import Topology, following
from support.waiting import until

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
ROW = re.compile(r"^\| `(agentstream_client_\w+)` \| (\w+) \| (.*?)\| (.+) \|$", re.MULTILINE)


@pytest.fixture
async def topology(topology: Topology) -> Topology:
    """`planner` produces to `tasks`, which `coder` consumes."""
    await topology.group("tasks", "coder", max_deliveries=2)
    return topology


class Told:
    """What a registry tells, and how much more that is than at first."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        metrics.register(self._registry)
        self._before = self._all()

    def __call__(self, agent: str, name: str, **labels: str) -> float:
        key = (
            f"agentstream_client_{name}",
            frozenset({"namespace": "test", "agent": agent, **labels}.items()),
        )
        return self._all().get(key, 0.0) - self._before.get(key, 0.0)

    def _all(self) -> dict[tuple[str, frozenset[Any]], float]:
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in self._registry.collect()
            for sample in family.samples
        }


@pytest.fixture
def told() -> Told:
    return Told()


TASKS = {"stream": "tasks"}
CODER = {"stream": "tasks", "group": "coder"}


async def test_what_is_sent_is_counted(topology: Topology, wire: Client, told: Told) -> None:
    async with topology.agent("planner") as planner:
        await planner.send_message(to="coder", type="event", payload={})
        await planner.send_many(OutgoingMessage(to="coder", type="event", payload={}) for _ in range(2))
        await wire.call("SET", "{test.tasks}:gate", 0)
        with pytest.raises(Backpressure):
            await planner.send_message(to="coder", type="event", payload={}, on_full="raise")
        await planner.send_message(to="coder", type="event", payload={}, on_full="shed")
        with pytest.raises(NoRoute):
            await planner.send_message(to="nobody", type="event", payload={}, timeout=0.05)
        assert told("planner", "send_seconds_count", **TASKS) == 3
        assert 0 < told("planner", "send_seconds_sum", **TASKS) < 3
        assert told("planner", "send_seconds_bucket", **TASKS, le="1800") == 3
        assert told("planner", "send_seconds_bucket", **TASKS, le="+Inf") == 3
        assert told("planner", "send_refused_total", **TASKS, error="Backpressure") == 2
        assert told("planner", "send_failed_total", error="Backpressure") == 1
        assert told("planner", "send_failed_total", error="NoRoute") == 1
        assert told("planner", "shed_total", **TASKS) == 1
    # it has ended, and what it counted has not
    assert told("planner", "send_seconds_count", **TASKS) == 3


async def test_many_that_find_no_room_are_counted(topology: Topology, wire: Client, told: Told) -> None:
    await wire.call("SET", "{test.tasks}:gate", 0)
    async with topology.agent("planner") as planner:
        await planner.send_many([])
        sending = asyncio.create_task(
            planner.send_many([OutgoingMessage(to="coder", type="event", payload={})], timeout=10)
        )
        await until(lambda: told("planner", "send_refused_total", **TASKS, error="Backpressure") >= 1)
        await wire.call("DEL", "{test.tasks}:gate")
        await sending


async def test_what_is_handled_is_counted_by_how_it_ended(topology: Topology, told: Told) -> None:
    async with topology.agent("planner") as planner, topology.agent("coder") as coder:
        for how in ("ends", "again", "rejected", "released", "foreign"):
            addressee = {"stream": "tasks", "to": "coder"}
            await planner.send_message(type="event", payload={"how": how}, **addressee)  # type: ignore[arg-type]
        async with coder.stream_consume("tasks", concurrency=1) as deliveries:
            released = False
            for _ in range(7):
                async with await following(deliveries) as delivery:
                    how = delivery.payload["how"]
                    if how == "again":
                        raise Retry(after=0)
                    if how == "rejected":
                        raise Reject("a reason of its own, of which there may be any number")
                    if how == "released" and not released:
                        released = await delivery.release()
            assert told("coder", "received_total", **CODER) >= 7
        outcomes = [
            ("acked", "", 3),
            ("retried", "", 1),
            ("released", "", 1),
            ("dead", "Rejected", 1),
            ("dead", "MaxDeliveries", 1),
        ]
        for outcome, reason, count in outcomes:
            assert told("coder", "settled_total", **CODER, outcome=outcome, reason=reason) == count
        assert told("coder", "handler_seconds_count", **CODER) == 7


async def test_what_is_for_others_is_counted_as_skipped(topology: Topology, told: Told) -> None:
    await topology.group("tasks", "tester")
    async with topology.agent("planner") as planner, topology.agent("tester") as tester:
        await planner.send_message(to="coder", type="event", payload={})
        asking = asyncio.create_task(anext(tester.stream_consume("tasks")))
        labels = {"stream": "tasks", "group": "tester", "outcome": "skipped", "reason": ""}
        await until(lambda: told("tester", "settled_total", **labels) == 1)
        tester.stop()
        await asyncio.gather(asking, return_exceptions=True)


async def test_what_is_held_is_told(topology: Topology, told: Told) -> None:
    async with topology.agent("planner") as planner, topology.agent("coder") as coder:
        await planner.send_many(OutgoingMessage(to="coder", type="event", payload={}) for _ in range(5))
        async with coder.stream_consume("tasks", concurrency=4) as deliveries:
            in_hand = [await following(deliveries) for _ in range(2)]
            await until(lambda: told("coder", "held", **CODER, state="buffered") > 0)
            assert told("coder", "held", **CODER, state="running") == 2
            assert [await delivery.ack() for delivery in in_hand] == [True, True]
        assert told("coder", "held", **CODER, state="running") == 0


async def test_what_is_lost_is_counted(topology: Topology, wire: Client, told: Told) -> None:
    group = await topology.group("tasks", "slow", lease=300)
    async with topology.agent("planner") as planner, topology.agent("slow") as slow:
        await planner.send_message(stream="tasks", type="event", payload={})
        delivery = await following(slow.stream_consume("tasks"))
        ((entry, _, _, _),) = await topology.pending(group)
        await wire.call("XCLAIM", group.key, "slow", "thief", 0, entry)
        labels = {"stream": "tasks", "group": "slow"}
        await until(lambda: told("slow", "leases_lost_total", **labels) == 1)
        assert not await delivery.ack()
        assert told("slow", "settled_total", **labels, outcome="lost", reason="") == 1


async def test_effects_in_doubt_are_counted(topology: Topology, told: Told) -> None:
    async with topology.agent("planner") as planner, topology.agent("coder") as coder:
        await planner.send_message(to="coder", type="event", payload={})
        delivery = await following(coder.stream_consume("tasks"))
        await delivery.once("charge").__aenter__()
        with pytest.raises(EffectInDoubt):
            await delivery.once("charge").__aenter__()
    assert told("coder", "once_in_doubt_total", **CODER) == 1


async def test_what_a_slow_listener_misses_is_counted(topology: Topology, wire: Client, told: Told) -> None:
    async with topology.agent("planner") as planner, topology.agent("coder") as coder:
        notes = coder.notifications(buffer=1)
        await until(lambda: _heard(planner))
        await planner.notify("coder", {})
        await until(lambda: told("coder", "notifications_dropped_total") >= 1)
        assert notes.dropped == told("coder", "notifications_dropped_total")


async def _heard(planner: Agent) -> bool:
    return await planner.notify("coder", {}) == 1


async def test_what_the_network_does_is_counted(proxy: Faults, topology: Topology, told: Told) -> None:
    async with topology.agent("planner", url=proxy.url) as planner:
        await planner.send_message(to="coder", type="event", payload={})
        proxy.lose_reply("as1_add")
        await planner.send_message(to="coder", type="event", payload={})
        assert told("planner", "send_repeated_total", **TASKS) >= 1
        assert told("planner", "reconnects_total", connection="write") >= 1


async def test_the_port_for_probes_tells_the_metrics(topology: Topology) -> None:
    port = free_port()
    settings = msgspec.structs.replace(topology.settings("planner"), health_port=port)
    async with Agent.connect(settings) as planner:
        await planner.send_message(to="coder", type="event", payload={})
        status, text = await asyncio.to_thread(ask, port, "/metrics")
        assert status == 200
        assert re.search(
            r'^agentstream_client_send_seconds_count\{agent="planner",namespace="test",stream="tasks"\} \d',
            text,
            re.MULTILINE,
        )
        assert "python_info" in text
        assert (await asyncio.to_thread(ask, port, "/metrics", "HEAD"))[1] == ""
        assert (await asyncio.to_thread(ask, port, "/metrics", "POST"))[0] == 404


async def test_a_collector_that_fails_is_told(topology: Topology, caplog: pytest.LogCaptureFixture) -> None:
    class Failing:
        def describe(self) -> list[Any]:
            return []

        def collect(self) -> list[Any]:
            raise LookupError("as ever")

    failing = Failing()
    REGISTRY.register(failing)  # type: ignore[arg-type]
    try:
        assert health._metrics("Host: x\r\nAccept: text/plain")[0] == 500
    finally:
        REGISTRY.unregister(failing)  # type: ignore[arg-type]
    assert "as ever" in caplog.text


def test_openmetrics_is_told_to_who_asks_for_it() -> None:
    status, kind, body = health._metrics("Accept: application/openmetrics-text; version=1.0.0")
    assert (status, kind.partition(";")[0]) == (200, "application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


WITHOUT = """
import sys
sys.modules["prometheus_client"] = None
from agentstream.telemetry import health
status, _, text = health._metrics("")
print(status, text.decode().strip())
listening = health._Listener(0)
listening.close()
"""


def test_without_the_package_it_is_said_what_to_install() -> None:
    command = [sys.executable, "-W", "error", "-c", WITHOUT]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.stderr == ""
    assert ended.stdout == "404 metrics need prometheus_client: install agentstream[metrics]\n"


def test_a_registry_is_told_once() -> None:
    registry = CollectorRegistry()
    metrics.register(registry)
    metrics.register(registry)
    assert len({family.name for family in registry.collect()}) == len(FAMILIES)
    metrics.register()
    metrics.register()
    assert len([f for f in REGISTRY.collect() if f.name == "agentstream_client_received"]) == 1


def test_the_page_has_what_is_told() -> None:
    rows = {
        name: (kind, tuple(re.findall(r"`(\w+)`", labels)))
        for name, kind, labels, _ in ROW.findall(PAGE.read_text(encoding="utf-8"))
    }
    assert rows == {family.name: (family.kind.value, family.labels) for family in FAMILIES}


def test_the_example_of_the_page_runs() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(example, PAGE, "exec"), names)
    assert "# TYPE agentstream_client_settled_total counter" in names["exposition"]()


def test_a_histogram_counts_up_to_its_bounds() -> None:
    histogram = Histogram()
    for seconds in (0.0, BOUNDS[0], BOUNDS[0] * 1.01, BOUNDS[-1], BOUNDS[-1] + 1):
        histogram.observe(seconds)
    assert (histogram.counts[0], histogram.counts[1], histogram.counts[-2], histogram.counts[-1]) == (
        2,
        1,
        1,
        1,
    )
    both = Counters()
    both.histogram("x", "y").observe(1.0)
    other = Counters()
    other.histogram("x", "y").observe(2.0)
    other.add("n", "l", count=3)
    both.absorb(other)
    both.absorb(other)
    assert (both.of("n", "l"), both.histogram("x", "y").total) == (6, 5.0)
