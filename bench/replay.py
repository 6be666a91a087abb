"""What a replay costs: a stream with a million messages, of which every tenth is selected.

Starts an embedded Valkey of its own for each part. Calls: how long it takes to read all, how fast it is
moved, and the longest single call of each function by the server's own clock: nobody else is served
meanwhile. Carried: how long a dry run of an operator takes, and how well it keeps the rate of a replay while
a consumer handles what the group gets.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from agentstream.protocol import commands
from agentstream.protocol.commands import PAGE, GroupCalls
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
from agentstream.protocol.routes import Consumes
from agentstream.transport.client import Client
from agentstream.transport.endpoint import Endpoint
from agentstream_operator.broker.broker import Broker
from agentstream_operator.broker.replay import MANY
from agentstream_operator.reconcile.state.state import EngineOptions, LoopIntervals
from agentstream_operator.resources.status import StreamReplayStatus
from agentstream_operator.resources.streamreplay import StreamReplay
from support.entries import Pending
from support.operator import Operator, operator
from support.resources import KEY, a_group, a_replay, a_stream
from support.servers import Server, builds
from support.waiting import until

GROUP = "coder"
KEYS = StreamKeys(KEY)
STREAM = a_stream(producers=["planner"], retention={"minAge": "24h", "maxLength": 100_000_000})
DECLARED = a_group(startFrom="End")
CALLS = GroupCalls(Consumes("tasks", KEY, GROUP), "pod.1")
CALM = EngineOptions(loops=LoopIntervals(measure=1.0, janitor=5.0), server_timeout=10.0)
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


def fill(admin: Any, count: int, *, keyed: bool = False) -> None:
    """Adds messages; every tenth is a request."""
    for first in range(0, count, 10_000):
        admin.eval(FILL, 1, KEY, first, min(10_000, count - first), EVERY, int(keyed))


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
        read = parse_page(await call(*page(KEY, start, LAST, MANY)))
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


async def carried(server: Server, count: int) -> None:
    """Has an operator count what a replay would do, and carry out others at a rate."""
    admin: Any = server.admin()
    async with operator(server.url, STREAM, options=CALM) as op:
        await op.ready(STREAM.key)
        await asyncio.to_thread(fill, admin, count)
        # a group that begins at the end has handled what is there
        await op.put(DECLARED)
        done = asyncio.create_task(consume(op))
        try:
            print(f"{server.version}, carried out by an operator: {count:,} messages")
            spent, status = await carry_out(op, "dry", {"dryRun": True})
            print(f"  dry run, {status.matched:,} selected: {spent:.1f} s")
            for rate in (100, 1_000, 5_000):
                spent, status = await carry_out(op, f"at-{rate}", {"rate": rate, "limit": 10 * rate})
                moved = status.moved or 0
                print(f"  {moved:,} at {rate:,}/s in {spent:.1f} s: {moved / spent / rate:.0%}")
        finally:
            done.cancel()
            await asyncio.gather(done, return_exceptions=True)
            admin.close()


async def carry_out(op: Operator, name: str, spec: dict[str, Any]) -> tuple[float, StreamReplayStatus]:
    """Declares a replay. Returns the seconds until it had moved all, and its last status."""
    meta = {"uid": str(uuid.uuid4())}
    replay = a_replay(
        name, meta=meta, **{"from": {"source": "Stream"}, "select": {"types": ["task_request"]}, **spec}
    )
    began = time.monotonic()
    op.declare(replay)
    await until(lambda: ended(op, replay).phase in {"Complete", "Failed"}, timeout=300)
    return time.monotonic() - began, ended(op, replay)


def ended(op: Operator, replay: StreamReplay) -> StreamReplayStatus:
    """The status of a replay."""
    found = op.cluster.statuses.get(replay.key)
    return found if isinstance(found, StreamReplayStatus) else StreamReplayStatus()


async def consume(op: Operator) -> None:
    """Handles what the group gets, at once."""
    while True:
        reply = await op.broker.call(*CALLS.read((CALLS.retries,), PAGE, None))
        held = [Pending(entry.decode(), CALLS.retries) for _, found in reply or () for entry, _ in found]
        if held:
            await op.broker.call(*CALLS.settle(CALLS.retries, "acked", held))
        else:
            await asyncio.sleep(0.01)


async def measure(server: Server, count: int, *, keyed: bool) -> None:
    """Fills, scans, moves, and prints."""
    admin: Any = server.admin()
    broker = await Broker.connect(server.url, installation="bench")
    await broker.close()
    fill(admin, count, keyed=keyed)
    # a group that begins at the end has handled what is there
    admin.execute_command(*commands.create_group(KEY, GROUP, "$"))
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
    """Measures each part on a server of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--only", choices=("calls", "carried"))
    options = parser.parse_args()
    parts: list[Callable[[Server], Coroutine[Any, Any, None]]] = []
    if options.only != "carried":
        parts += [partial(measure, count=options.messages, keyed=keyed) for keyed in (False, True)]
    if options.only != "calls":
        parts.append(partial(carried, count=options.messages))
    for part in parts:
        with tempfile.TemporaryDirectory() as directory:
            server = Server(builds()[0], Path(directory))
            server.start()
            try:
                asyncio.run(part(server))
            finally:
                server.kill()


if __name__ == "__main__":
    main()
