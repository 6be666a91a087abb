"""Waiting for entries on many streams at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping

from agentstream.transport.client import Client

TIMEOUT = 6.0
"""Seconds without a reply after which the connection counts as broken: longer than any wait."""


class Arrivals:
    """A connection of its own, which is busy for as long as something is waited for.

    Args:
        wire: the connection; its timeout is `TIMEOUT`.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    async def wait(self, after: Mapping[str, str], seconds: float) -> dict[str, str]:
        """Waits until one of many streams has an entry that comes after the given id of it.

        Args:
            after: an id by stream key. A stream need not exist.
            seconds: after which nothing has come. The server looks at its clock ten times a second.

        Returns:
            The first such entry of each stream that has one, by key; empty if nothing has come.

        Raises:
            AgentStreamError: as `Client.call`, and if a key is no stream.
        """
        block = max(1, math.ceil(seconds * 1000))
        # https://redis.io/docs/latest/commands/xread/
        found = await self._client.call(
            "XREAD", "COUNT", 1, "BLOCK", block, "STREAMS", *after, *after.values()
        )
        return {key.decode(): entries[0][0].decode() for key, entries in found or ()}

    async def close(self) -> None:
        """Closes the connection; a wait fails with `ConnectionLost`."""
        await self._client.close()
