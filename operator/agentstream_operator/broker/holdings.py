"""Who holds how much."""

from __future__ import annotations

import asyncio
from collections import Counter

from agentstream.errors import AgentStreamError
from agentstream.protocol.keys import StreamKeys
from agentstream.transport.error_replies import group_is_gone
from agentstream_operator.broker.connection import BrokerClient
from agentstream_operator.plan.observed import pod_of


async def holdings(connection: BrokerClient, key: str, group: str) -> Counter[str]:
    """How many entries of a stream and of its retry stream the consumers of each pod hold.

    Raises:
        AgentStreamError: as `Wire.call`.
    """
    retry = StreamKeys(key).retry(group)
    return sum(await asyncio.gather(*(_held(connection, k, group) for k in (key, retry))), Counter())


async def _held(connection: BrokerClient, key: str, group: str) -> Counter[str]:
    """The same of one of the two; nobody holds anything where the group is missing."""
    try:
        # https://redis.io/docs/latest/commands/xpending/
        _, _, _, holders = await connection.call("XPENDING", key, group)
    except AgentStreamError as error:
        if group_is_gone(error):
            return Counter()
        raise
    held = Counter[str]()
    for name, count in holders or ():
        held[pod_of(name.decode(errors="replace"))] += int(count)
    return held
