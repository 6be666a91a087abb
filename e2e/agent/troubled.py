"""Does with each message what its payload says, among it all that consumers do when they are in trouble."""

from __future__ import annotations

import asyncio
import os
import time

from agentstream import Agent, Delivery


async def do(delivery: Delivery) -> None:
    """Handles a message, or does not."""
    match delivery.payload["do"]:
        case "fail":
            raise ValueError(f"cannot read document {delivery.payload['number']}")
        case "die":
            os._exit(1)
        case "wait":
            # for what never answers: the process lives, and so does its lease
            await asyncio.Event().wait()
        case "hang":
            # nothing else of the process goes on, neither its lease
            time.sleep(86_400)  # noqa: ASYNC251
        case _:
            await asyncio.sleep(float(delivery.payload.get("seconds", 0)))


async def main() -> None:
    """Works until the process is told to end."""
    async with Agent.from_env() as agent:
        async for delivery in agent.stream_consume(os.environ["STREAM"]):
            async with delivery:
                await do(delivery)


if __name__ == "__main__":
    asyncio.run(main())
