"""A sender in a process of its own: `sender.py DIRECTORY WHO SEED FIRST RATE SLOW`, until SIGTERM."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from agentstream import Agent, AgentStreamError, Backpressure, ConnectionLost
from agentstream.identity.settings import Settings
from histories.plan import messages
from histories.records import Called, Claimed, Failed, Recorder, Returned
from histories.watch import watching

SENDING = 8
PATIENCE = 60.0


async def send(agent: Agent, recorder: Recorder, message: dict[str, Any]) -> None:
    """Sends a message, and looks at the receipt if it is a broadcast."""
    called = Called(**message)
    payload = {"n": called.n, **called.work}
    options: dict[str, Any] = {name: message[name] for name in ("key", "once") if name in message}
    recorder.note(called)
    receipt = None
    try:
        if called.stream == "news":
            receipt = await agent.broadcast(type="event", payload=payload, timeout=PATIENCE, **options)
            sent = receipt.sent
        else:
            # what is for nobody in particular, all groups get; the coder only what is addressed to it
            to = "coder" if len(called.groups) > 1 else "auditor"
            sent = await agent.send_message(
                type="event", stream="tasks", to=to, payload=payload, timeout=PATIENCE, **options
            )
    except AgentStreamError as error:
        doubt = isinstance(error, ConnectionLost)
        recorder.note(Failed(n=called.n, error=f"{type(error).__name__}: {error}", doubt=doubt))
        if not isinstance(error, (ConnectionLost, Backpressure)):
            raise
    else:
        recorder.note(Returned(n=called.n, entry=sent.entry))
    if receipt is not None and called.once is None and called.n % 4 == 0:
        try:
            status = await receipt.status()
        except AgentStreamError:
            return
        groups = tuple(f"news/{group}" for group in status.acknowledged)
        recorder.note(Claimed(n=called.n, groups=groups))


async def work(agent: Agent, recorder: Recorder, planned: Iterator[dict[str, Any]], rate: float) -> None:
    """Sends until it is asked to end, several messages at a time."""
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)

    async def one_after_the_other() -> None:
        while not ended.is_set():
            await send(agent, recorder, next(planned))
            await asyncio.wait([asyncio.create_task(ended.wait())], timeout=SENDING / rate)

    await asyncio.gather(*(one_after_the_other() for _ in range(SENDING)))


async def main(directory: str, who: str, *numbers: str) -> None:
    """Sends what the seed says."""
    seed, first, rate, slow = numbers
    recorder = Recorder(Path(directory), who)
    with watching(recorder):
        async with Agent.connect(Settings.from_env()) as agent:
            print("ready", flush=True)  # noqa: T201 - what tests wait for
            planned = messages(int(seed), who.partition(".")[0], int(first), float(slow))
            await work(agent, recorder, planned, float(rate))


asyncio.run(main(*sys.argv[1:]))
