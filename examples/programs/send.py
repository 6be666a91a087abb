"""Sends numbered messages to one of the programs: `python send.py threads 20`."""

import asyncio
import sys
from typing import Any

from agentstream import Agent, OutgoingMessage

PAYLOADS: dict[str, dict[str, Any]] = {
    "effects": {"amount": 1},
    "fanout": {"documents": ["a", "b", "c"], "enough": 2},
    "subprocesses": {"program": "import time; time.sleep(1)"},
}


async def main(to: str, count: int) -> None:
    """Sends them together; all are on the stream when this returns."""
    payload = PAYLOADS.get(to, {"takes": 0.1})
    async with Agent.from_env() as agent:
        messages = [OutgoingMessage(to=to, type="event", payload={"n": n, **payload}) for n in range(count)]
        print(f"sent {len(await agent.send_many(messages))} messages to {to}")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
