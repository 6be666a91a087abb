"""What consumers did, written down where it survives them, and what they do with numbered messages."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

from agentstream.consuming.delivery import Delivery


class Record(NamedTuple):
    """One line of a ledger.

    Attributes:
        what: `began`, `done`, `acked` or `refused`: it was told that it did not hold the message any more.
        number: the message's.
        attempt: the attempt's.
        fence: the delivery's.
        who: the consumer.
    """

    what: str
    number: int
    attempt: int
    fence: int
    who: str


class Ledger:
    """A file to which any number of processes append whole lines."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def note(self, what: str, delivery: Delivery[dict[str, Any]], who: str) -> None:
        """Writes a line: it is there even if the process is killed at the next moment."""
        line = f"{what} {delivery.payload['n']} {delivery.attempt} {delivery.fence} {who}\n"
        os.write(self._file, line.encode())

    def records(self, *kinds: str) -> list[Record]:
        """All lines of these kinds, in the order in which they were written."""
        # the last line may be seen while it is written
        whole, _, _ = self.path.read_text(encoding="utf-8").rpartition("\n")
        rows = [line.split() for line in whole.splitlines()]
        return [
            Record(what, int(number), int(attempt), int(fence), who)
            for what, number, attempt, fence, who in rows
            if what in kinds
        ]

    def close(self) -> None:
        """Closes the file."""
        os.close(self._file)


async def handle(deliveries: AsyncIterator[Delivery[dict[str, Any]]], ledger: Ledger, who: str) -> None:
    """Handles messages as their payloads say, one after the other, and writes down what happens.

    A payload has a number `n`, and may say how long handling `takes`, for how many attempts it `fails`, or
    that it `kills` the process.
    """
    async for delivery in deliveries:
        work = delivery.payload
        ledger.note("began", delivery, who)
        if work.get("kills"):
            os.kill(os.getpid(), signal.SIGKILL)
        await asyncio.sleep(work.get("takes", 0))
        if delivery.attempt <= work.get("fails", 0):
            held = await delivery.retry(reason="as it was told")
            ledger.note("retried" if held else "refused", delivery, who)
            continue
        ledger.note("done", delivery, who)
        ledger.note("acked" if await delivery.ack() else "refused", delivery, who)
