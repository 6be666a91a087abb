"""Runs a plan on a real server, with an operator, and gathers the history.

As a program (`make histories`) it runs many: `SEED` says with which to begin, `SEEDS` how many, `DURATION`
for how many seconds each, and `KINDS` which faults, by comma. The files of a run that broke a promise are
kept: given their directory, the program checks them again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))

from agentstream.protocol import library
from agentstream.protocol.envelope import decode
from agentstream.protocol.keys import StreamKeys, default_stream_key
from agentstream.testing import Faults
from agentstream.testing.process import Watchdog
from agentstream.testing.topology import fields_of
from agentstream.transport.client import Client
from agentstream.transport.endpoint import Endpoint
from agentstream_operator.broker.broker import Broker
from agentstream_operator.plan.accounting import counters
from agentstream_operator.reconcile.state.state import EngineOptions, LoopIntervals, StatusIntervals
from histories.checker import Violation, check
from histories.clock import LeapingClock
from histories.crew import Crew
from histories.nemesis import Nemesis
from histories.plan import CONSUMERS, GROUPS, LEASE, MAX_DELIVERIES, SENDERS, STREAMS, Kind, Plan, make_plan
from histories.records import GroupEnd, History, Letter, Recorder, StreamEnd, read
from histories.watch import watching
from support.operator import Operator, operator
from support.resources import a_group, a_stream
from support.servers import Build, Server, builds
from support.waiting import until

SETTLES_WITHIN = 60.0
HISTORY = "history.json"
OPERATED = EngineOptions(
    loops=LoopIntervals(measure=0.2, measure_unscaled=0.2, janitor=0.3, access=0.3, resync=2.0),
    status=StatusIntervals(numbers=0.5, transient=0.5),
    server_timeout=1.0,
)
DELIVERY = {
    "lease": f"{LEASE:g}s",
    "maxDeliveries": MAX_DELIVERIES,
    "backoff": {"initial": "50ms", "max": "500ms"},
}
RESOURCES = (
    a_stream("tasks", producers=["planner"], retention={"minAge": "1s"}),
    a_stream("news", producers=["planner"], broadcast=True, retention={"minAge": "1s"}),
    *(
        a_group(
            group.replace("/", "-"),
            stream=group.partition("/")[0],
            group=group.partition("/")[2],
            agent=group.partition("/")[2],
            startFrom="Beginning",
            deliver="All" if group == "tasks/auditor" else "Addressed",
            delivery=DELIVERY,
        )
        for group in GROUPS
    ),
)


@dataclass(frozen=True)
class Outcome:
    """What came of a run: its history, and the promises that it broke."""

    history: History
    violations: list[Violation]

    def __str__(self) -> str:
        """What happened, in a line."""
        kinds = Counter(type(line).__name__.lower() for line in self.history.lines)
        faults = Counter(getattr(line, "kind", "") for line in self.history.lines)
        del faults[""]
        broken = ", ".join(f"{kind} {count}" for kind, count in sorted(faults.items()))
        return f"{kinds['returned']} sent, {kinds['began']} handled; {broken or 'nothing broken'}"


async def run(
    plan: Plan, directory: Path, *, build: Build | None = None, source: str | None = None
) -> Outcome:
    """Lets a plan happen.

    Args:
        plan: what happens.
        directory: where all processes write.
        build: the server program, by default the newest.
        source: text of the function library, if not the package's.

    Raises:
        RuntimeError: a process ended by itself, or not well.
    """
    clock, build = LeapingClock(directory), build or builds()[0]
    if LeapingClock.available():
        build = clock.on(build)
    else:
        plan = replace(plan, steps=tuple(step for step in plan.steps if step.kind is not Kind.LEAP))
    (directory / "users.acl").touch()
    options = ("--aclfile", str(directory / "users.acl"), "--appendfsync", "always")
    server = Server(build, directory, persistent=True, options=options)
    async with contextlib.AsyncExitStack() as stack:
        server.start()
        stack.callback(server.kill)
        with server.admin() as admin:
            admin.function_load(source or library.source())
        recorder = Recorder(directory, "nemesis")
        stack.callback(recorder.close)
        stack.enter_context(watching(recorder, ""))
        op = await stack.enter_async_context(operator(server.url, *RESOURCES, options=OPERATED))
        for resource in RESOURCES:
            await op.ready(resource.key)
        watchdog = Watchdog(directory / "watched")
        stack.callback(watchdog.close)
        environ = dict(os.environ)
        crew = Crew(plan, directory, await _secrets(op), watchdog, environ)
        stack.callback(crew.close)
        for name in (*CONSUMERS, *SENDERS):
            crew.hire(name, stack.enter_context(Faults(server.port)))
        await crew.ready()
        wire = Client(lambda: Endpoint(server.url), name="histories")
        stack.push_async_callback(wire.close)
        broker = await Broker.connect(server.url, installation="agentstream")
        stack.push_async_callback(broker.close)
        nemesis = Nemesis(crew, server, clock, recorder, lambda: _is_whole(broker))
        await nemesis.carry_out(plan)
        crew.heal()
        await crew.end(SENDERS)
        with contextlib.suppress(TimeoutError):
            await until(lambda: _is_settled(broker), SETTLES_WITHIN)
        await crew.end(CONSUMERS)
        streams = {name: await _stream_end(broker, wire, name) for name in STREAMS}
    history = History(read(directory), streams, LEASE, MAX_DELIVERIES)
    (directory / HISTORY).write_bytes(msgspec.json.encode(history))
    return Outcome(history, check(history))


async def _secrets(op: Operator) -> dict[str, dict[str, str]]:
    agents = ("planner", "coder", "auditor")
    await until(lambda: {("team", agent) for agent in agents} <= op.cluster.secrets.keys())
    made = {agent: op.cluster.secrets["team", agent] for agent in agents}
    return {agent: {"username": c.username, "password": c.password} for agent, c in made.items()}


def _groups(stream: str) -> list[str]:
    return [group.partition("/")[2] for group in GROUPS if group.startswith(f"{stream}/")]


def _key(stream: str) -> str:
    return default_stream_key("team", stream)


async def _is_whole(broker: Broker) -> bool:
    """Whether all streams and groups are there."""
    for stream in STREAMS:
        seen = await broker.observe(_key(stream), _groups(stream))
        if not all(group.exists and group.retry_ready for group in seen.groups.values()):
            return False
    return True


async def _is_settled(broker: Broker) -> bool:
    for stream in STREAMS:
        seen = await broker.observe(_key(stream), _groups(stream))
        if any(g.backlog or g.delayed or not g.exists for g in seen.groups.values()):
            return False
    return True


async def _stream_end(broker: Broker, wire: Client, name: str) -> StreamEnd:
    key, groups = _key(name), {}
    seen = await broker.observe(key, _groups(name))
    for group in _groups(name):
        found = seen.groups[group]
        totals = counters(seen, found)
        letters = await wire.call("XRANGE", StreamKeys(key).dead_letters(group), "-", "+")
        left = {
            "undelivered": found.undelivered,
            "pending": found.pending,
            "retrying": found.retry_length,
            "delayed": found.delayed,
        }
        groups[f"{name}/{group}"] = GroupEnd(
            left,
            totals.acked,
            totals.skipped,
            totals.dead,
            totals.lost,
            tuple(_letter(fields_of(fields)) for _, fields in letters),
        )
    entries = {
        entry.decode(): _number(fields_of(fields)["m"])
        for entry, fields in await wire.call("XRANGE", key, "-", "+")
    }
    return StreamEnd(entries, seen.added, groups)


def _letter(fields: dict[str, bytes]) -> Letter:
    return Letter(
        _number(fields["m"]), fields["origin"].decode(), fields["reason"].decode(), int(fields["attempts"])
    )


def _number(body: bytes) -> int:
    payload: Any = decode(body).payload
    return int(payload["n"])


def say(line: str) -> None:
    """Prints a line at once."""
    print(line, flush=True)  # noqa: T201 - a program's result


def report(violations: list[Violation]) -> int:
    """Prints violations. Returns 1 if there are any."""
    for violation in violations:
        say(f"  {violation}")
    return min(len(violations), 1)


def main() -> int:
    """Runs seeds, one after the other. Returns 1 if a promise was broken."""
    if sys.argv[1:]:
        kept = Path(sys.argv[1], HISTORY).read_bytes()
        return report(check(msgspec.json.decode(kept, type=History)))
    first = int(os.environ.get("SEED") or time.time())
    count = int(os.environ.get("SEEDS") or 1)
    duration = float(os.environ.get("DURATION") or 20)
    named = os.environ.get("KINDS")
    kinds = frozenset(map(Kind, named.split(","))) if named else None
    broken = 0
    for seed in range(first, first + count):
        directory = Path(tempfile.mkdtemp(prefix=f"agentstream-history-{seed}-"))
        outcome = asyncio.run(run(make_plan(seed, duration, kinds), directory))
        say(f"seed {seed}: {outcome}")
        if report(outcome.violations):
            broken += 1
            say(f"  kept: {directory}")
        else:
            shutil.rmtree(directory)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
