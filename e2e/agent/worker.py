"""Handles numbered messages: notes that it begins, works a while, notes that it is done, acknowledges.

Most take a moment. Some take longer than a pod that is deleted by force has left.
"""

from __future__ import annotations

import asyncio
import os
import time

from ledger import Notary

from agentstream import Agent, Deliveries

CONCURRENCY = 32
SHORT, LONG = 0.2, 4.0
_LONG_ONES = 10


async def work(deliveries: Deliveries, notary: Notary) -> None:
    """Handles one message after the other."""
    async for delivery in deliveries:
        async with delivery:
            number = delivery.message.payload["number"]
            await notary.note("begun", number)
            await asyncio.sleep(SHORT if number % _LONG_ONES else LONG)
            # before the acknowledgement: what is settled and not noted would count as lost
            await notary.note("handled", number)


async def main() -> None:
    """Works until the process is told to end."""
    # a pod's next process is another consumer
    notary = Notary(os.environ["LEDGER"], f"{os.environ['AGENTSTREAM_POD']}/{time.time_ns()}")
    async with Agent.from_env() as agent, asyncio.TaskGroup() as workers:
        deliveries = agent.stream_consume("numbers", concurrency=CONCURRENCY)
        for _ in range(CONCURRENCY):
            workers.create_task(work(deliveries, notary))


if __name__ == "__main__":
    asyncio.run(main())
