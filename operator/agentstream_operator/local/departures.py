"""What happens to the entries of a process that ended: other consumers may take them up at once."""

from __future__ import annotations

import asyncio
import contextlib

from agentstream.errors import AgentStreamError
from agentstream_operator.broker.broker import Broker
from agentstream_operator.local.catalog import Catalog
from agentstream_operator.resources.meta import ResourceKey

_PATIENCE = 2.0
"""Seconds for which a restart waits for the server; without it, the lease ends by itself."""


class Departures:
    """Tells the server which processes have ended.

    Args:
        broker: the server.
        catalog: who knows the groups.
    """

    def __init__(self, broker: Broker, catalog: Catalog) -> None:
        self._broker = broker
        self._catalog = catalog

    async def ended(self, group: ResourceKey, process: str) -> None:
        """A process of a group's workload has ended, and no other one has its name yet."""
        with contextlib.suppress(AgentStreamError, TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                for key, name in self._catalog.groups_served_by(group):
                    await self._broker.orphan(key, name, process)
                    await self._broker.remove_consumers(key, name, process)
