"""The size limit of a server (`proto-max-bulk-len`), found out before anything that might exceed it is sent.

A server that gets a larger argument closes the connection, so that other callers' commands fail, too. Agents
may not read its configuration. But it refuses an argument at the sight of its length, before the data: it is
asked about a length on a connection of its own, in one round trip.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable

from agentstream.errors import InvalidMessage
from agentstream.protocol.commands import Argument

_SMALLEST = 1 << 20
"""Bytes that every server takes: it allows no smaller limit."""


class SizeLimit:
    """What is known about the limit of one server; `takes` asks it about a number of bytes."""

    def __init__(self, takes: Callable[[int], Awaitable[bool]]) -> None:
        self._takes = takes
        self._accepted: float = _SMALLEST
        self._refused = math.inf

    def forget(self) -> None:
        """Asks again: after a reconnect it may be another server, or the limit was changed."""
        self._accepted, self._refused = _SMALLEST, math.inf

    async def check(self, arguments: tuple[Argument, ...]) -> None:
        """Checks the arguments of a command.

        Raises:
            InvalidMessage: one of them is larger than the server takes.
            AgentStreamError: it might be, and the server cannot be asked.
        """
        large = [size for size in map(_size, arguments) if size > self._accepted]
        if not large:
            return
        largest = max(large)
        # twice as much first: the next one may be a little larger
        for size in (2 * largest, largest):
            if size < self._refused:
                if await self._takes(size):
                    self._accepted = max(self._accepted, size)
                    return
                self._refused = min(self._refused, size)
        raise InvalidMessage(
            f"{largest} bytes are larger than the server's proto-max-bulk-len allows: send less, or where the"
            " data can be fetched"
        )


def may_be_large(arguments: tuple[Argument, ...]) -> bool:
    """Whether an argument may exceed the limit of a server: false of nearly all commands."""
    # a character has up to four bytes
    return any(len(one) > _SMALLEST // 4 for one in arguments if isinstance(one, bytes | str))


def _size(argument: Argument) -> int:
    if isinstance(argument, str):
        argument = argument.encode(errors="surrogatepass")
    return len(argument) if isinstance(argument, bytes) else 0
