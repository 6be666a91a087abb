"""What clients send to a server, as it says itself (https://valkey.io/commands/monitor/)."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable

from support.servers import Server

# what a function calls has no address but `lua`
_LINE = re.compile(rb'\+[\d.]+ \[\d+ (\S+)\] "([^"]*)"(?: "([^"]*)")?')
_END = b"monitoring-ends"


async def sent_meanwhile(server: Server, while_: Awaitable[object]) -> list[str]:
    """The commands that clients send while something goes on; of functions, their names."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    other_reader, other_writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        writer.write(b"MONITOR\r\n")
        assert await reader.readline() == b"+OK\r\n"
        await while_
        other_writer.write(b"ECHO " + _END + b"\r\n")
        await other_reader.readline()
        sent: list[str] = []
        while _END not in (line := await reader.readline()):
            found = _LINE.match(line)
            if found is not None and found[1] != b"lua":
                command = found[2].decode().upper()
                sent.append(found[3].decode() if command == "FCALL" else command)
        return sent
    finally:
        for one in (writer, other_writer):
            one.close()
            await one.wait_closed()
