"""The operator's connection: commands, and calls of the function library, loaded again when it is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from agentstream.errors import ServerRefused
from agentstream.protocol import library
from agentstream.transport.client import Argument, Wire

_GONE = "Function not found"


class Connection:
    """Commands of one event-loop tick leave together, and a broken connection is made again; see `Wire`."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._loading = asyncio.Lock()
        self._loads = 0

    async def call(self, *args: Argument) -> Any:
        """Sends one command.

        Raises:
            AgentStreamError: as `Wire.call`.
        """
        return await self._wire.call(*args)

    @property
    def round_trips(self) -> int:
        """How often commands were sent and answered."""
        return self._wire.round_trips

    async def function(self, name: str, key: str, *args: Argument) -> Any:
        """Calls a function of the library on a stream.

        Raises:
            AgentStreamError: as `Wire.call`.
        """
        return await self._function("FCALL", name, (key,), args)

    async def read(self, name: str, keys: Sequence[str], *args: Argument) -> Any:
        """Calls a function of the library that writes nothing, on streams.

        Raises:
            AgentStreamError: as `Wire.call`.
        """
        return await self._function("FCALL_RO", name, keys, args)

    async def load(self) -> None:
        """Loads the library if it is missing or older than this package's.

        Raises:
            AgentStreamError: as `Wire.call`.
        """
        await self._load(self._loads)

    async def close(self) -> None:
        """Closes the connection; what still waits fails with `ConnectionLost`."""
        await self._wire.close()

    async def _function(
        self, command: str, name: str, keys: Sequence[str], args: tuple[Argument, ...]
    ) -> Any:
        loads = self._loads
        try:
            return await self._wire.call(command, name, len(keys), *keys, *args)
        except ServerRefused as error:
            if _GONE not in str(error):
                raise
        await self._load(loads)
        return await self._wire.call(command, name, len(keys), *keys, *args)

    async def _load(self, loads_seen: int) -> None:
        async with self._loading:
            # all calls of a tick find the library missing; the first of them loads it
            if self._loads == loads_seen:
                await library.load(self._wire.call)
                self._loads += 1
