"""Handles numbered messages; with BUG, it fails at those that this number divides."""

from __future__ import annotations

import asyncio
import os

from ledger import Notary

from agentstream import Agent

BUG = int(os.environ.get("BUG", "0"))


async def main() -> None:
    """Works until the process is told to end."""
    notary = Notary(os.environ["LEDGER"], os.environ["AGENTSTREAM_POD"])
    async with Agent.from_env() as agent:
        async for delivery in agent.stream_consume(os.environ["STREAM"]):
            async with delivery:
                number = delivery.message.payload["number"]
                if BUG and number % BUG == 0:
                    raise ValueError(f"cannot read document {number}")
                # before the acknowledgement: what is settled and not noted would count as lost
                await notary.note(f"replayed by {delivery.replay}" if delivery.replay else "handled", number)


if __name__ == "__main__":
    asyncio.run(main())
