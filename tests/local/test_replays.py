"""Replays in `agentstream dev`: declared in manifests, told about, and kept for the next run."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from support.dev import Dev, a_group, a_stream, coders
from support.waiting import until

REPLAY = """\
apiVersion: agentstream.dev/v1alpha1
kind: StreamReplay
metadata: {{name: {name}}}
spec: {{groupRef: {{name: coder}}, from: {{source: Stream}}, {spec}}}
---
"""
SLEEPER = a_stream("tasks") + a_group("coder", "tasks", "sleep", "60")


def a_replay(name: str = "again", spec: str = "") -> str:
    """A StreamReplay manifest."""
    return REPLAY.format(name=name, spec=spec)


@pytest.fixture
async def dev(tmp_path: Path) -> AsyncIterator[Dev]:
    dev = Dev(tmp_path)
    yield dev
    await dev.close()


def declare(dev: Dev, text: str) -> None:
    (dev.directory / "m.yaml").write_text(text)


def kept(dev: Dev, name: str = "again") -> dict[str, Any]:
    """A replay as it is kept; empty if it is not."""
    file = dev.directory / ".agentstream" / "replays" / f"default.{name}.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    return found


async def test_a_replay_waits_for_its_group_and_is_the_same_in_the_next_run(dev: Dev) -> None:
    declare(dev, a_stream("tasks") + a_replay())
    await dev.start("m.yaml")
    await dev.line("StreamReplay default/again: Pending")
    assert await dev.end() == 0
    first = kept(dev)
    assert first["status"]["conditions"][0]["reason"] == "GroupNotFound"
    await dev.start("m.yaml")
    await dev.ready()
    assert kept(dev)["metadata"]["uid"] == first["metadata"]["uid"]
    declare(dev, a_stream("tasks"))
    await until(lambda: kept(dev) == {})
    assert await dev.end() == 0


async def test_what_is_immutable_of_a_replay_is_not_changed(dev: Dev) -> None:
    declare(dev, SLEEPER + a_replay(spec="suspend: true"))
    await dev.start("m.yaml")
    await dev.line("StreamReplay default/again: ")
    declare(dev, SLEEPER + a_replay(spec="limit: 7"))
    await dev.line("spec.limit: limit is immutable: create another resource instead")
    declare(dev, SLEEPER + a_replay(spec="suspend: true, rate: 7"))
    await until(lambda: kept(dev)["spec"]["rate"] == 7)
    assert kept(dev)["metadata"]["generation"] == 2
    assert await dev.end() == 0


async def test_a_damaged_file_is_one_line(dev: Dev) -> None:
    declare(dev, SLEEPER)
    folder = dev.directory / ".agentstream" / "replays"
    folder.mkdir(parents=True)
    (folder / "default.again.json").write_text("{}")
    await dev.start("m.yaml")
    assert await dev.wait() == 2
    (line,) = dev.lines
    assert "default.again.json: is not the file of a replay; delete it, or repair it: " in line


FAILS = """\
import asyncio
from agentstream import Agent, Reject

async def main():
    async with Agent.from_env() as agent:
        async for delivery in agent.stream_consume("tasks"):
            async with delivery:
                raise Reject("NoModel")

asyncio.run(main())
"""
DEAD = REPLAY.replace("source: Stream", "source: DeadLetters")


async def test_dead_letters_are_handled_once_a_consumer_is_mended(dev: Dev) -> None:
    mended = (dev.directory / "coder.py").read_text()
    (dev.directory / "coder.py").write_text(FAILS)
    declare(dev, text := coders(messages=3, scale="replicas: 1"))
    await dev.start("m.yaml")
    await dev.line("DeadLetters")
    await dev.line("[boss-0] sent")
    (dev.directory / "coder.py").write_text(mended)
    await dev.line("[coder-0] up")
    replays = "".join(
        DEAD.format(name=name, spec=f"select: {{reasons: [{reason}]}}")
        for name, reason in (("again", "NoModel"), ("nothing", "MaxDeliveries"))
    )
    declare(dev, text + replays)
    await dev.line("StreamReplay default/again: Complete")
    await dev.line("StreamReplay default/nothing: Complete")
    # the boss was started again, too, and sends the same once more
    await until(lambda: sorted(dev.done) == [0, 0, 1, 1, 2, 2])
    await until(lambda: kept(dev)["status"].get("handled") == 3)
    assert await dev.end() in {0, 1}
    # at the next start it is the same replay, and over
    declare(dev, text.replace('"3"', '"0"') + replays)
    await dev.start("m.yaml", "--for", "3s")
    await dev.wait()
    assert sorted(dev.done) == [0, 0, 1, 1, 2, 2]
    assert kept(dev)["status"]["moved"] == 3
