"""A server that is killed, away, silent, or full, and entries that no agent of today would have added."""

from __future__ import annotations

import asyncio
import os
import time

import msgspec
import pytest

from agentstream import Backpressure
from agentstream.protocol.keys import StreamKeys
from agentstream.sending.outgoing import new_id
from agentstream.testing import Sandbox
from agentstream_operator.plan.accounting import counters
from agentstream_operator.plan.retention import JanitorSpec
from faults.drill import GROUP, Drill
from support.waiting import until

# A minute is what must be survived; what matters is that all leases and pauses are over several times.
AWAY = float(os.environ.get("AGENTSTREAM_AWAY", "6"))


async def test_it_is_killed_in_the_middle_of_writing(sandbox: Sandbox, drill: Drill) -> None:
    # what it answered is on the disk: not even a failing machine takes it along
    await drill.wire.call("CONFIG", "SET", "appendfsync", "always")
    drill.consume(sandbox.agent("coder"))
    planner = sandbox.agent("planner")
    for round_ in range(4):
        sending = asyncio.create_task(drill.send(planner, range(round_ * 250, round_ * 250 + 250)))
        await until(lambda round_=round_: len(drill.ledger.records("began")) > round_ * 250)
        sandbox.server.kill()
        await asyncio.to_thread(sandbox.server.start)
        await drill.wire.call("CONFIG", "SET", "appendfsync", "always")
        await sending
    drill.healed()
    # what was handled but not yet acknowledged is repeated by its own consumer, which still knows of it
    await drill.over("server killed (-9) 4 times in mid-write")


async def test_it_is_away_for_long(sandbox: Sandbox, drill: Drill) -> None:
    drill.consume(sandbox.agent("coder"), handlers=4, concurrency=16)
    planner = sandbox.agent("planner")
    await drill.send(planner, range(4), takes=1.0)
    await until(lambda: len(drill.ledger.records("began")) == 4)
    with sandbox.faults.refuse():
        sending = asyncio.create_task(drill.send(planner, range(100, 200), timeout=AWAY + 30))
        await asyncio.wait({sending}, timeout=AWAY)
        assert not sending.done()
        # what four handlers had in hand is to be settled, and its lease is over
        assert len(drill.ledger.records("done")) == 4
        assert not drill.ledger.records("acked", "refused")
    drill.healed()
    await sending
    await drill.over(f"server away for {AWAY:g} s, leases of 1 s")


async def test_it_is_killed_and_others_start_as_it_is_back(sandbox: Sandbox, drill: Drill) -> None:
    await sandbox.declare_group("tasks", agent="coder", lease=3.0)
    drill.consume(sandbox.agent("coder"), handlers=10, concurrency=20)
    await drill.send(sandbox.agent("planner"), range(10), takes=AWAY + 6)
    await until(lambda: len(drill.ledger.records("began")) == 10)
    sandbox.server.kill()
    back = time.monotonic() + AWAY
    await until(lambda: time.monotonic() > back, timeout=2 * AWAY)
    await asyncio.to_thread(sandbox.server.start)
    drill.healed()
    for pod in ("a", "b"):
        drill.consume(sandbox.agent("coder", pod=pod), handlers=10, concurrency=20)
    await drill.over(f"server killed, away for {AWAY:g} s, and others start as it is back", timeout=30)
    assert len(drill.ledger.records("began")) == 10


async def test_the_network_is_silent_both_ways_for_longer_than_anybody_waits(
    sandbox: Sandbox, drill: Drill
) -> None:
    drill.consume(sandbox.agent("coder"), handlers=4, concurrency=16)
    planner = sandbox.agent("planner")
    await drill.send(planner, range(100), takes=0.05)
    with sandbox.faults.hold():
        sending = asyncio.create_task(drill.send(planner, range(100, 200)))
        # all connections that wait for an answer give up; what they said arrives late
        await asyncio.wait({sending}, timeout=9)
        assert not sending.done()
    drill.healed()
    await sending
    await drill.over("silent network both ways for 9 s, leases of 1 s")


@pytest.mark.parametrize("seconds", [1.5, 2.5, 4.5])
async def test_the_network_is_silent_for_a_few_seconds_at_the_shortest_lease(
    sandbox: Sandbox, drill: Drill, seconds: float
) -> None:
    await sandbox.declare_group("tasks", agent="coder", lease=2.0)
    for _ in range(2):
        drill.consume(sandbox.agent("coder"), handlers=8, concurrency=24)
    await drill.send(sandbox.agent("planner"), range(100), takes=0.5)
    await until(lambda: len(drill.ledger.records("began")) >= 16)
    with sandbox.faults.hold():
        await asyncio.sleep(seconds)
    drill.healed()
    await drill.over(f"silent network both ways for {seconds:g} s, leases of 2 s")


