"""Finds the files and asks the analysts for each of them.

Starting it starts a run, which takes the place of one that was not finished. That a run is to be is an event of its own,
which this agent receives, too, and acknowledges when every request is sent: until then the work is not done, and that
is seen in the group's backlog, whatever becomes of this process.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from analysis import language_of
from places import REPORT, ROOT

from agentstream import Agent

_SKIPPED = frozenset({"__pycache__", "build", "dist", "node_modules", "venv"})


def files(root: Path) -> list[str]:
    """The paths, relative to `root`, of the files that analysts know how to read."""
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in _SKIPPED)
        found += [Path(folder, name) for name in sorted(names) if language_of(name)]
    paths = (str(path.relative_to(root)) for path in found if path.is_file() and path != REPORT)
    # a name of bytes that are no text cannot be sent
    return [path for path in paths if path.isprintable()]


async def ask(agent: Agent, run: str, started: Mapping[str, Any]) -> None:
    """Sends one request per file. If this is cut short, all are sent again: a result counts once per path."""
    for path in started["files"]:
        request = {"run": run, "root": started["root"], "path": path}
        await agent.send_message(to="analyst", type="task_request", payload=request)
    print(f"asked for {len(started['files'])} files of {started['root']}")


async def main() -> None:
    """Starts a run, and follows it until the process is told to end."""
    async with Agent.from_env() as agent:
        started = {"event": "started", "root": str(ROOT), "files": files(ROOT)}
        newest = await agent.send_message(to="broadcast", type="event", payload=started)
        async for delivery in agent.stream_consume("events", concurrency=1):
            async with delivery:
                event = delivery.message.payload
                if event["event"] == "finished":
                    print(f"the report is in {event['report']}")
                elif delivery.message.id == newest.id:
                    await ask(agent, delivery.entry, event)


if __name__ == "__main__":
    asyncio.run(main())
