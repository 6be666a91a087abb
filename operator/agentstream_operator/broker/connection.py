"""The operator's connection: commands, and calls of the function library, loaded again when it is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from agentstream.errors import ServerRefused
from agentstream.protocol import library
from agentstream.transport.client import Argument, Client

_GONE = "Function not found"


class BrokerClient:
    """Commands of one event-loop tick leave together, and a broken connection is made again; see `Client`."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._loading = asyncio.Lock()
        self._loads = 0

    async def call(self, *args: Argument) -> Any:
        """Sends one command.

        Raises:
            AgentStreamError: as `Client.call`.
        """
        return await self._client.call(*args)

    @property
    def round_trips(self) -> int:
        """How often commands were sent and answered."""
        return self._client.round_trips

    async def function(self, name: str, key: str, *args: Argument) -> Any:
        """Calls a function of the library on a stream.

        Raises:
            AgentStreamError: as `Client.call`.
        """
        return await self._function("FCALL", name, (key,), args)

    async def read(self, name: str, keys: Sequence[str], *args: Argument) -> Any:
        """Calls a function of the library that writes nothing, on streams.

        Raises:
            AgentStreamError: as `Client.call`.
        """
        return await self._function("FCALL_RO", name, keys, args)

    async def load(self) -> None:
        """Loads the library if it is missing or older than this package's.

        Raises:
            AgentStreamError: as `Client.call`.
        """
        await self._load(self._loads)

    async def close(self) -> None:
        """Closes the connection; what still waits fails with `ConnectionLost`."""
        await self._client.close()

    async def _function(
        self, command: str, name: str, keys: Sequence[str], args: tuple[Argument, ...]
    ) -> Any:
        loads = self._loads
        try:
            return await self._client.call(command, name, len(keys), *keys, *args)
        except ServerRefused as error:
            if _GONE not in str(error):
                raise
        await self._load(loads)
        return await self._client.call(command, name, len(keys), *keys, *args)

    async def _load(self, loads_seen: int) -> None:
        async with self._loading:
            # all calls of a tick find the library missing; the first of them loads it
            if self._loads == loads_seen:
                await library.load(self._client.call)
                self._loads += 1
