"""The operator's connection to the server: it keeps the function library loaded, and probes the server."""

from __future__ import annotations

import asyncio
from typing import Any

from agentstream.errors import AccessDenied, ServerRefused
from agentstream.protocol import library
from agentstream.protocol.commands import REVISION, Argument
from agentstream.transport.client import Client
from agentstream_operator.plan.observed import ServerInfo, ServerSeen

_NOT_LOADED = "Function not found"
_SCRATCH = "{agentstream-probe}"
# A group that lost unread entries to a trim and then read on: 7 are left, but where the server counts from
# what was read, its lag stays too high for ever (valkey-io/valkey#1952, redis/redis#13958).
_LAG_AFTER_TRIM = """#!lua flags=allow-oom
local key = KEYS[1]
redis.call('DEL', key)
redis.call('XGROUP', 'CREATE', key, 'g', '0', 'MKSTREAM')
for _ = 1, 20 do redis.call('XADD', key, '*', 'f', 'v') end
redis.call('XREADGROUP', 'GROUP', 'g', 'c', 'COUNT', 2, 'STREAMS', key, '>')
redis.call('XTRIM', key, 'MAXLEN', 10)
redis.call('XREADGROUP', 'GROUP', 'g', 'c', 'COUNT', 3, 'STREAMS', key, '>')
local group = redis.call('XINFO', 'GROUPS', key)[1]
redis.call('DEL', key)
for i = 1, #group, 2 do
  if group[i] == 'lag' then return group[i + 1] end
end
"""


class BrokerClient:
    """Sends commands as an administrator, and loads the function library if the server has lost it."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._loading = asyncio.Lock()
        self._loads = 0

    async def call(self, *command: Argument) -> Any:
        """Sends a command and returns its reply; sends it again if its function was not loaded.

        Raises:
            AgentStreamError: as `Client.call`.
        """
        loads = self._loads
        try:
            return await self._client.call(*command)
        except ServerRefused as error:
            if _NOT_LOADED not in str(error):
                raise
        await self._load(loads)
        return await self._client.call(*command)

    async def load(self) -> None:
        """Loads the function library if it is missing or older than this package's.

        Raises:
            AgentStreamError: as `Client.call`.
        """
        await self._load(self._loads)

    @property
    def round_trips(self) -> int:
        """How often commands were sent and answered; those of one event-loop tick count once."""
        return self._client.round_trips

    async def close(self) -> None:
        """Closes the connection; calls without a reply fail with `ConnectionLost`."""
        await self._client.close()

    async def _load(self, loads_seen: int) -> None:
        async with self._loading:
            # all calls of a tick find the library missing; the first of them loads it
            if self._loads == loads_seen:
                await library.load(self._client.call)
                self._loads += 1


async def inspect(client: BrokerClient, *, trusts_lag: bool) -> ServerSeen:
    """Reads which process answers, and its eviction policy; see `probe_lag` for `trusts_lag`.

    Raises:
        AgentStreamError: as `Client.call`.
    """
    fields = _fields(await client.call("INFO", "server", "memory"))
    return ServerSeen(fields["run_id"], fields["maxmemory_policy"], trusts_lag)


async def read_info(client: BrokerClient) -> ServerInfo:
    """Reads what the server tells of itself.

    Raises:
        AgentStreamError: as `Client.call`.
    """
    sections = ("server", "replication", "memory", "persistence")
    info, library = await asyncio.gather(client.call("INFO", *sections), _revision(client))
    fields = _fields(info)
    name, known = ("valkey", "valkey_version") if "valkey_version" in fields else ("redis", "redis_version")
    return ServerInfo(
        program=name,
        version=fields.get(known, ""),
        role=fields.get("role", "master"),
        used_memory=int(fields.get("used_memory", "0")),
        max_memory=int(fields.get("maxmemory", "0")) or None,
        eviction_policy=fields.get("maxmemory_policy", ""),
        append_only=fields.get("aof_enabled") == "1",
        write_failed="err" in {fields.get("aof_last_write_status"), fields.get("rdb_last_bgsave_status")},
        clock=int(fields.get("server_time_usec", "0")) // 1000,
        library=library,
    )


async def _revision(client: BrokerClient) -> int | None:
    """Returns the revision of the function library, if there is one; who only reads cannot load it."""
    try:
        return int(await client.call(*REVISION))
    except (AccessDenied, ServerRefused):
        return None


async def probe_lag(client: BrokerClient) -> bool:
    """Tries out whether the server's lag is right after unread entries were trimmed; leaves no key behind.

    False if the operator may not run scripts.

    Raises:
        ConnectionLost: the server cannot be reached.
    """
    try:
        return bool(await client.call("EVAL", _LAG_AFTER_TRIM, 1, _SCRATCH) == 7)  # noqa: PLR2004 - see the script
    except (AccessDenied, ServerRefused):
        return False


def _fields(info: bytes) -> dict[str, str]:
    lines = (line.partition(":") for line in info.decode().splitlines())
    return {name: value for name, _, value in lines}
