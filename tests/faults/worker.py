"""A consumer in a process of its own: `worker.py LEDGER [HANDLERS [CONCURRENCY]]`."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from agentstream import Agent

sys.path.insert(0, str(Path(__file__).parent.parent))

from faults.ledger import Ledger, handle


async def main(path: str, handlers: str = "8", concurrency: str = "64") -> None:
    """Consumes `tasks` until it is asked to end."""
    ledger = Ledger(Path(path))
    async with Agent.from_env() as agent, asyncio.TaskGroup() as tasks:
        print("ready", flush=True)  # noqa: T201 - what tests wait for
        deliveries = agent.stream_consume("tasks", concurrency=int(concurrency))
        for _ in range(int(handlers)):
            tasks.create_task(handle(deliveries, ledger, f"p{os.getpid()}"))
    ledger.close()


asyncio.run(main(*sys.argv[1:]))
