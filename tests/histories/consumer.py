"""A consumer in a process of its own: `consumer.py DIRECTORY WHO`, until SIGTERM; SIGUSR1 blocks its loop."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from agentstream import Agent, AgentStreamError, EffectInDoubt
from agentstream.consuming.delivery import Delivery
from agentstream.testing import block_loop
from histories.checker import IN_DOUBT, REJECTED
from histories.plan import LEASE
from histories.records import Began, Effect, Recorder, Settled, Settling
from histories.watch import watching

HANDLERS, CONCURRENCY = 8, 16


class Consumer:
    """Handles messages as they say, and writes down what happens."""

    def __init__(self, agent: Agent, recorder: Recorder) -> None:
        self._agent = agent
        self._recorder = recorder
        self._count = 0

    async def consume(self, stream: str) -> None:
        """Consumes a stream with several handlers until the agent stops."""
        deliveries = self._agent.stream_consume(stream, concurrency=CONCURRENCY)

        async def one_after_the_other() -> None:
            async for delivery in deliveries:
                await self._handle(delivery)

        await asyncio.gather(*(one_after_the_other() for _ in range(HANDLERS)))

    async def _handle(self, delivery: Delivery[dict[str, Any]]) -> None:
        work, d = delivery.payload, self._count
        self._count += 1
        group = f"{delivery.stream}/{delivery.group}"
        key = delivery.message.key
        self._recorder.note(
            Began(
                d=d,
                group=group,
                n=work["n"],
                entry=delivery.entry,
                attempt=delivery.attempt,
                fence=delivery.fence,
                key=key,
            )
        )
        verb, arguments = "ack", ()
        try:
            if work.get("effect"):
                async with delivery.once(f"effect-{work['n']}") as first:
                    if first:
                        self._recorder.note(Effect(d=d, group=group, effect=f"effect-{work['n']}"))
                        await asyncio.sleep(work["takes"])
            await asyncio.sleep(work["takes"])
        except EffectInDoubt:
            verb, arguments = "dead_letter", (IN_DOUBT,)
        except AgentStreamError:
            # the server was away for longer than the effect could wait
            verb = "retry"
        if verb == "ack" and work.get("rejects"):
            verb, arguments = "dead_letter", (REJECTED,)
        elif verb == "ack" and delivery.attempt <= work.get("fails", 0):
            verb = "retry"
        self._recorder.note(Settling(d=d, verb=verb))
        held = await getattr(delivery, verb)(*arguments)
        self._recorder.note(Settled(d=d, held=held))


async def main(directory: str, who: str) -> None:
    """Consumes both streams."""
    signal.signal(signal.SIGUSR1, lambda *_: block_loop(3 * LEASE))
    recorder = Recorder(Path(directory), who)
    with watching(recorder):
        async with Agent.from_env() as agent:
            print("ready", flush=True)  # noqa: T201 - what tests wait for
            consumer = Consumer(agent, recorder)
            await asyncio.gather(consumer.consume("tasks"), consumer.consume("news"))


asyncio.run(main(*sys.argv[1:]))
