"""Nothing is lost under fire: consumers are killed every second, and the server once, at full load."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections import Counter
from pathlib import Path
from textwrap import dedent

import psutil

from agentstream import Agent
from agentstream.settings import Settings
from support.waiting import until

MESSAGES = 100_000
WINDOW = 500
MANIFESTS = """
apiVersion: agentstream.dev/v1alpha1
kind: AgentStream
metadata: {name: load, namespace: fire}
spec: {producers: [source]}
---
apiVersion: agentstream.dev/v1alpha1
kind: ConsumerGroup
metadata: {name: sink, namespace: fire}
spec:
  streamRef: {name: load}
  startFrom: Beginning
  delivery: {lease: 2s}
  replicas: 4
  template:
    spec:
      containers:
        - name: sink
          command: [python, sink.py]
"""
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


def processes(dev: asyncio.subprocess.Process, word: str) -> list[psutil.Process]:
    """The processes below `agentstream dev` that were started with this word in their command."""
    found = []
    for process in psutil.Process(dev.pid).children(recursive=True):
        try:
            if any(word in part for part in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


async def kill_consumers(dev: asyncio.subprocess.Process, killed: list[int]) -> None:
    """Kills one consumer every second, the longest running one first."""
    while True:
        await asyncio.sleep(1)
        for consumer in processes(dev, "sink.py")[:1]:
            consumer.kill()
            killed.append(consumer.pid)


async def test_killed_consumers_and_a_killed_server_lose_nothing(tmp_path: Path) -> None:
    (tmp_path / "sink.py").write_text(dedent(SINK))
    (tmp_path / "manifests.yaml").write_text(MANIFESTS)
    with (tmp_path / "log").open("wb") as log:
        dev = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "agentstream_operator", "dev", "manifests.yaml", "--output", "json"),
            cwd=tmp_path,
            # measuring coverage would slow all processes down, and those that are killed tell nothing
            env={k: v for k, v in os.environ.items() if not k.startswith("COVERAGE_")},
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
        )
    killed: list[int] = []
    try:
        binding = tmp_path / ".agentstream" / "bindings" / "fire.source"
        await until((binding / "password").exists, timeout=30)
        async with Agent.connect(Settings.from_env({"AGENTSTREAM_BINDING": str(binding)})) as source:
            killing = asyncio.create_task(kill_consumers(dev, killed))
            try:
                for start in range(0, MESSAGES, WINDOW):
                    if start == MESSAGES // 2:
                        processes(dev, "valkey-server")[0].kill()
                    await send(source, range(start, start + WINDOW))
                await until(lambda: len(handled(tmp_path)) == MESSAGES, timeout=120)
            finally:
                killing.cancel()
                await asyncio.gather(killing, return_exceptions=True)
        dev.send_signal(signal.SIGINT)
        output, _ = await asyncio.wait_for(dev.communicate(), 60)
    finally:
        if dev.returncode is None:
            dev.terminate()
            await dev.communicate()
    counts = handled(tmp_path)
    duplicates = sum(counts.values()) - len(counts)
    summary = json.loads(output)
    print(  # noqa: T201 - duplicates are allowed, and to be shown
        f"{MESSAGES} sent, {len(killed)} consumers killed, {duplicates} handled twice; {summary}"
    )
    assert set(counts) == set(range(MESSAGES))
    assert killed
    assert summary["total"]["deadLettered"] == 0
    assert summary["total"]["lost"] == 0
    assert dev.returncode == 0
