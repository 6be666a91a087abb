"""Finds the files and asks the analysts for each of them.

Starting it starts a run, which takes the place of one that was not finished. That there is to be a run is
an event, which this agent receives, too, and acknowledges when every request is sent. So what is still to
be done is seen in the group's backlog, whatever becomes of this process: while one takes the place of
another, either may receive it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from files import find_files
from journal import order
from places import REPORT, ROOT

from agentstream import Agent


async def ask(agent: Agent, run: str, started: Mapping[str, Any]) -> None:
    """Sends one request per file. If this is cut short, all are sent again: a result counts once per path."""
    for path in started["files"]:
        request = {"run": run, "root": started["root"], "path": path}
        await agent.send_message(to="analyst", type="task_request", payload=request)
    print(f"asked for {len(started['files'])} files of {started['root']}")


async def main() -> None:
    """Starts a run, and follows it until the process is told to end."""
    async with Agent.from_env() as agent:
        started = {"event": "started", "root": str(ROOT), "files": find_files(ROOT, but=REPORT)}
        newest = await agent.send_message(to="broadcast", type="event", payload=started)
        async for delivery in agent.stream_consume("events", concurrency=1):
            async with delivery:
                event = delivery.message.payload
                if event["event"] == "finished":
                    print(f"the report is in {event['report']}")
                elif order(delivery.entry) >= order(newest.entry):
                    await ask(agent, delivery.entry, event)


if __name__ == "__main__":
    asyncio.run(main())