async def test_replies_are_silent_for_longer_than_anybody_waits(sandbox: Sandbox, drill: Drill) -> None:
    drill.consume(sandbox.agent("coder"), handlers=4, concurrency=16)
    planner = sandbox.agent("planner")
    await drill.send(planner, range(100), takes=0.05)
    with sandbox.faults.delay(60):
        sending = asyncio.create_task(drill.send(planner, range(100, 200)))
        await asyncio.wait({sending}, timeout=6)
        assert not sending.done()
    sandbox.faults.cut()
    drill.healed()
    await sending
    await drill.over("commands pass, replies are silent for 6 s, leases of 1 s")


async def test_its_memory_is_full(sandbox: Sandbox, drill: Drill) -> None:
    planner = sandbox.agent("planner")
    await drill.send(planner, range(200), pad="x" * 10_000, fails=1)
    await drill.wire.call("CONFIG", "SET", "maxmemory", "1mb")
    refused = await drill.send(planner, range(200, 210), timeout=0.3)
    assert {type(result) for result in refused} == {Backpressure}
    # consumers acknowledge, retry, sweep and claim
    drill.consume(sandbox.agent("coder"))
    await until(drill.settled)
    sending = asyncio.create_task(drill.send(planner, range(210, 220)))
    await asyncio.wait({sending}, timeout=0.3)
    assert not sending.done()
    await drill.wire.call("CONFIG", "SET", "maxmemory", "0")
    drill.healed()
    await sending
    await drill.over("server out of memory: drained, then sent on")
    assert drill.accepted.keys() == {*range(200), *range(210, 220)}


async def test_entries_that_a_consumer_holds_and_others_are_trimmed(sandbox: Sandbox, drill: Drill) -> None:
    """Nobody of ours does so. It is counted, it holds nothing up, and nothing loops."""
    await drill.send(sandbox.agent("planner"), range(40), takes=0.5)
    drill.consume(sandbox.agent("coder"), handlers=4, concurrency=16)
    await until(lambda: len(drill.ledger.records("began")) == 4)
    # four are in hand, four are buffered, 26 of those that are to come go, too
    await drill.wire.call("XTRIM", drill.key, "MAXLEN", "=", 6)
    await until(drill.settled, timeout=20)
    assert await drill.commands_of_a_second() < 30
    await drill.stop()
    done = {record.number for record in drill.ledger.records("done")}
    assert done >= {*range(4), *range(34, 40)}
    seen = await drill.broker.observe(drill.key, [GROUP])
    counted = counters(seen, seen.groups[GROUP])
    assert counted.acked + counted.lost == 40
    acked = {record.number for record in drill.ledger.records("acked")}
    assert len(acked) == counted.acked


DAY = 86_400_000


def body(n: int, **changes: object) -> bytes:
    """An envelope as somebody else makes it."""
    envelope = {
        "v": 1,
        "id": new_id(),
        "from": "planner",
        "to": "broadcast",
        "type": "event",
        "payload": {"n": n},
        "timestamp": time.time(),
    }
    return msgspec.json.encode({**envelope, **changes})


async def add(drill: Drill, n: int, entry: str = "*", **changes: object) -> None:
    """Adds an entry past the SDK."""
    drill.accepted[n] = (await drill.wire.call("XADD", drill.key, entry, "m", body(n, **changes))).decode()


async def test_an_unknown_version_becomes_a_dead_letter_and_harms_no_other(
    sandbox: Sandbox, drill: Drill
) -> None:
    drill.consume(sandbox.agent("coder"))
    planner = sandbox.agent("planner")
    await drill.send(planner, range(20))
    for n in range(20, 25):
        await add(drill, n, v=2)
    await drill.send(planner, range(25, 40))
    drill.healed()
    await drill.over("5 messages of a version to come")
    letters = await drill.wire.call("XRANGE", StreamKeys(drill.key).dead_letters(GROUP), "-", "+")
    assert [dict(zip(f[::2], f[1::2], strict=True))[b"reason"] for _, f in letters] == [b"UnknownVersion"] * 5
    assert {record.number for record in drill.ledger.records("done")} == {*range(20), *range(25, 40)}


async def test_a_clock_that_jumped_ahead_and_back_loses_nothing(sandbox: Sandbox, drill: Drill) -> None:
    """Entries have ids of tomorrow: those that follow are added to them, though the clock is right again."""
    drill.consume(sandbox.agent("coder"))
    planner = sandbox.agent("planner")
    await drill.send(planner, range(20))
    await add(drill, 20, f"{round(time.time() * 1000) + DAY}-0")
    await drill.send(planner, range(21, 60), fails=1)
    assert len({entry.partition("-")[0] for n, entry in drill.accepted.items() if n >= 20}) == 1
    drill.healed()
    # a pass of the janitor, which keeps what the time that it is says
    groups = ((GROUP, 1000, DAY),)
    report = await drill.broker.janitor(JanitorSpec(drill.key, DAY, 1000, 0, "TrimAcknowledged", groups))
    assert report.trimmed == 0
    await drill.over("clock a day ahead, and back")
    await drill.wire.call("DEL", StreamKeys(drill.key).gate)
