"""What a replay costs: a stream with a million messages, of which every tenth is selected.

Starts an embedded Valkey of its own. Prints how long it takes to read all, and to count what is selected as a
dry run does; how fast whole pages are moved; and the longest single call of each function by the server's own
clock, in which nobody else is served.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from agentstream.protocol import commands
from agentstream.protocol.commands import PAGE
from agentstream.protocol.keys import StreamKeys, replay_id
from agentstream.protocol.replaying import (
    FIRST,
    LAST,
    NO_ROOM,
    ReplayOf,
    Selected,
    page,
    parse_moved,
    parse_page,
    replay,
)
from agentstream.transport.client import Client
from agentstream.transport.endpoint import Endpoint
from agentstream_operator.broker.broker import Broker
from support.servers import Server, builds

KEY, GROUP = "{bench.tasks}", "coder"
KEYS = StreamKeys(KEY)
EVERY = 10
FILL = """
local key, first, count = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2])
local every, keyed = tonumber(ARGV[3]), ARGV[4] == '1'
for i = first, first + count - 1 do
  local kind = i % every == 0 and 'task_request' or 'event'
  local key_of = keyed and ',"key":"k' .. i % 1000 .. '"' or ''
  local body = string.format('{"v":1,"id":"0b0e9d3e-4b55-4f6e-8f1c-%012d","from":"planner","to":"coder",' ..
    '"type":"%s"%s,"payload":{"doc":%d,"text":"%s"},"timestamp":1790000000.5}',
    i, kind, key_of, i, string.rep('x', 100))
  local more = keyed and {'p', '0-0'} or {}
  redis.call('XADD', key, '*', 'm', body, unpack(more))
end
"""


def fill(admin: Any, count: int, *, keyed: bool) -> None:
    """Adds messages that the group has handled; every tenth is a request."""
    admin.execute_command(*commands.create_stream(KEY, {"name": "tasks"}))
    for first in range(0, count, 10_000):
        admin.eval(FILL, 1, KEY, first, min(10_000, count - first), EVERY, int(keyed))
    admin.execute_command(*commands.create_group(KEY, GROUP, "$"))


def longest(admin: Any, function: str) -> str:
    """The median and the longest call of a function since the last look."""
    calls = [one for one in admin.slowlog_get(100_000) if function in str(one["command"][:60])]
    took = [one["duration"] / 1000 for one in calls] or [0.0]
    return f"a call {statistics.median(took):.2f} ms, the longest {max(took):.2f} ms"


async def scan(call: Any) -> list[str]:
    """Reads the whole stream. Returns the ids of the requests."""
    start: str | None = FIRST
    found = []
    while start is not None:
        read = parse_page(await call(*page(KEY, start, LAST, PAGE)))
        found += [entry.id for entry in read.entries if b'"type":"task_request"' in entry.fields[1]]
        start = read.next
    return found


async def drain(call: Any) -> None:
    """Takes all off the retry stream, as fast consumers would."""
    await call("DEL", KEYS.retry(GROUP))
    await call("XGROUP", "CREATE", KEYS.retry(GROUP), GROUP, "0", "MKSTREAM")


async def move(call: Any, ids: list[str], size: int, name: str, source: Literal["stream", "dead"]) -> float:
    """Moves the selected messages, so many in a call. Returns the seconds for that, without draining."""
    of, at, spent = ReplayOf(KEY, GROUP, replay_id(name, "01234567")), "", 0.0
    left = list(ids)
    while left:
        few = [Selected(entry, "", f"k{n % 1000}") for n, entry in enumerate(left[:size])]
        began = time.perf_counter()
        reply = parse_moved(await call(*replay(of, source, (at, few[-1].id), 2 * PAGE, few)))
        spent += time.perf_counter() - began
        if reply.code == NO_ROOM or reply.waiting > PAGE:
            await drain(call)
        at = reply.cursor
        del left[: reply.moved]
    await drain(call)
    return spent


async def measure(server: Server, count: int, *, keyed: bool) -> None:
    """Fills, scans, moves, and prints."""
    admin: Any = server.admin()
    broker = await Broker.connect(server.url, installation="bench")
    await broker.close()
    fill(admin, count, keyed=keyed)
    admin.config_set("slowlog-log-slower-than", 20)
    admin.config_set("slowlog-max-len", 100_000)
    client = Client(lambda: Endpoint(server.url), name="bench")
    try:
        print(f"{server.version}: {count:,} messages{', with ordering keys' if keyed else ''}")
        admin.slowlog_reset()
        began = time.perf_counter()
        ids = await scan(client.call)
        spent = time.perf_counter() - began
        print(f"  all read, {len(ids):,} selected: {spent:.1f} s, {longest(admin, 'as1_page')}")
        for size in (PAGE, 50):
            admin.slowlog_reset()
            spent = await move(client.call, ids, size, f"by-{size}", "stream")
            what = f"moved by {size}: {len(ids) / spent:,.0f}/s"
            print(f"  {what}, {longest(admin, 'as1_replay')}")
        letters = [
            (
                await client.call("XADD", KEYS.dead_letters(GROUP), "*", "m", "x" * 300, "origin", entry)
            ).decode()
            for entry in ids[:20_000]
        ]
        admin.slowlog_reset()
        spent = await move(client.call, letters, PAGE, "dead", "dead")
        print(
            f"  dead letters by {PAGE}: {len(letters) / spent:,.0f}/s", longest(admin, "as1_replay"), sep=", "
        )
    finally:
        await client.close()
        admin.close()


def main() -> None:
    """Measures on each server, with and without ordering keys."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=1_000_000)
    options = parser.parse_args()
    for keyed in (False, True):
        with tempfile.TemporaryDirectory() as directory:
            server = Server(builds()[0], Path(directory))
            server.start()
            try:
                asyncio.run(measure(server, options.messages, keyed=keyed))
            finally:
                server.kill()


if __name__ == "__main__":
    main()
