"""The consumer of the load test: takes messages, and answers requests with how long they took to come."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from agentstream import Agent

CONCURRENCY = 256


def make_agent() -> Agent:
    """Makes the agent `worker`."""
    agent = Agent.from_env()

    @agent.on("event", stream="work")
    async def take(event: dict[str, Any]) -> None:
        """Takes a message."""

    @agent.on("event", stream="news", group="worker-news")
    async def hear(event: dict[str, Any]) -> None:
        """Takes a broadcast."""

    @agent.on("task_request", stream="work")
    async def answer(task: dict[str, Any]) -> dict[str, Any]:
        """Answers with the seconds since the request was sent, by the clock of this machine."""
        return {"waited": time.time() - task["at"]}

    return agent


async def main() -> None:
    """Consumes until SIGTERM."""
    async with make_agent() as agent:
        await agent.run(concurrency=CONCURRENCY)


if __name__ == "__main__":
    asyncio.run(main())
