"""Everything that the operator says to the server, behind one object."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Self

from agentstream.errors import AgentStreamError
from agentstream.protocol.keys import StreamKeys, nudge_channel
from agentstream.protocol.nudges import Nudge
from agentstream.transport.client import Client
from agentstream.transport.endpoint import Endpoint
from agentstream_operator.broker import apply, holdings, observe, retention, server
from agentstream_operator.broker.acl import Users
from agentstream_operator.broker.apply import Applied
from agentstream_operator.broker.arrivals import TIMEOUT, Arrivals
from agentstream_operator.broker.connection import BrokerClient
from agentstream_operator.broker.observe import Look
from agentstream_operator.plan.actions import Action
from agentstream_operator.plan.observed import ConsumerSeen, Gone, JanitorReport, ServerSeen, StreamSeen
from agentstream_operator.plan.retention import JanitorSpec


class Broker:
    """The server as the operator uses it; `connect` makes one.

    Calls of one event-loop tick leave in one write. A broken connection fails the calls that are under way
    and is made again by the next one, and the function library is loaded again when it is gone. All methods
    raise `AgentStreamError`, as `Client.call` does.
    """

    def __init__(
        self,
        connection: BrokerClient,
        arrivals: Arrivals,
        installation: str,
        capabilities: server.Capabilities,
    ) -> None:
        self._connection = connection
        self._arrivals = arrivals
        self._installation = installation
        self._capabilities = capabilities
        self._users = Users(connection, installation)

    @classmethod
    def of(cls, endpoint: Endpoint, *, installation: str) -> Self:
        """The server at an address, as its administrator sees it. Nothing is asked before it is needed.

        `server`, which comes first, loads the function library and finds out what the server can do.
        """
        client = Client(lambda: endpoint, name=f"{installation}-operator")
        waiting = Client(lambda: endpoint, name=f"{installation}-operator-waits", timeout=TIMEOUT)
        return cls(BrokerClient(client), Arrivals(waiting), installation, server.UNKNOWN)

    @classmethod
    async def connect(cls, url: str, *, installation: str) -> Self:
        """Connects as an administrator, loads the function library and finds out what the server can do.

        Raises:
            AgentStreamError: as `Client.call`.
        """
        broker = cls.of(Endpoint(url), installation=installation)
        try:
            await broker.server()
        except BaseException:
            await broker.close()
            raise
        return broker

    async def observe(self, key: str, groups: Iterable[str]) -> StreamSeen:
        """What the server holds of a stream: every group on it, and all that belongs to the given ones.

        Raises:
            ProtocolError: a key derived from the stream's holds what this version cannot read.
            AgentStreamError: as `Client.call`.
        """
        (seen,) = await self.measure((Look(key, tuple(groups)),))
        if isinstance(seen, AgentStreamError):
            raise seen
        return seen

    async def measure(self, looks: Sequence[Look]) -> list[StreamSeen | AgentStreamError]:
        """What the server holds of each of many streams, or why that cannot be said of it."""
        return await observe.measure(self._connection, looks, trusts_lag=self._capabilities.trusts_lag)

    async def janitor(self, spec: JanitorSpec) -> JanitorReport:
        """Moves due retries, removes gone consumers, records checkpoints, trims, and publishes the gate."""
        return await retention.clean(self._connection, spec, trusts_lag=self._capabilities.trusts_lag)

    async def apply(self, action: Action) -> Applied:
        """Does an action.

        Raises:
            AccessNotEnforced: a user's rights are not what they are to be.
            AgentStreamError: as `Client.call`.
        """
        return await apply.apply(self._connection, self._users, action)

    async def users(self) -> Mapping[str, str]:
        """The installation's users, and for each a fingerprint that changes with its rules or passwords."""
        return await self._users.fingerprints()

    async def routes(self, routes_key: str) -> Mapping[str, bytes]:
        """The routes of a namespace's agents."""
        flat = await self._connection.call("HGETALL", routes_key)
        return {agent.decode(): route for agent, route in zip(flat[::2], flat[1::2], strict=True)}

    async def server(self) -> ServerSeen:
        """The server's settings; a process that was not seen before is probed again."""
        seen = await server.inspect(self._connection, self._capabilities)
        if seen.run_id == self._capabilities.run_id:
            return seen
        await self._connection.load()
        self._capabilities = await server.probe(self._connection, self._installation)
        return await server.inspect(self._connection, self._capabilities)

    async def consumers(self, key: str, group: str) -> tuple[ConsumerSeen, ...]:
        """The consumers of a group; none where the group is missing."""
        return await observe.consumers(self._connection, key, group)

    async def arrivals(self, after: Mapping[str, str], seconds: float) -> Mapping[str, str]:
        """Waits until one of many streams has an entry after the given id of it; see `Arrivals.wait`."""
        return await self._arrivals.wait(after, seconds)

    async def holdings(self, key: str, group: str) -> Counter[str]:
        """How many entries the consumers of each pod hold; none where the group is missing."""
        return await holdings.holdings(self._connection, key, group)

    async def release_pod(self, key: str, group: str, gone: Gone, *, for_good: bool = False) -> int:
        """Makes claimable at once what processes hold that are gone. Returns how many entries.

        For good means that no pod will have the name again: what is left of them claims nothing any more.
        """
        arguments = (StreamKeys(key).base, group, *_named(gone), int(for_good))
        return int(await self._connection.function("as1_orphan", key, *arguments))

    async def remove_consumers(self, key: str, group: str, gone: Gone) -> tuple[str, ...]:
        """Removes the consumers of processes that are gone, but for those that hold entries; returns them."""
        arguments = (StreamKeys(key).base, group, *_named(gone))
        names = await self._connection.function("as1_remove_consumers", key, *arguments)
        return tuple(name.decode() for name in names)

    async def nudge(self, namespace: str, agent: str, word: Nudge) -> None:
        """Tells an agent's processes what each finds out by itself, only later. Never raises, therefore."""
        channel = nudge_channel(self._installation, namespace, agent)
        with contextlib.suppress(AgentStreamError):
            await self._connection.call("PUBLISH", channel, word)

    @property
    def round_trips(self) -> int:
        """How often commands were sent and answered; those of one event-loop tick count once."""
        return self._connection.round_trips

    async def close(self) -> None:
        """Saves users that are still to be saved, and closes the connections."""
        await self._users.close()
        await self._arrivals.close()
        await self._connection.close()


def _named(gone: Gone) -> tuple[str, str]:
    """What the names of consumers that are gone begin with, and before when their processes started."""
    return f"{gone.pod}.", str(gone.before) if gone.before is not None else ""
