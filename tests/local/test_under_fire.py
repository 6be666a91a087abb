"""Nothing is lost under fire: consumers are killed every second, and the server once, at full load."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from pathlib import Path

import psutil
import pytest

from agentstream import Agent
from agentstream.identity.settings import Settings
from support.dev import Dev, a_group, a_stream
from support.waiting import until

WINDOW = 500
CONSUMERS = "replicas: 4\n  startFrom: Beginning\n  delivery: {lease: 2s}"
SINK = """
import asyncio, os
from agentstream import Agent

async def main() -> None:
    handled = os.open("handled", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    async def handle(deliveries) -> None:
        async for delivery in deliveries:
            async with delivery:
                os.write(handled, b"%d\\n" % delivery.message.payload["number"])

    async with Agent.from_env() as agent, asyncio.TaskGroup() as tasks:
        deliveries = agent.stream_consume("load", concurrency=400)
        for _ in range(100):
            tasks.create_task(handle(deliveries))

asyncio.run(main())
"""


def handled(folder: Path) -> Counter[int]:
    """How often each number was handled."""
    path = folder / "handled"
    return Counter(map(int, path.read_text().split())) if path.exists() else Counter()


async def send(agent: Agent, numbers: range) -> None:
    await asyncio.gather(
        *(agent.send_message(to="sink", type="event", payload={"number": n}, timeout=60) for n in numbers)
    )


async def kill_consumers(dev: Dev, killed: list[int]) -> None:
    """Kills one consumer every second, the longest running one first."""
    while True:
        await asyncio.sleep(1)
        # one that ends meanwhile needs no killing
        with contextlib.suppress(psutil.NoSuchProcess):
            consumers = [process for process in dev.remember() if "sink.py" in process.cmdline()]
            if consumers:
                oldest = min(consumers, key=lambda process: process.create_time())
                oldest.kill()
                killed.append(oldest.pid)


async def test_killed_consumers_and_a_killed_server_lose_nothing(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    messages = 100_000 if request.config.getoption("full") else 30_000
    (tmp_path / "sink.py").write_text(SINK)
    (tmp_path / "m.yaml").write_text(
        a_stream("load", "producers: [source]")
        + a_group("sink", "load", "python", "sink.py", scale=CONSUMERS)
    )
    dev = Dev(tmp_path)
    killed: list[int] = []
    try:
        await dev.start("m.yaml", "--output", "json", measured=False)
        await dev.ready()
        binding = tmp_path / ".agentstream" / "bindings" / "default.source"
        async with Agent.connect(Settings.from_env({"AGENTSTREAM_BINDING": str(binding)})) as source:
            killing = asyncio.create_task(kill_consumers(dev, killed))
            try:
                for start in range(0, messages, WINDOW):
                    if start == messages // 2:
                        dev.server().kill()
                    await send(source, range(start, start + WINDOW))
                await until(lambda: len(handled(tmp_path)) == messages, timeout=120)
            finally:
                killing.cancel()
                await asyncio.gather(killing, return_exceptions=True)
        code = await dev.end()
    finally:
        await dev.close()
    counts = handled(tmp_path)
    duplicates = sum(counts.values()) - len(counts)
    print(f"{messages} sent, {len(killed)} consumers killed, {duplicates} handled twice; {dev.summary}")  # noqa: T201 - duplicates are allowed, and to be shown
    assert set(counts) == set(range(messages))
    assert killed
    assert dev.summary["total"]["deadLettered"] == 0
    assert dev.summary["total"]["lost"] == 0
    assert code == 0
