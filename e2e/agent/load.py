"""Sends numbered messages, one after the other, and keeps the ledger of what became of them.

A number that `send_message` returned for is noted as accepted; one that it raised for, as refused: whether
that is on the stream is not known.
"""

from __future__ import annotations

import asyncio
import itertools

from ledger import Ledger

from agentstream import Agent, AgentStreamError

# a sender that waits for the server must not fill the memory
_UNDER_WAY = 500


class Load:
    """What a test steers: so many messages a second, or none."""

    def __init__(self) -> None:
        self._rate = 0.0
        self._changed = asyncio.Event()
        self._under_way: set[asyncio.Task[None]] = set()
        self.ledger = Ledger(self._steer, lambda: len(self._under_way))

    async def send(self, agent: Agent) -> None:
        """Sends until it is cancelled."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        for number in itertools.count():
            while not self._rate:
                self._changed.clear()
                await self._changed.wait()
                due = loop.time()
            if len(self._under_way) >= _UNDER_WAY:
                await asyncio.wait(self._under_way, return_when=asyncio.FIRST_COMPLETED)
            task = asyncio.create_task(self._send(agent, number))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)
            # what could not be sent in time is not made up for
            due = max(due + 1 / self._rate, loop.time() - 1) if self._rate else loop.time()
            await asyncio.sleep(due - loop.time())

    async def _send(self, agent: Agent, number: int) -> None:
        try:
            await agent.send_message(to="worker", type="task_request", payload={"number": number})
            self.ledger.note("accepted", number, agent.name)
        except AgentStreamError as error:
            self.ledger.note("refused", number, f"{type(error).__name__}: {error}")

    def _steer(self, rate: float) -> None:
        self._rate = rate
        self._changed.set()


async def main() -> None:
    """Serves and sends until the process is told to end."""
    load = Load()
    async with asyncio.TaskGroup() as both, Agent.from_env() as agent:
        both.create_task(load.ledger.serve())
        await load.send(agent)


if __name__ == "__main__":
    asyncio.run(main())
