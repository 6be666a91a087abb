"""What kind of server this is: its settings as they are now, and what it can do, found out by trying."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from agentstream.errors import AccessDenied, ServerRefused
from agentstream_operator.broker.connection import BrokerClient
from agentstream_operator.plan.observed import ServerSeen

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


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What one server process was found able to do; see `ServerSeen`."""

    run_id: str
    trusts_lag: bool
    checks_all_keys: bool | None


UNKNOWN = Capabilities("", trusts_lag=False, checks_all_keys=None)
"""Before the server was asked."""


def probe_user(installation: str) -> str:
    """A user that lives for the time of a probe; no agent has its name, in which the namespace is empty."""
    return f"{installation}..probe"


async def run_id(connection: BrokerClient) -> str:
    """Which process answers.

    Raises:
        AgentStreamError: as `Wire.call`.
    """
    return _fields(await connection.call("INFO", "server"))["run_id"]


async def probe(connection: BrokerClient, installation: str) -> Capabilities:
    """Finds out what the server can do, and leaves nothing behind.

    Raises:
        ConnectionLost: the server cannot be reached.
    """
    process, lag, keys = await asyncio.gather(
        run_id(connection), _trusts_lag(connection), _checks_all_keys(connection, installation)
    )
    return Capabilities(process, lag, keys)


async def _trusts_lag(connection: BrokerClient) -> bool:
    try:
        return bool(await connection.call("EVAL", _LAG_AFTER_TRIM, 1, _SCRATCH) == 7)  # noqa: PLR2004 - see the script
    except (AccessDenied, ServerRefused):
        return False


async def _checks_all_keys(connection: BrokerClient, installation: str) -> bool | None:
    """Whether a consumer called STREAMS leads the server to check the wrong key (redis/redis#15478)."""
    name = probe_user(installation)
    read = ("XREADGROUP", "NOACK", "GROUP", "g", "STREAMS", "STREAMS", _SCRATCH, ">")
    try:
        _, verdict, _ = await asyncio.gather(
            connection.call("ACL", "SETUSER", name, "reset", "off", "+xreadgroup", f"~{_SCRATCH}"),
            connection.call("ACL", "DRYRUN", name, *read),
            connection.call("ACL", "DELUSER", name),
        )
    except (AccessDenied, ServerRefused):
        return None
    return bool(verdict == b"OK")


async def inspect(connection: BrokerClient, capabilities: Capabilities) -> ServerSeen:
    """Reads the server's settings and use of memory.

    Raises:
        AgentStreamError: as `Wire.call`.
    """
    info, acl_file = await asyncio.gather(
        connection.call("INFO", "server", "memory", "persistence", "replication"), _acl_file(connection)
    )
    fields = _fields(info)
    vendor = fields.get("server_name", "redis")
    return ServerSeen(
        run_id=fields["run_id"],
        version=f"{vendor} {fields.get(f'{vendor}_version', fields['redis_version'])}",
        role=fields["role"],
        used_memory=int(fields["used_memory"]),
        maxmemory=int(fields["maxmemory"]),
        eviction_policy=fields["maxmemory_policy"],
        append_only=fields["aof_enabled"] == "1",
        acl_file=acl_file,
        trusts_lag=capabilities.trusts_lag,
        checks_all_keys=capabilities.checks_all_keys,
    )


async def _acl_file(connection: BrokerClient) -> bool | None:
    try:
        setting = await connection.call("CONFIG", "GET", "aclfile")
    except (AccessDenied, ServerRefused):
        return None
    return bool(setting[1]) if setting else None


def _fields(info: bytes) -> dict[str, str]:
    lines = (line.partition(":") for line in info.decode().splitlines() if not line.startswith("#"))
    return {name: value for name, separator, value in lines if separator}
