"""The ledger of a test: what was sent, begun and handled, noted where no test destroys anything.

A line of JSON asks and a line of JSON answers, over a connection that stays. Everything is noted in the order
in which it arrives and with the time at which it does, by one clock.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Callable
from typing import Any

PORT = 8000
_PATIENCE = 5.0


class Ledger:
    """Notes, and tells what is noted.

    Args:
        steer: is called with the rate that a test wants.
        busy: tells how many messages are on their way to the server.
    """

    def __init__(self, steer: Callable[[float], None], busy: Callable[[], int]) -> None:
        self._steer = steer
        self._busy = busy
        self._notes: list[tuple[float, str, int, str]] = []
        # tells a test whether anything was forgotten
        self._run = time.time_ns()

    def note(self, what: str, number: int, who: str) -> None:
        """Notes that something happened to a number, and by whom."""
        self._notes.append((time.monotonic(), what, number, who))

    async def serve(self) -> None:
        """Answers until it is cancelled."""
        async with await asyncio.start_server(self._answer, "0.0.0.0", PORT) as server:
            await server.serve_forever()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            reply = self._reply(json.loads(line))
            writer.write(json.dumps(reply).encode() + b"\n")
            await writer.drain()
        writer.close()

    def _reply(self, asked: dict[str, Any]) -> dict[str, Any]:
        if "note" in asked:
            self.note(*asked["note"])
            return {}
        if "rate" in asked:
            self._steer(asked["rate"])
        notes = self._notes[asked["read"] :]
        return {"run": self._run, "now": time.monotonic(), "busy": self._busy(), "notes": notes}


class Notary:
    """Notes in a ledger elsewhere, for as long as it takes to reach it.

    Args:
        host: where the ledger is.
        who: who notes.
    """

    def __init__(self, host: str, who: str) -> None:
        self._host = host
        self._who = who
        self._turn = asyncio.Lock()
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def note(self, what: str, number: int) -> None:
        """Returns when it is noted."""
        line = json.dumps({"note": [what, number, self._who]}).encode() + b"\n"
        async with self._turn:
            for attempt in itertools.count():
                try:
                    async with asyncio.timeout(_PATIENCE):
                        await self._say(line)
                except OSError as error:  # a TimeoutError is one
                    self._streams = None
                    if attempt == 0:
                        print(f"no ledger at {self._host}: {error!r}")
                else:
                    return
                await asyncio.sleep(0.2)

    async def _say(self, line: bytes) -> None:
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, PORT)
        reader, writer = self._streams
        writer.write(line)
        await writer.drain()
        if not await reader.readline():
            raise ConnectionResetError("it hung up")
