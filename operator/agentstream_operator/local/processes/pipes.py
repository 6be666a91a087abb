"""Pipes for what processes print.

With `asyncio.subprocess.PIPE`, `Process.wait` would last until every inheritor of the pipe has ended, too.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

LONGEST_LINE = 4_000
"""Characters of a line that are kept."""

_CHUNK = 65_536


class Pipe:
    """A pipe that a process writes to and we read from.

    Attributes:
        inlet: the descriptor that the process gets; ours is closed once reading begins.
    """

    def __init__(self) -> None:
        self._outlet, self.inlet = os.pipe()

    def abandon(self) -> None:
        """Closes a pipe that nobody reads."""
        os.close(self.inlet)
        os.close(self._outlet)

    async def _chunks(self) -> AsyncIterator[bytes]:
        """What is written, until every writer has closed the pipe."""
        os.close(self.inlet)
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(self._outlet, "rb", buffering=0)
        )
        try:
            while chunk := await reader.read(_CHUNK):
                yield chunk
        finally:
            transport.close()

    async def lines(self) -> AsyncIterator[str]:
        """What is written, line by line; what a line has beyond `LONGEST_LINE` characters is only counted."""
        rest = b""
        async for chunk in self._chunks():
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                yield _shown(line)
            # a line without an end must not gather in memory
            if len(rest) > 4 * LONGEST_LINE:
                yield _shown(rest)
                rest = b""
        if rest:
            yield _shown(rest)


def _shown(raw: bytes) -> str:
    text = raw.decode(errors="replace").rstrip("\r")
    if len(text) <= LONGEST_LINE:
        return text
    return f"{text[:LONGEST_LINE]}… ({len(text) - LONGEST_LINE} more)"
