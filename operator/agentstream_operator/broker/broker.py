"""The server as the operator uses it."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import msgspec

from agentstream.errors import AgentStreamError, ProtocolError
from agentstream.protocol import commands
from agentstream.protocol.keys import Nudge, nudge_channel
from agentstream.transport.client import Client
from agentstream.transport.endpoint import Endpoint
from agentstream_operator.broker import observe
from agentstream_operator.broker.acl import Users
from agentstream_operator.broker.busy import LongFunction, end_long_function
from agentstream_operator.broker.observe import Look
from agentstream_operator.broker.server import BrokerClient, inspect, probe_lag, read_info
from agentstream_operator.plan.actions import Action, DeleteUser, SetUser
from agentstream_operator.plan.observed import (
    ConsumerSeen,
    Gone,
    HeldSeen,
    JanitorReport,
    ServerInfo,
    ServerSeen,
    StreamSeen,
    UserSeen,
)
from agentstream_operator.plan.retention import JanitorSpec

LIMIT = 100_000
"""The most entries that one pass of the janitor removes: some ms, in which the server does nothing else."""

# Keys that one look for replies passes: some ms. The longest that the SDK keeps a reply, in ms.
_PART, _LONGEST_REPLY = 5_000, 86_400_000

# Passes over a stream in a row: others wait for their turn meanwhile.
_PASSES = 100

# Seconds without a reply after which a connection counts as broken: longer than any wait for entries.
_LONGEST_WAIT = 6.0
_report_decoder = msgspec.json.Decoder(JanitorReport)


class Broker:
    """Reads and changes what streams, groups and agents have on the server; `connect` makes one.

    Calls of one event-loop tick leave in one write. A broken connection fails the calls that are under way
    and is made again by the next one. `arrivals` blocks a connection of its own, `waiting`. All methods raise
    `AgentStreamError`, as `Client.call` does.
    """

    def __init__(
        self, client: BrokerClient, waiting: Client, installation: str, *, database: int = 0
    ) -> None:
        self._client = client
        self._waiting = waiting
        self._installation = installation
        self._users = Users(client, installation, database=database)
        self._probed = ""
        self._trusts_lag = False

    @classmethod
    def of(cls, endpoint: Endpoint, *, installation: str) -> Self:
        """The server at an address, as its administrator sees it; connects with the first call.

        Call `server` first: it loads the function library and probes the server.
        """
        client = Client(lambda: endpoint, name=f"{installation}-operator")
        waiting = Client(lambda: endpoint, name=f"{installation}-operator-waits", timeout=_LONGEST_WAIT)
        return cls(BrokerClient(client), waiting, installation, database=endpoint.target().db)

    @classmethod
    async def connect(cls, url: str, *, installation: str) -> Self:
        """Connects as an administrator, loads the function library and probes the server.

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
        """Reads the state of a stream: every group on it, and all keys that belong to the given ones.

        Raises:
            ProtocolError: a key derived from the stream's holds something that this version cannot read.
            AgentStreamError: as `Client.call`.
        """
        (seen,) = await self.measure((Look(key, tuple(groups)),))
        if isinstance(seen, AgentStreamError):
            raise seen
        return seen

    async def measure(self, looks: Sequence[Look]) -> list[StreamSeen | AgentStreamError]:
        """Reads the state of many streams. Returns for each the state, or the error that hides it."""
        return await observe.measure(self._client, looks, trusts_lag=self._trusts_lag)

    async def janitor(self, spec: JanitorSpec) -> JanitorReport:
        """Runs passes of the janitor over a stream, some in a row while there is more to do.

        Returns what they did together.

        Raises:
            ProtocolError: this version cannot read the report.
            AgentStreamError: as `Client.call`.
        """
        command = commands.janitor(
            spec.key,
            (spec.min_age, spec.max_length, spec.max_bytes, spec.on_full, LIMIT),
            spec.groups,
            trusts_lag=self._trusts_lag,
            broadcast=spec.broadcast,
        )
        total = _report(spec.key, await self._client.call(*command))
        for _ in range(_PASSES):
            if not total.more:
                break
            total = _combine(total, _report(spec.key, await self._client.call(*command)))
        return total

    async def apply(self, action: Action) -> Any:
        """Carries out an action. Returns the server's reply; for `SetUser`, what is seen of the user.

        Raises:
            AccessNotEnforced: the server does not give the user the rights that its rules name.
            AgentStreamError: as `Client.call`.
        """
        match action:
            case SetUser():
                return await self._users.set(action)
            case DeleteUser(name):
                return await self._users.delete(name)
            case _:
                while (reply := await self._client.call(*action.command)) == commands.MORE:
                    pass
                return reply

    async def users(self) -> Mapping[str, UserSeen]:
        """Lists the installation's users."""
        return await self._users.list()

    async def routes(self, routes_key: str) -> Mapping[str, bytes]:
        """Reads the routes of a namespace's agents."""
        flat = await self._client.call("HGETALL", routes_key)
        return {
            agent.decode(errors="replace"): route for agent, route in zip(flat[::2], flat[1::2], strict=True)
        }

    async def server(self) -> ServerSeen:
        """Reads the server's settings; loads the library onto a new process, and probes it."""
        seen = await inspect(self._client, trusts_lag=self._trusts_lag)
        if seen.run_id == self._probed:
            return seen
        await self._client.load()
        # both leave in one write, so that one process answers both
        seen, trusts_lag = await asyncio.gather(
            inspect(self._client, trusts_lag=False), probe_lag(self._client)
        )
        self._probed, self._trusts_lag = seen.run_id, trusts_lag
        return msgspec.structs.replace(seen, trusts_lag=trusts_lag)

    async def info(self) -> ServerInfo:
        """Reads what the server tells of itself."""
        return await read_info(self._client)

    async def end_long_function(self) -> LongFunction | None:
        """Ends a function that keeps the server busy for more than a second; None if there is none."""
        return await end_long_function(self._client.call)

    async def consumers(self, key: str, group: str) -> tuple[ConsumerSeen, ...]:
        """Lists the consumers of a group; none if the group is missing."""
        return await observe.consumers(self._client, key, group)

    async def held(self, key: str, group: str, consumer: str, most: int) -> tuple[HeldSeen, ...]:
        """Lists the first pending entries of a consumer; none if it or the group is missing."""
        return await observe.held(self._client, key, group, consumer, most)

    async def least_idle(self, key: str, group: str) -> int | None:
        """Returns how many ms ago a consumer last renewed what it holds; None if none holds any."""
        return await observe.least_idle(self._client, key, group)

    async def arrivals(self, after: Mapping[str, str], seconds: float) -> Mapping[str, str]:
        """Waits until one of many streams has an entry after the id given for its key; it need not exist.

        Waits at most 5 seconds. Returns the first such entry of each stream that has one, by key.
        """
        block = max(1, math.ceil(seconds * 1000))
        # https://redis.io/docs/latest/commands/xread/
        found = await self._waiting.call(
            "XREAD", "COUNT", 1, "BLOCK", block, "STREAMS", *after, *after.values()
        )
        return {key.decode(): entries[0][0].decode() for key, entries in found or ()}

    async def holdings(self, key: str, group: str) -> Counter[str]:
        """Counts the pending entries of each pod; none if the group is missing."""
        return await observe.holdings(self._client, key, group)

    async def release_pod(self, key: str, group: str, gone: Gone, *, for_good: bool = False) -> int:
        """Makes entries claimable at once that processes which are gone still hold. Returns their number.

        `for_good`: no pod will have the name again, so that processes of it claim nothing any more.
        """
        total = 0
        for retries in (False, True):
            start = "-"
            while start:
                command = commands.release_pod(key, group, gone, start, for_good=for_good, retries=retries)
                following, count = await self._client.call(*command)
                start, total = following.decode(), total + int(count)
        return total

    async def remove_consumers(self, key: str, group: str, gone: Gone) -> tuple[str, ...]:
        """Removes the consumers of processes that are gone and hold nothing. Returns their names."""
        command, removed = commands.remove_consumers(key, group, *gone), list[bytes]()
        while len(names := await self._client.call(*command)) >= commands.PAGE:
            removed += names
        return tuple(name.decode(errors="replace") for name in (*removed, *names))

    async def call(self, *command: commands.Argument) -> Any:
        """Sends a command of `protocol.replaying` or `whereabouts`. Returns the reply, for those to read."""
        return await self._client.call(*command)

    async def nudge(self, namespace: str, agent: str, word: Nudge) -> None:
        """Publishes a nudge to an agent's processes. Raises nothing: it only makes them look sooner."""
        channel = nudge_channel(self._installation, namespace, agent)
        with contextlib.suppress(AgentStreamError):
            await self._client.call("PUBLISH", channel, word)

    async def expire_replies(self, cursor: bytes) -> bytes:
        """Gives replies without a lifetime one, in a part of the key space. Returns where the next begins.

        The function for replies sets it; but whoever may reply may also add without it.
        """
        command = ("SCAN", cursor, "MATCH", "{*}:reply:*", "COUNT", _PART)
        following, keys = await self._client.call(*command)
        await asyncio.gather(*(self._client.call("PEXPIRE", key, _LONGEST_REPLY, "NX") for key in keys))
        return bytes(following)

    @property
    def round_trips(self) -> int:
        """How often commands were sent and answered; those of one event-loop tick count once."""
        return self._client.round_trips

    async def close(self) -> None:
        """Saves changed users, and closes the connections."""
        await self._users.close()
        await self._waiting.close()
        await self._client.close()


def _report(key: str, reply: bytes) -> JanitorReport:
    try:
        return _report_decoder.decode(reply)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ProtocolError(f"cannot read the reply of as1_janitor for {key}: {error}") from error


def _combine(before: JanitorReport, latest: JanitorReport) -> JanitorReport:
    return msgspec.structs.replace(
        latest,
        trimmed=before.trimmed + latest.trimmed,
        overrun=before.overrun + latest.overrun,
        moved=before.moved + latest.moved,
        expired=before.expired + latest.expired,
        forgotten=before.forgotten + latest.forgotten,
        shortened=before.shortened or latest.shortened,
    )
