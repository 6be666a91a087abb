"""Handles numbered messages that say how long they take, so many at a time as HANDLERS says.

What is noted goes to the ledger beside the work: it must not slow it down.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

from ledger import Journal

from agentstream import Agent, Deliveries

HANDLERS = int(os.environ["HANDLERS"])


def started() -> float:
    """When this process was, in seconds since 1970."""
    # after the name, which is in parentheses and may contain anything; see proc_pid_stat(5)
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.time() - age


async def work(deliveries: Deliveries, journal: Journal) -> None:
    """Handles one message after the other."""
    async for delivery in deliveries:
        async with delivery:
            payload = delivery.message.payload
            journal.note("begun", payload["number"])
            # some get stuck at the first attempt
            await asyncio.sleep(
                payload["stuck" if delivery.attempt == 1 and "stuck" in payload else "seconds"]
            )
            journal.note("handled", payload["number"])


async def main() -> None:
    """Works until the process is told to end."""
    journal = Journal(os.environ["LEDGER"], os.environ["AGENTSTREAM_POD"])
    journal.note("started", -1, at=started())
    async with journal, Agent.from_env() as agent, asyncio.TaskGroup() as workers:
        # as many again are read ahead
        deliveries = agent.stream_consume(os.environ["STREAM"], concurrency=2 * HANDLERS)
        for _ in range(HANDLERS):
            workers.create_task(work(deliveries, journal))


if __name__ == "__main__":
    asyncio.run(main())
