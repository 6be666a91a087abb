"""What is done all the time: measuring every stream, the janitor, the server itself, its users and routes.

Nothing is put right here: what is not as it was is put into the queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable

from agentstream.errors import AgentStreamError

from agentstream_operator.plan.agents import AgentName, strays
from agentstream_operator.plan.observed import StreamSeen
from agentstream_operator.plan.retention import janitor_spec, remember
from agentstream_operator.plan.streams import managed
from agentstream_operator.reconcile.consumers import measure_need
from agentstream_operator.reconcile.context import Context
from agentstream_operator.reconcile.queue import Priority
from agentstream_operator.reconcile.store import agent_key
from agentstream_operator.resources.agentstream import AgentStream
from agentstream_operator.resources.consumergroup import ConsumerGroup

_log = logging.getLogger(__name__)
_FIRST_RETRY, _LONGEST_RETRY = 0.1, 2.0


class Pulse:
    """Measures, cleans up and watches, each in a task of its own.

    Args:
        context: what is measured.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._doubt = asyncio.Event()
        self._cleaned: dict[str, float] = {}

    def doubt(self) -> None:
        """A connection broke: looks at once whether the server is there."""
        self._doubt.set()

    async def watch_server(self) -> None:
        """Finds out, again and again, whether the server answers, and whether it is still the same."""
        delay = _FIRST_RETRY
        while True:
            doubted = self._doubt.is_set()
            self._doubt.clear()
            try:
                async with asyncio.timeout(self._context.rhythm.probe):
                    server = await self._context.broker.server()
            except (AgentStreamError, TimeoutError) as error:
                self._lost(str(error) or "the server does not answer")
                await asyncio.sleep(delay)
                delay = min(2 * delay, _LONGEST_RETRY)
            else:
                delay = _FIRST_RETRY
                eviction = None if server.eviction_policy == "noeviction" else server.eviction_policy
                self._found(server.run_id, eviction, doubted=doubted)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._doubt.wait(), self._context.rhythm.pulse)

    async def measure(self) -> None:
        """Measures every stream, again and again, and queues what is not as it was."""
        while True:
            if self._context.backend.trouble is None:
                await self.measure_all()
            await asyncio.sleep(self._context.rhythm.pulse)

    async def measure_all(self) -> None:
        """Measures every stream once."""
        streams = tuple(self._context.store.streams.values())
        before = [self._context.memory.streams[stream.key].seen for stream in streams]
        found = await asyncio.gather(
            *(self._context.measure(stream) for stream in streams), return_exceptions=True
        )
        for stream, old, new in zip(streams, before, found, strict=True):
            if isinstance(new, StreamSeen):
                self._compare(stream, old, new)
            else:
                self._failed(new)
        for group in tuple(self._context.store.groups.values()):
            await self._follow(group)

    async def clean(self) -> None:
        """Lets the janitor pass over every stream, a part of them at a time."""
        rhythm = self._context.rhythm
        parts = max(1, round(rhythm.janitor / rhythm.pulse))
        part = 0
        while True:
            if self._context.backend.trouble is None:
                streams = tuple(self._context.store.streams.values())
                await self.clean_up(streams[part::parts])
            part = (part + 1) % parts
            await asyncio.sleep(rhythm.janitor / parts)
