"""Consuming a stream: the iterator that agents see, and the life of what works behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from types import TracebackType

from agentstream.backoff import Pause
from agentstream.delivery import Delivery
from agentstream.directory import Directory
from agentstream.dispatch import Dispatch
from agentstream.errors import AgentStreamError, NotConsumer
from agentstream.intake import Intake
from agentstream.routes import Consumes
from agentstream.trouble import Trouble
from agentstream.wire import Wire

_ROUTE_PATIENCE = 10.0
_FAREWELL = 5.0


@dataclass(frozen=True, slots=True)
class Consumer:
    """Who consumes, and over which connections.

    Attributes:
        agent: name of the agent.
        name: name of the consumer on the server.
        pod_prefix: what the names of consumers of this process's pod start with.
        directory: where routes are looked up.
        write: the connection for sending and settling.
        control: the connection for renewing, sweeping and claiming.
        reading: makes a connection for blocking reads of a stream.
        consumed: what is consumed in this process already, by key and group.
    """

    agent: str
    name: str
    pod_prefix: str
    directory: Directory
    write: Wire
    control: Wire
    reading: Callable[[str], Wire]
    consumed: dict[tuple[str, str], Consumption]


class Consumption:
    """One group that this process consumes.

    Args:
        consumer: who, and how.
        stream: name of the AgentStream.
        group: name of the group, where the agent has several on the stream.
        concurrency: how many messages this process holds at most.
    """

    def __init__(self, consumer: Consumer, stream: str, group: str | None, concurrency: int) -> None:
        self._consumer = consumer
        self._stream = stream
        self._group = group
        self._concurrency = concurrency
        self._run: asyncio.Task[None] | None = None
        self._dispatch: Dispatch | None = None
        self._opened = asyncio.Event()
        self._stopping = asyncio.Event()

    async def next(self) -> Delivery:
        """The next delivery.

        Raises:
            StopAsyncIteration: there will be no more: it was stopped.
            NotConsumer: the agent consumes no such group.
        """
        if self._run is None and not self._stopping.is_set():
            self._run = asyncio.create_task(self._live(), name=f"consume {self._stream}")
        await self._opened.wait() if not self._opened.is_set() and self._run else None
        delivery = None if self._dispatch is None else await self._dispatch.next()
        if delivery is not None:
            return delivery
        if self._run is not None and self._run.done() and not self._run.cancelled():
            self._run.result()
        raise StopAsyncIteration
