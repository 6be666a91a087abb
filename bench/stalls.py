"""The longest that another client waits while functions of the library have much to do, or large entries.

Starts an embedded Valkey of its own for each measurement. With `--other DIRECTORY`, the Lua files of another
revision, both libraries take turns in one run, so that what else the machine does concerns both. A call is
repeated until there is no more to do, where the library says so. A process of its own pings meanwhile.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))


from agentstream.protocol import library
from support.servers import Server, builds

KEY, BASE, STATS = "{b.tasks}", "{b.tasks}", "{b.tasks}:stats:g"
DELAY, RETRY = "{b.tasks}:delay:g", "{b.tasks}:retry:g"
PINGER = """
import redis, sys, threading, time
client, ended = redis.Redis(port=int(sys.argv[1])), threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
client.ping()
print("ready", flush=True)
longest = 0.0
while not ended.is_set():
    began = time.perf_counter()
    client.ping()
    longest = max(longest, time.perf_counter() - began)
    time.sleep(0.0005)
print(longest)
"""
FILL = """
local body, now = string.rep('x', ARGV[2]), redis.call('TIME')[1] * 1000
for i = 1, ARGV[1] do redis.call('XADD', KEYS[1], string.format('%.0f-%d', now, i), 'm', body) end
"""
DUE = """
for i = 1, ARGV[1] do
  local fields = {'m', 'x', 'x', '{"origin":"1-1","attempts":1}'}
  redis.call('ZADD', KEYS[1], 1, cmsgpack.pack({'1-' .. i, 1, fields}))
end
"""
IDLE = """
for _, p in ipairs(redis.call('XPENDING', KEYS[1], 'g', '-', '+', 1000000)) do
  redis.call('XCLAIM', KEYS[1], 'g', 'pod.1', 0, p[1], 'IDLE', 86400000, 'JUSTID')
end
"""


def fill(client: Any, count: int, body: int = 100) -> None:
    """Adds entries that `g` has not read."""
    client.eval(FILL, 1, KEY, str(count), str(body))


def hold(client: Any, count: int, body: int = 100) -> None:
    """Adds entries that `pod.1`, which is gone, holds."""
    fill(client, count, body)
    client.eval("redis.call('XREADGROUP', 'GROUP', 'g', 'pod.1', 'STREAMS', KEYS[1], '>')", 1, KEY)
    client.eval(IDLE, 1, KEY)


def behind(client: Any, count: int, body: int) -> None:
    """Adds a backlog that the server cannot count, as an entry in it was deleted."""
    fill(client, count, body)
    client.xreadgroup("g", "pod.1", {KEY: ">"}, count=1)
    (entry, _), *_ = client.xrevrange(KEY, count=1)
    client.xdel(KEY, entry)


def due(client: Any, count: int) -> None:
    """Has retries due."""
    client.eval(DUE, 1, DELAY, str(count))


def measure(client: Any) -> None:
    """Looks at a stream as the operator does."""
    client.execute_command("FCALL_RO", "as1_measure", 1, KEY, 1, BASE, "", 1, "g")


def janitor(client: Any) -> None:
    """Cleans up as the operator does."""
    limits = (3_600_000, 1_000_000, 0, "TrimAcknowledged", 100_000)
    client.execute_command("FCALL", "as1_janitor", 1, KEY, BASE, *limits, 1, 0, "g", 10_000, 3_600_000)


def take(client: Any) -> None:
    """Takes over what a process that is gone held, as one with 10,000 slots."""
    start: Any = "-"
    while start:
        arguments = ("g", "pod.2", STATS, 0, "pod.1", start, 10_000)
        start, _ = client.execute_command("FCALL", "as1_take", 1, KEY, *arguments)


def sweep(client: Any) -> None:
    """Sweeps, as a consumer with 10,000 slots, until there is nothing to claim or to move."""
    arguments = ("g", "pod.2", STATS, DELAY, RETRY, 60_000, 1_000, 10_000, 1, "")
    moved, wait = 1, 0
    while moved or not wait:
        moved, _, _, wait, *_ = client.execute_command("FCALL", "as1_sweep", 1, KEY, *arguments)


def release(client: Any) -> None:
    """Releases what a pod held that is gone."""
    start: Any = "-"
    while start:
        arguments = (BASE, "g", "pod.", "", 0, 0, start)
        reply = client.execute_command("FCALL", "as1_orphan", 1, KEY, *arguments)
        start = reply[0] if isinstance(reply, list) else ""


Step = Callable[[Any], None]
SCENARIOS: dict[str, tuple[Step, Step]] = {
    "measure, 500 entries of 200 KiB": (lambda client: behind(client, 500, 200 << 10), measure),
    "measure, 500 entries of 1 MiB": (lambda client: behind(client, 500, 1 << 20), measure),
    "janitor, 500 entries of 1 MiB": (lambda client: behind(client, 500, 1 << 20), janitor),
    "take, 10,000 held": (lambda client: hold(client, 10_000), take),
    "sweep, 10,000 lapsed": (lambda client: hold(client, 10_000), sweep),
    "sweep, 100 of 1 MiB lapsed": (lambda client: hold(client, 100, 1 << 20), sweep),
    "sweep, 100,000 retries due": (lambda client: due(client, 100_000), sweep),
    "release_pod, 99,500 held": (lambda client: hold(client, 99_500), release),
}


def stall(source: str, prepare: Step, call: Step) -> tuple[float, float]:
    """The ms that another client waited at most, and the MiB by which the functions' memory grew."""
    with tempfile.TemporaryDirectory() as directory:
        server = Server(builds()[0], Path(directory))
        server.start()
        try:
            with server.admin() as client:
                client.function_load(source, replace=True)
                client.xgroup_create(KEY, "g", "0", mkstream=True)
                client.xgroup_create(RETRY, "g", "0", mkstream=True)
                prepare(client)
                before = client.info("memory")["used_memory_vm_functions"]
                command = (sys.executable, "-c", PINGER, str(server.port))
                with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as pinger:
                    assert pinger.stdout is not None
                    pinger.stdout.readline()
                    call(client)
                    longest, _ = pinger.communicate()
                grown = client.info("memory")["used_memory_vm_functions"] - before
                return float(longest) * 1000, grown / (1 << 20)
        finally:
            server.kill()


def main() -> None:
    """Parses the arguments, measures in turns and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--other", metavar="DIRECTORY", type=Path, help="the Lua files of another revision")
    arguments = parser.parse_args()
    sources = {"this": library.source()}
    if arguments.other:
        files = (arguments.other / f"{name}.lua" for name in library.FILES)
        sources["other"] = "\n".join(file.read_text(encoding="utf-8") for file in files if file.exists())
    for title, (prepare, call) in SCENARIOS.items():
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in sources}
        for _ in range(arguments.rounds):
            for name, source in sources.items():
                taken[name].append(stall(source, prepare, call))
        columns = []
        for name, results in taken.items():
            stalls, grown = zip(*results, strict=True)
            columns.append(f"{name} {statistics.median(stalls):7.1f} ms, {statistics.median(grown):6.1f} MiB")
        print(f"{title:32} {'   '.join(columns)}", flush=True)


if __name__ == "__main__":
    main()
