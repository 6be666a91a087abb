"""The examples of docs/messaging.md, as they are printed."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from agentstream.agent import Agent
from agentstream.protocol.keys import notify_channel
from agentstream.transport.client import Client
from support.topology import Topology, following
from support.waiting import until

PAGE = Path(__file__).parents[2] / "docs" / "messaging.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def page() -> dict[str, Any]:
    """What the examples define."""
    names: dict[str, Any] = {}
    for example in EXAMPLES:
        exec(compile(example, PAGE, "exec"), names)
    return names


@pytest.fixture
async def declared(topology: Topology) -> Topology:
    await topology.stream("news", "planner", broadcast=True)
    await topology.group("tasks", "coder", max_deliveries=1)
    for group in ("coder", "tester", "writer"):
        await topology.group("news", group, broadcast=True)
    return topology


@pytest.fixture
async def planner(declared: Topology) -> AsyncIterator[Agent]:
    async with declared.agent("planner") as agent:
        yield agent


async def test_order(declared: Topology, planner: Agent, page: dict[str, Any]) -> None:
    await page["report"](planner)
    async with declared.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        steps = []
        while len(steps) < 3:
            async with await following(deliveries) as delivery:
                steps.append((delivery.message.key, delivery.payload["step"]))
    assert steps == [("doc-7", step) for step in ("planned", "written", "reviewed")]


async def test_sending(
    declared: Topology, planner: Agent, wire: Client, page: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    await page["send"](planner)
    await page["send_some"](planner)
    await page["report_progress"](planner)
    assert capsys.readouterr().out.startswith("tasks ")
    assert await wire.call("XLEN", "{test.tasks}") == 103
    await wire.call("SET", "{test.tasks}:gate", 103)
    await page["report_progress"](planner)
    assert capsys.readouterr().out == "coder is behind: later\ndropped\n"


async def test_receipts(
    declared: Topology, planner: Agent, page: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    async def acknowledge(group: str) -> None:
        async with declared.agent(group) as agent, agent.stream_consume("news") as deliveries:
            async with asyncio.timeout(10), await anext(deliveries):
                pass

    announcing = asyncio.create_task(page["announce"](planner))
    await asyncio.gather(announcing, *(acknowledge(group) for group in ("coder", "tester", "writer")))
    assert capsys.readouterr().out == "acknowledged by all: ('coder', 'tester', 'writer')\n"
    announcing = asyncio.create_task(page["announce_to_most"](planner))
    await asyncio.gather(announcing, *(acknowledge(group) for group in ("coder", "tester")))
    assert capsys.readouterr().out == "outstanding: ('writer',)\n"


async def test_requests(declared: Topology, planner: Agent, page: dict[str, Any]) -> None:
    async with declared.agent("coder") as coder:
        answering = asyncio.create_task(page["answer"](coder))
        assert await page["ask"](planner) == 4
        coder.stop()
        await answering


async def test_notifications(declared: Topology, planner: Agent, wire: Client, page: dict[str, Any]) -> None:
    channel = notify_channel("agentstream", "test", "coder")

    async def is_heard() -> bool:
        return (await wire.call("PUBSUB", "NUMSUB", channel))[1] == 1

    async with declared.agent("coder") as coder:
        watching = asyncio.create_task(page["watch"](coder))
        await until(is_heard)
        assert await page["tell"](planner) == 1
        assert await watching == ["cache is stale", "the end"]
