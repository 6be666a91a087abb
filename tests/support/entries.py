"""Streams with entries of a given age, and passes of the janitor over them."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from itertools import chain
from typing import Any

import redis

from agentstream.protocol import commands
from agentstream.protocol.entry import Source
from agentstream.protocol.keys import StreamKeys
from agentstream_operator.plan.retention import JanitorSpec

KEY = "{t.tasks}"
GATE = f"{KEY}:gate"
HOUR = 3_600_000


@dataclass
class Pending:
    """A pending entry, of the stream itself unless said otherwise, as calls about it take one."""

    id: str
    source: Source = Source(KEY, retry=False)  # noqa: RUF009 - it is immutable
    counter: int = 1
    after: str | None = None


def spec(
    *groups: str,
    min_age: int = HOUR,
    max_length: int = 1_000_000,
    max_bytes: int = 0,
    on_full: str = "TrimAcknowledged",
    broadcast: bool = False,
    lease: int = HOUR,
    keep_dead: int = HOUR,
) -> JanitorSpec:
    declared = tuple((name, lease, keep_dead) for name in groups)
    return JanitorSpec(
        key=KEY,
        min_age=min_age,
        max_length=max_length,
        max_bytes=max_bytes,
        on_full=on_full,
        groups=declared,
        broadcast=broadcast,
    )


def now(admin: redis.Redis) -> int:
    seconds, microseconds = admin.time()
    return seconds * 1000 + microseconds // 1000


def fill(admin: redis.Redis, count: int, *, age: int = 0, key: str = KEY) -> list[str]:
    """Adds entries that are this many ms old."""
    ms = now(admin) - age
    with admin.pipeline(transaction=False) as batch:
        for sequence in range(count):
            batch.xadd(key, {"m": "x"}, id=f"{ms}-{sequence}")
        ids: list[str] = batch.execute()
    return ids


def read(admin: redis.Redis, group: str = "g", *, count: int = 100_000, ack: bool = False) -> list[str]:
    reply: Any = admin.xreadgroup(group, "c", {KEY: ">"}, count=count)
    ids = [entry for entry, _ in reply[0][1]] if reply else []
    if ack and ids:
        settle(admin, *ids, group=group)
    return ids


def settle(admin: redis.Redis, *ids: str, group: str = "g") -> None:
    """Acknowledges entries and counts them, as the function library does."""
    admin.xack(KEY, group, *ids)
    admin.hincrby(f"{KEY}:stats:{group}", "settled", len(ids))


def left(admin: redis.Redis) -> list[str]:
    entries: Any = admin.xrange(KEY)
    return [entry for entry, _ in entries]


def refuses(admin: redis.Redis) -> bool:
    reply: Any = admin.fcall(*add_command(KEY, "x"))
    return str(reply) == "0 BACKPRESSURE"


def add_command(key: str, *messages: str, number: int = 0, token: str = "") -> tuple[Any, ...]:
    """Function and arguments that add a batch without options; by a sender of its own, if none is named."""
    arguments = chain.from_iterable(commands.message(message.encode()) for message in messages)
    sender = token or secrets.token_hex(16)
    return commands.add(StreamKeys(key), sender, number, 60_000, arguments)[1:]


def envelope(number: int = 0, **fields: Any) -> str:
    """A task for the agent `coder`, as JSON; its number is the end of its id, and its payload."""
    message = {
        "v": 1,
        "id": f"00000000-0000-4000-8000-{number:012}",
        "from": "planner",
        "to": "coder",
        "type": "task_request",
        "payload": {"number": number},
        "timestamp": 0,
    }
    return json.dumps(message | fields)
