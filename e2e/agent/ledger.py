"""The ledger of a test: what was sent, begun and handled, noted where no test destroys anything.

A line of JSON asks and a line of JSON answers, over a connection that stays. Everything is noted in the order
in which it arrives and with the time at which it does, by one clock, or with the time that who noted it says:
all containers of kind's nodes are on one machine, and have its clock.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Self

PORT = 8000
_PATIENCE = 5.0
_PAUSE = 0.02
# a line must not become too long to be read
_PART = 500


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

    def copy(self, notes: Iterable[tuple[float, str, int]], who: str) -> None:
        """Notes what somebody noted elsewhere, with the times of there."""
        self._notes += [(at, what, number, who) for at, what, number in notes]

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
        if "notes" in asked:
            self.copy(asked["notes"], asked["who"])
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
        await self._tell({"note": [what, number, self._who]})

    async def copy(self, notes: list[tuple[float, str, int]]) -> None:
        """Returns when notes with times of their own are in the ledger."""
        await self._tell({"notes": notes, "who": self._who})

    async def _tell(self, what: dict[str, Any]) -> None:
        line = json.dumps(what).encode() + b"\n"
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


class Journal:
    """Notes for a ledger elsewhere, copied there beside the work: waiting for it would slow the work down.

    Args:
        host: where the ledger is.
        who: who notes.
    """

    def __init__(self, host: str, who: str) -> None:
        self._notary = Notary(host, who)
        self._notes: list[tuple[float, str, int]] = []
        self._over = False
        self._copying: asyncio.Task[None] | None = None

    def note(self, what: str, number: int, at: float | None = None) -> None:
        """Notes that something happened to a number: now, or then, in seconds since 1970."""
        self._notes.append((time.time() if at is None else at, what, number))

    async def __aenter__(self) -> Self:
        self._copying = asyncio.create_task(self._copy())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over = True
        if self._copying is not None:
            await self._copying

    async def _copy(self) -> None:
        while self._notes or not self._over:
            part, self._notes = self._notes[:_PART], self._notes[_PART:]
            if part:
                await self._notary.copy(part)
            if not self._notes:
                await asyncio.sleep(_PAUSE)


async def main() -> None:
    """Serves a ledger until the process is told to end."""
    await Ledger(lambda _: None, lambda: 0).serve()


if __name__ == "__main__":
    asyncio.run(main())
