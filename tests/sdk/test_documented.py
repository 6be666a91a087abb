"""The examples of docs/handlers.md, docs/messaging.md and docs/web-applications.md, as they are printed."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from agentstream.agent import Agent
from agentstream.protocol.keys import notify_channel
from agentstream.transport.client import Client
from agentstream_operator.resources.agentstream import AgentStream
from agentstream_operator.resources.parse import parse_resource
from support.replays import replay_all
from support.topology import NAMESPACE, Topology, following
from support.waiting import until

PAGE = Path(__file__).parents[2] / "docs" / "handlers.md"
TEXT = PAGE.read_text(encoding="utf-8")
Printed = pytest.CaptureFixture[str]


@pytest.fixture
def page() -> Iterator[ModuleType]:
    """What the examples define."""
    module = ModuleType("documented_handlers")
    sys.modules[module.__name__] = module
    for example in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL):
        exec(compile(example, PAGE, "exec"), module.__dict__)
    yield module
    del sys.modules[module.__name__]


@pytest.fixture
async def declared(topology: Topology) -> Topology:
    await topology.group("tasks", "coder")
    return topology


@asynccontextmanager
async def serving(declared: Topology, serve: Callable[[Agent], Awaitable[None]]) -> AsyncIterator[Agent]:
    """The planner, while the coder's handlers run."""
    async with declared.agent("coder") as coder, declared.agent("planner") as planner:
        at_work = asyncio.create_task(serve(coder))
        yield planner
        coder.stop()
        await at_work


async def settled(declared: Topology, count: int) -> None:
    await until(lambda: declared.settled(declared.routes["coder"].consumes[0], count))


async def test_the_first_handlers(declared: Topology, page: ModuleType, capsys: Printed) -> None:
    async with serving(declared, page.serve) as planner:
        answer = await planner.request(to="coder", payload=page.Plan(doc=7))
        assert answer.payload == {"pages": 14}
        await planner.send_message(to="coder", type="event", payload={"what": "a change"})
        await settled(declared, 2)
    assert capsys.readouterr().out == "noted a change\n"


async def test_batches(declared: Topology, page: ModuleType) -> None:
    store: list[str] = []
    async with serving(declared, lambda agent: page.index(agent, store)) as planner:
        for text in ("a", "", "b"):
            await planner.send_message(to="coder", type="event", payload={"text": text})
        await settled(declared, 3)
    assert store == ["a", "b"]
    (record,) = await declared.dead_letters(declared.routes["coder"].consumes[0])
    assert record["reason"] == b"EmptyText"


async def test_replays(declared: Topology, page: ModuleType, wire: Client) -> None:
    charged: list[dict[str, int]] = []
    mailed: list[dict[str, int]] = []
    charging = partial(page.charging, charge=charged.append, mail=mailed.append)
    async with serving(declared, charging) as planner:
        await planner.send_message(to="coder", type="event", payload={"order": 7})
        await settled(declared, 1)
        assert await replay_all(wire, declared.routes["coder"].consumes[0]) == 1
        await settled(declared, 1)
    assert charged == mailed == [{"order": 7}]


async def test_kinds_of_payload(declared: Topology, page: ModuleType, capsys: Printed) -> None:
    async with serving(declared, page.begin_or_cancel) as planner:
        for task in (page.Begin(7), page.Cancel("enough")):
            await planner.send_message(to="coder", type="task_request", payload=task)
        await settled(declared, 2)
    assert sorted(capsys.readouterr().out.splitlines()) == ["begin 7", "cancel: enough"]


async def test_versions(declared: Topology, page: ModuleType, capsys: Printed) -> None:
    async with serving(declared, page.serve_orders) as planner:
        await planner.send_message(to="coder", type="task_request", payload={"doc": 1})
        await planner.send_message(to="coder", type="task_request", payload=page.Order(document=2))
        await settled(declared, 2)
    assert sorted(capsys.readouterr().out.splitlines()) == ["document 1", "document 2"]


