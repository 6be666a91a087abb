"""A ledger in SQLite that books each transfer exactly once, although its process may be killed at any line.

A message may come again, as after `kill -9` between COMMIT and acknowledgement. So one transaction of the
ledger holds both the effect and the id of the message that caused it: a second attempt changes nothing. The
same works in PostgreSQL with `INSERT … ON CONFLICT DO NOTHING`.
"""

import asyncio
import logging
import sqlite3
import sys

import msgspec

from agentstream import Agent, Delivery

agent = Agent.from_env()
log = logging.getLogger(__name__)
TABLES = """
CREATE TABLE IF NOT EXISTS booked (message TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS transfers (n INTEGER, amount INTEGER);
"""


class Transfer(msgspec.Struct):
    """An amount to book."""

    n: int
    amount: int


def opened(path: str) -> sqlite3.Connection:
    """Opens the ledger; a writer waits up to 30 s for another one."""
    ledger = sqlite3.connect(path, timeout=30, isolation_level=None)
    ledger.execute("PRAGMA journal_mode=WAL")
    ledger.executescript(TABLES)
    return ledger


def book(path: str, message: str, transfer: Transfer) -> bool:
    """Books a transfer unless this message has booked it. Returns whether it did."""
    ledger = opened(path)
    try:
        ledger.execute("BEGIN IMMEDIATE")
        if not ledger.execute("INSERT OR IGNORE INTO booked VALUES (?)", (message,)).rowcount:
            ledger.execute("ROLLBACK")
            return False
        ledger.execute("INSERT INTO transfers VALUES (?, ?)", (transfer.n, transfer.amount))
        ledger.execute("COMMIT")
    finally:
        ledger.close()
    return True


@agent.on("event")
async def handle(transfer: Transfer, delivery: Delivery[Transfer]) -> None:
    """Books a transfer in a thread, so that the event loop goes on."""
    log.info("began %d", transfer.n)
    booked = await asyncio.to_thread(book, sys.argv[1], delivery.message.id, transfer)
    log.info("handled %d%s", transfer.n, "" if booked else ", which was booked before")


async def main() -> None:
    """Works until SIGTERM."""
    opened(sys.argv[1]).close()
    async with agent:
        log.info("ready")
        await agent.run(concurrency=8)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    asyncio.run(main())
