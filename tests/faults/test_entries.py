"""Entries that nobody of ours would have made: of versions to come, of the future, not messages at all."""

from __future__ import annotations

import time

import msgspec

from agentstream.protocol.keys import StreamKeys
from agentstream.sending.outgoing import new_id
from agentstream.testing import Sandbox
from agentstream_operator.plan.retention import JanitorSpec
from faults.drill import GROUP, Drill

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