def test_contracts(page: ModuleType, capsys: Printed) -> None:
    (manifest,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    stream = parse_resource(yaml.safe_load(manifest))
    assert isinstance(stream, AgentStream)
    (contract,) = stream.spec.contracts
    assert contract.problem is None
    page.show()
    shown: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (shown["type"], shown["$defs"]["Plan"]["required"]) == ("object", ["doc"])


MESSAGING = Path(__file__).parents[2] / "docs" / "messaging.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", MESSAGING.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def messaging() -> dict[str, Any]:
    """What the examples define."""
    names: dict[str, Any] = {}
    for example in EXAMPLES:
        exec(compile(example, MESSAGING, "exec"), names)
    return names


@pytest.fixture
async def channels(topology: Topology) -> Topology:
    await topology.stream("news", "planner", broadcast=True)
    await topology.group("tasks", "coder", max_deliveries=1)
    for group in ("coder", "tester", "writer"):
        await topology.group("news", group, broadcast=True)
    return topology


@pytest.fixture
async def planner(channels: Topology) -> AsyncIterator[Agent]:
    async with channels.agent("planner") as agent:
        yield agent


async def test_order(channels: Topology, planner: Agent, messaging: dict[str, Any]) -> None:
    await messaging["report"](planner)
    async with channels.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        steps = []
        while len(steps) < 3:
            async with await following(deliveries) as delivery:
                steps.append((delivery.message.key, delivery.payload["step"]))
    assert steps == [("doc-7", step) for step in ("planned", "written", "reviewed")]


async def test_sending(
    channels: Topology,
    planner: Agent,
    wire: Client,
    messaging: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    await messaging["send"](planner)
    await messaging["send_some"](planner)
    await messaging["report_progress"](planner)
    assert capsys.readouterr().out.startswith("tasks ")
    assert await wire.call("XLEN", "{test.tasks}") == 103
    await wire.call("SET", "{test.tasks}:gate", 103)
    await messaging["report_progress"](planner)
    assert capsys.readouterr().out == "coder is behind: later\ndropped\n"


async def test_receipts(
    channels: Topology, planner: Agent, messaging: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    async def acknowledge(group: str) -> None:
        async with channels.agent(group) as agent, agent.stream_consume("news") as deliveries:
            async with asyncio.timeout(10), await anext(deliveries):
                pass

    announcing = asyncio.create_task(messaging["announce"](planner))
    await asyncio.gather(announcing, *(acknowledge(group) for group in ("coder", "tester", "writer")))
    assert capsys.readouterr().out == "acknowledged by all: ('coder', 'tester', 'writer')\n"
    announcing = asyncio.create_task(messaging["announce_to_most"](planner))
    await asyncio.gather(announcing, *(acknowledge(group) for group in ("coder", "tester")))
    assert capsys.readouterr().out == "outstanding: ('writer',)\n"


async def test_requests(channels: Topology, planner: Agent, messaging: dict[str, Any]) -> None:
    async with channels.agent("coder") as coder:
        answering = asyncio.create_task(messaging["answer"](coder))
        assert await messaging["ask"](planner) == 4
        coder.stop()
        await answering


async def test_notifications(
    channels: Topology, planner: Agent, wire: Client, messaging: dict[str, Any]
) -> None:
    channel = notify_channel("agentstream", "test", "coder")

    async def is_heard() -> bool:
        return (await wire.call("PUBSUB", "NUMSUB", channel))[1] == 1

    async with channels.agent("coder") as coder:
        watching = asyncio.create_task(messaging["watch"](coder))
        await until(is_heard)
        assert await messaging["tell"](planner) == 1
        assert await watching == ["cache is stale", "the end"]


WEB = Path(__file__).parents[2] / "docs" / "web-applications.md"


@pytest.fixture
def web(declared: Topology, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the examples define, where the environment names the coder."""
    environ = {"URL": declared.url, "NAMESPACE": NAMESPACE, "AGENT": "coder"}
    for name, value in environ.items():
        monkeypatch.setenv(f"AGENTSTREAM_{name}", value)
    names: dict[str, Any] = {}
    for example in re.findall(r"```python\n(.*?)```", WEB.read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(example, WEB, "exec"), names)
    return names


async def test_a_lifespan(declared: Topology, web: dict[str, Any]) -> None:
    async with declared.agent("planner") as planner:
        async with web["lifespan"](None) as state:
            answer = await planner.request(to="coder", payload={"doc": 7})
            assert await web["is_ready"](state["agent"]) == 200
        assert await web["is_ready"](state["agent"]) == 503
    assert answer.payload == {"pages": 14}
    assert await declared.settled(declared.routes["coder"].consumes[0], 1)


async def test_a_worker_without_an_event_loop(declared: Topology, web: dict[str, Any]) -> None:
    coder = web["SyncAgent"].from_env()
    coder.on("task_request")(lambda task: {"pages": task["doc"]})
    entered = await asyncio.to_thread(web["start"], coder)
    try:
        async with declared.agent("planner") as planner:
            answer = await planner.request(to="coder", payload={"doc": 7})
    finally:
        await asyncio.to_thread(entered.close)
    assert answer.payload == {"pages": 7}
    assert await declared.settled(declared.routes["coder"].consumes[0], 1)
