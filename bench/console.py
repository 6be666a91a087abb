"""What the console costs: pages over a stream of ten million entries, and a hundred that are open at once.

A queue server in a process of its own reads a Redis of its own. Measured are the time of each page, the
longest call of Redis that it causes, and what open pages ask of Redis.

    python bench/console.py [--entries 10000000] [--letters 100000] [--consoles 100] [--seconds 20]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import httpx
import psutil

from cluster.test_queue_server import HOME, TEAM
from support.apiserver import ApiServer, private_server
from support.queue_server import QueueServer, bound, token_of
from support.servers import Server, builds
from unit.resources.manifests import a_group, a_stream

KEY = f"{{{TEAM}.tasks}}"
STREAMS, OF_ONE = 10, 20
BODY = '{"v":1,"id":"%s","from":"planner","to":"coder","type":"event","payload":{"n":1},"timestamp":1.0}'
FILL = f"""
local body = '{BODY % "0c8fa30f-cfa9-4dfb-8d2a-58bae16c1915"}'
for i = ARGV[1], ARGV[2] do redis.call('XADD', KEYS[1], i .. '-1', 'm', body, unpack(ARGV, 3)) end
"""
AT_ONCE = 10_000


def fill(redis: Server, entries: int, letters: int) -> None:
    """Adds entries that the group has read but for a tenth, and dead letters, with ids of long ago."""
    with redis.admin() as client:
        for key, count, more in (
            (KEY, entries, ()),
            (
                f"{KEY}:dlq:coder",
                letters,
                ("origin", "1-1", "attempts", "5", "reason", "MaxDeliveries", "error", "E"),
            ),
        ):
            for first in range(1, count + 1, AT_ONCE):
                client.eval(FILL, 1, key, first, min(first + AT_ONCE - 1, count), *more)
        client.xgroup_create(KEY, "coder", id=f"{entries * 9 // 10}-1")
        for number in range(1, STREAMS):
            client.xgroup_create(f"{{{TEAM}.s{number}}}", "g", id="0", mkstream=True)


def declare(api: ApiServer, queue: QueueServer, visitors: int) -> list[str]:
    """Declares streams and groups, and accounts that may see all of it. Returns their tokens."""
    for namespace in (HOME, TEAM):
        api.create_namespace(namespace)
    queue.install()
    kubectl = api.kubectl(TEAM)
    kubectl.apply(a_stream("tasks"), a_group("coder"))
    for number in range(1, STREAMS):
        kubectl.apply(
            a_stream(f"s{number}"), a_group(f"g{number}", streamRef={"name": f"s{number}"}, group="g")
        )
    accounts = [f"visitor-{number}" for number in range(visitors)]
    for account in accounts:
        kubectl.apply(*bound(TEAM, account, "agentstream-view", "agentstream-edit", "cluster-admin"))
    return [token_of(api, TEAM, account) for account in accounts]


class Commands:
    """What Redis was asked: how many commands, and its longest one in ms."""

    def __init__(self, redis: Server) -> None:
        self._redis = redis

    def forget(self) -> None:
        """Begins to count."""
        with self._redis.admin() as client:
            client.config_set("slowlog-log-slower-than", 500)
            client.slowlog_reset()
            client.config_resetstat()

    def seen(self) -> tuple[int, float]:
        """Returns the number of commands, without those of this class, and the longest one."""
        with self._redis.admin() as client:
            found: Any = client.info("commandstats")
            slow = [one["duration"] / 1000 for one in client.slowlog_get(1000)]
        own = (
            "cmdstat_info",
            "cmdstat_slowlog",
            "cmdstat_config",
            "cmdstat_client",
            "cmdstat_hello",
            "cmdstat_auth",
        )
        # what functions call is theirs
        asked = ("cmdstat_fcall", "cmdstat_fcall_ro")
        names = [name for name in found if name in asked] or [
            name for name in found if not name.startswith(own)
        ]
        return sum(found[name]["calls"] for name in names), max(slow, default=0.0)


async def pages(queue: QueueServer, token: str, commands: Commands) -> None:
    """Opens each page a few times."""
    paths = {
        "first page": "/console",
        "stream": f"/console/streams/{TEAM}/tasks",
        "search of a text": f"/console/streams/{TEAM}/tasks?q=nothing",
        "group": f"/console/groups/{TEAM}/coder",
        "dead letters": f"/console/groups/{TEAM}/coder/deadletters",
        "their list": f"/console/groups/{TEAM}/coder/deadletters/list",
        "message": f"/console/messages/{TEAM}/tasks/77-1",
        "dry run": f"/console/replay?namespace={TEAM}&group=coder&source=Stream&look=1",
        "lag, as JSON": "/queue/lag",
    }
    async with visitor(queue, token) as http:
        for name, path in paths.items():
            took = []
            commands.forget()
            for _ in range(5):
                begun = time.perf_counter()
                answer = await http.get(path)
                took.append(time.perf_counter() - begun)
                assert answer.status_code == 200, (path, answer.status_code, answer.text[:500])  # noqa: PLR2004
            _, longest = commands.seen()
            print(
                f"  {name:18} {statistics.median(took) * 1000:8.1f} ms, at most {max(took) * 1000:8.1f} ms, "
                f"{len(answer.content) / 1024:6.1f} KiB, longest call of Redis {longest:5.2f} ms"
            )


@contextlib.asynccontextmanager
async def visitor(queue: QueueServer, token: str) -> AsyncIterator[httpx.AsyncClient]:
    """A browser that is logged in."""
    async with queue.client(token) as http:
        http.timeout = httpx.Timeout(60)
        yield http


async def watch(queue: QueueServer, token: str, path: str, frames: list[int]) -> None:
    """Holds a live page open, and counts how often it is shown anew."""
    async with (
        visitor(queue, token) as http,
        http.stream("GET", "/console/live", params={"page": path}, timeout=None) as reply,
    ):
        assert reply.status_code == 200, await reply.aread()  # noqa: PLR2004
        async for line in reply.aiter_lines():
            frames[0] += line.startswith("event: page")


async def open_pages(
    queue: QueueServer, tokens: list[str], count: int, seconds: float, commands: Commands
) -> None:
    """Holds so many pages open, and tells what that costs."""
    paths = ["/console", f"/console/groups/{TEAM}/coder", f"/console/streams/{TEAM}/tasks"]
    paths += [f"/console/groups/{TEAM}/g{number}" for number in range(1, STREAMS)]
    frames = [0]
    watching = [
        asyncio.create_task(watch(queue, tokens[at // OF_ONE], paths[at % len(paths)], frames))
        for at in range(count)
    ]
    await asyncio.sleep(3)
    server = psutil.Process(queue._process.pid)  # type: ignore[union-attr] # noqa: SLF001
    commands.forget()
    before, frames[0] = server.cpu_times().user, 0
    await asyncio.sleep(seconds)
    asked, longest = commands.seen()
    cpu = (server.cpu_times().user - before) / seconds
    ended = [task for task in watching if task.done()]
    print(
        f"  {count:3} open: {asked / seconds:6.1f} calls of Redis a second, the longest {longest:5.2f} ms; "
        f"{frames[0] / seconds:6.1f} pages shown a second, {cpu:.0%} of a core, "
        f"{server.memory_info().rss >> 20} MiB; {len(ended)} ended by themselves"
    )
    for task in watching:
        task.cancel()
    await asyncio.gather(*watching, return_exceptions=True)


async def main(entries: int, letters: int, consoles: int, seconds: float) -> None:
    """Measures, and prints a line each."""
    with tempfile.TemporaryDirectory() as place, private_server() as api:
        directory = Path(place)
        redis = Server(builds()[0], directory)
        redis.start()
        queue = QueueServer(api, HOME, redis.url, directory)
        try:
            tokens = declare(api, queue, -(-consoles // OF_ONE))
            fill(redis, entries, letters)
            queue.start()
            await queue.ready()
            commands = Commands(redis)
            print(f"{entries:,} entries, {letters:,} dead letters:")
            await pages(queue, tokens[0], commands)
            for count in (0, 1, consoles):
                await open_pages(queue, tokens, count, seconds, commands)
        finally:
            queue.stop()
            redis.kill()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--entries", type=int, default=10_000_000)
    parser.add_argument("--letters", type=int, default=100_000)
    parser.add_argument("--consoles", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=20)
    given = parser.parse_args()
    asyncio.run(main(given.entries, given.letters, given.consoles, given.seconds))
