"""The session of one group: the parts that consume it, made from the ports of this process's consumer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from agentstream.consuming.dispatch import Dispatcher
from agentstream.consuming.fetch import Fetcher, FetchSignals
from agentstream.consuming.leases import Leases
from agentstream.consuming.presence import Presence
from agentstream.consuming.renewal import Renewal
from agentstream.consuming.settling import Settler
from agentstream.consuming.triage import triage
from agentstream.errors import AgentStreamError
from agentstream.identity.keyring import Keyring, Verifier
from agentstream.payloads.contracts import Contracts
from agentstream.payloads.upcasting import Read
from agentstream.protocol.commands import GroupCalls
from agentstream.protocol.keys import Nudge
from agentstream.protocol.routes import Consumes
from agentstream.routing.directory import Directory
from agentstream.sending.replies import Replies
from agentstream.telemetry.counters import Counters
from agentstream.transport.client import Client
from agentstream.transport.subscriptions import Subscriptions

_NUDGE_PATIENCE = 1.0


class ConsumerIdentity(NamedTuple):
    """Who a consumer is.

    `nudges` is the channel on which the agent's processes wake each other up, `cancellations` the one on
    which requesters say that they wait no longer.
    """

    agent: str
    presence: Presence
    nudges: str
    cancellations: str

    @property
    def name(self) -> str:
        """The name of the consumer."""
        return self.presence.name


@dataclass(frozen=True, slots=True)
class ConsumerConnections:
    """The connections of a consumer.

    `write` is for sending and settling, `control` for sweeping, claiming and starting; `reading` makes one
    for blocking reads of a stream.
    """

    write: Client
    control: Client
    subscriptions: Subscriptions
    reading: Callable[[str], Client]


@dataclass(frozen=True, slots=True)
class ConsumerServices:
    """The parts of an agent that its consumer uses."""

    directory: Directory
    keyring: Keyring
    contracts: Contracts
    replies: Replies
    counters: Counters
    renewal: Renewal


@dataclass(frozen=True, slots=True)
class Consumer:
    """The consumer of one process; `consumed` has its sessions by key of the stream and name of the group."""

    identity: ConsumerIdentity
    connections: ConsumerConnections
    services: ConsumerServices
    consumed: dict[tuple[str, str], GroupSession]


class GroupSession:
    """The parts that consume one group, from the first read to the last entry that is settled."""

    def __init__(
        self,
        consumer: Consumer,
        policy: Consumes,
        concurrency: int,
        read: Read,
        refresh: Callable[[], Awaitable[None]],
    ) -> None:
        identity, connections, services = consumer.identity, consumer.connections, consumer.services
        self._consumer = consumer
        self._key = (policy.key, policy.group)
        self.closed: asyncio.Event = asyncio.Event()
        self._reading = connections.reading(policy.stream)
        self._signals = FetchSignals(self._nudge)
        leases = Leases(GroupCalls(policy, identity.name), policy.lease / 1000, services.renewal)
        counters = services.counters.group(policy.stream, policy.group)
        self._settler = Settler(connections.write.call, leases, counters, services.replies, self._signals)
        self.dispatcher: Dispatcher = Dispatcher(
            policy,
            partial(triage, agent=identity.agent, read=read),
            Verifier(services.keyring, policy.stream, policy.key),
            connections.control.call,
            self._settler,
            concurrency=concurrency,
        )
        self._fetcher = Fetcher(
            reading=self._reading,
            control=connections.control,
            sink=self.dispatcher,
            signals=self._signals,
            refresh=refresh,
            presence=identity.presence,
        )

    async def fetch(self, stopping: asyncio.Event) -> BaseException | None:
        """Fetches until the event is set. Returns the error by which fetching ended otherwise, if it did."""
        consumer = self._consumer
        consumer.consumed[self._key] = self
        listen, identity = consumer.connections.subscriptions.listen, consumer.identity
        self._unlisten = (
            listen(identity.nudges, self._nudged),
            listen(identity.cancellations, consumer.services.replies.note_cancelled),
        )
        consumer.services.renewal.add(self.dispatcher.leases)
        work = (self._fetcher.run(), self.dispatcher.order_poller.run(), stopping.wait())
        self._tasks = [asyncio.ensure_future(each) for each in work]
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        # only a mistake in this package ends fetching or polling by itself
        return next((task.exception() for task in done if task.exception()), None)

    async def close(self, on_read_end: Callable[[], None]) -> None:
        """Ends fetching, hands back the entries that no handler has, and waits until all others are settled.

        Calls `on_read_end` when the server can give this process no more entries.
        """
        dispatcher, services = self.dispatcher, self._consumer.services
        dispatcher.close()
        for unlisten in self._unlisten:
            unlisten()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._reading.hang_up()
        handed_back = await self._fetcher.release_strays(self._settler.release) + len(dispatcher.leases)
        on_read_end()
        await dispatcher.hand_back()
        if handed_back:
            await self._nudge()
        await dispatcher.ended()
        services.renewal.remove(dispatcher.leases)
        del self._consumer.consumed[self._key]
        self.closed.set()

    async def _nudge(self) -> None:
        """Tells the agent's consumers that there are entries to claim."""
        control = self._consumer.connections.control
        with contextlib.suppress(AgentStreamError, TimeoutError):
            async with asyncio.timeout(_NUDGE_PATIENCE):
                await control.call("PUBLISH", self._consumer.identity.nudges, Nudge.SWEEP)

    def _nudged(self, nudge: bytes) -> None:
        """Acts at once on a change that this process would only notice later."""
        if nudge == Nudge.SWEEP.encode():
            self._signals.sweep_now()
        elif nudge == Nudge.ROUTES.encode():
            self._consumer.services.directory.forget()
            self._signals.look_again()
