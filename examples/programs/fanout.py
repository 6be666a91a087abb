"""An orchestrator: asks for many parts at once, repeats what takes too long, cancels what it needs no more.

An order that was begun by a process that died is begun again by another one: asking twice does no harm.
"""

import asyncio
import logging

import msgspec

from agentstream import Agent, NoReply

agent = Agent.from_env()
log = logging.getLogger(__name__)


class Order(msgspec.Struct):
    """Documents to have digested.

    Attributes:
        n: number of the order.
        documents: their texts.
        enough: how many digests are enough; the requests for others are cancelled then.
        patience: seconds to wait for each before it is asked for again.
    """

    n: int
    documents: list[str]
    enough: int
    patience: float = 10.0


@agent.on("event")
async def fan_out(order: Order) -> None:
    """Asks for all digests at the same time, and is content with the first ones."""
    log.info("began %d", order.n)
    asking = {asyncio.create_task(ask(n, text, order.patience)) for n, text in enumerate(order.documents)}
    digests: list[str] = []
    try:
        for answered in asyncio.as_completed(asking):
            digests.append(await answered)
            if len(digests) >= order.enough:
                break
    finally:
        for task in asking:
            task.cancel()
        await asyncio.wait(asking)
    log.info("handled %d", order.n)


async def ask(n: int, text: str, patience: float) -> str:
    """Asks for one digest until there is an answer. A request that has timed out is begun by no worker."""
    while True:
        try:
            answer = await agent.request(to="threads", payload={"n": n, "text": text}, timeout=patience)
        except NoReply:
            log.info("no answer in %s s: asking again", patience)
        else:
            return str(answer.payload["sha256"])


async def main() -> None:
    """Works until SIGTERM."""
    async with agent:
        log.info("ready")
        await agent.run(concurrency=4)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    asyncio.run(main())
